package lock

/*
#include "landlock.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// Early judges what was put on before Go started: args are the words behind the
// document's path on the command line, which must be the document's. missing has
// a line for everything that this kernel cannot hold.
func Early(l *hostdoc.Lock, args []string) (missing []string, err error) {
	if !slices.Equal(args, l.Args()) || (C.mt_locked.asked != 0) != (l != nil) {
		return nil, fault.New(fault.Internal, "lock", "the command line does not say what the document says of the host's lock").
			WithHint("the command line is the document's own, see hostdoc.Command")
	}
	if e := syscall.Errno(C.mt_locked.failed_errno); e != 0 {
		return nil, fault.Wrap(e, fault.Internal, C.GoString(C.mt_locked.failed_on), "the host cannot lock itself to this")
	}
	if l == nil {
		return nil, nil
	}
	return cannot(int(C.mt_locked.abi), syscall.Errno(C.mt_locked.abi_errno)), nil
}

// cannot says what versions of Landlock cannot hold (Documentation/userspace-api/landlock.rst).
func cannot(abi int, why syscall.Errno) []string {
	if abi == 0 {
		text := fmt.Sprintf("the kernel offers no Landlock (%v)", why)
		switch {
		case errors.Is(why, unix.EOPNOTSUPP):
			text = "Landlock is switched off on this machine (the kernel's parameter lsm)"
		case errors.Is(why, unix.EPERM):
			text = "the container's seccomp profile forbids Landlock"
		}
		return []string{text + ": paths are held by the container's mounts alone"}
	}
	var lines []string
	for _, v := range []struct {
		since int
		what  string
	}{
		{2, "links and renames between directories are refused, granted or not"},
		{3, "a file that may only be read could be truncated"},
		{4, "TCP connections are held by the filter alone"},
		{5, "devices could be controlled"},
		{6, "abstract sockets and signals to other processes are held by the filter alone"},
	} {
		if abi < v.since {
			lines = append(lines, fmt.Sprintf("this kernel's Landlock is version %d: %s", abi, v.what))
		}
	}
	return lines
}

// Enter installs the filter of system calls on every thread. It is called once,
// after everything that takes more was done.
func Enter(l *hostdoc.Lock) error {
	if l == nil {
		return nil
	}
	if C.mt_locked.asked == 0 {
		return fault.New(fault.Internal, "lock", "the host was not started with its lock, so it cannot complete it")
	}
	program := filter(l, uint32(os.Getpid()))
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: unsafe.SliceData(program)}
	// All threads or none: a thread without the filter would be a way around it.
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(program)
	switch {
	case e != 0:
		return fault.Wrap(e, fault.Unsupported, "lock", "the host cannot filter its own system calls").
			WithHint("the kernel needs CONFIG_SECCOMP_FILTER, and the container's seccomp profile must let seccomp(2) through")
	case r != 0:
		return fault.New(fault.Internal, "lock", "thread %d has a filter of its own, so not all threads can have the host's", r)
	}
	return nil
}
