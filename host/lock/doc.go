// Package lock takes from the host's own process what it does not need while a
// guest runs: the second stage of the sandbox, inside of the container's walls.
//
// It is put on in two steps. Before Go starts, and with it the first thread, a
// constructor in C takes the paths from the command line ([hostdoc.Command]) and
// enters Landlock, forbids new privileges and makes the process unreadable to
// others; every thread inherits it. Once the module is loaded and before the
// guest's first instruction, [Enter] installs a filter of system calls on all
// threads. Neither can be taken off again.
//
// Trusted: the command line and the document, which must say the same. Hostile:
// whatever code runs in this process after [Enter], the host's own included: a
// guest may have taken it over. Promise: after [Enter] returns nil no thread of
// this process starts a program or a process, makes memory executable, reaches
// another process or a path that the lock does not name, gains a right, or opens
// a connection that the lock does not allow; what it tries is refused or ends
// it, as [Calls] says call by call. What the kernel cannot do is named by
// [Early], and a filter that cannot be installed is an error.
package lock
