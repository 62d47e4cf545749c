// Package wasi serves WASI preview 1: all of it but proc_exit, which ends a run.
// What the engine brings is not used: it hands every call for a file to another
// thread, and its ways through the file system had holes.
//
// A path is resolved by the kernel alone: openat2 beneath the directory that the
// guest has, with RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS. What changes a
// directory works on the parent opened so and on one name without a slash in it,
// which no call follows if it is a link. What is opened is a regular file or a
// directory; a pipe, a socket or a device is looked at, not opened.
//
// Trusted: the directories of the [Config], open, and [Host]. Hostile: the guest,
// in every pointer, length, path, number and flag; whoever else changes the
// directories meanwhile. Promise: nothing outside of the directories is reached by
// a path; nothing in a read-only one is changed, whatever its mount allows; a
// pointer or length out of range traps before anything else happens; what a guest
// can make the host keep is bounded: its descriptors in number, everything else by
// a fixed size; no call waits but for stdin, output, time, and a file system that
// does not answer.
package wasi
