package main

/*
#include <fcntl.h>
#include <sys/prctl.h>

static int result_open;

// Before Go starts: each thread has the attribute for itself, and the runtime
// may take a free descriptor for its own.
__attribute__((constructor)) static void before_go(void) {
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	result_open = fcntl(3, F_GETFD) != -1;
}

static int result_was_open(void) { return result_open; }
*/
import "C"

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/limits"
)

// resultFD is where `compile` writes the compiled code.
const resultFD = 3

// resultOpen says whether the caller gave a descriptor for the result.
func resultOpen() bool { return C.result_was_open() != 0 }

// nobody is the user and group that compile as root becomes.
const nobody = 65534

// confine takes from a process that is about to read a hostile module whatever
// it does not need.
func confine() error {
	const addressSpace = 8 << 30 // the engine reserves, it does not use
	bounds := []struct {
		resource int
		max      uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_CPU, uint64(limits.CompileCPU.Seconds())},
		{unix.RLIMIT_FSIZE, 1 << 30},
		{unix.RLIMIT_NOFILE, 32},
		{unix.RLIMIT_AS, addressSpace},
	}
	for _, b := range bounds {
		// An already lower limit stays.
		var now unix.Rlimit
		if err := unix.Getrlimit(b.resource, &now); err != nil {
			return err
		}
		lower := min(b.max, now.Max)
		if err := unix.Setrlimit(b.resource, &unix.Rlimit{Cur: lower, Max: lower}); err != nil {
			return err
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	return errors.Join(leaveTree(), dropRoot())
}

// leaveTree makes an empty directory, already removed, the process's root.
func leaveTree() error {
	dir, err := os.MkdirTemp("", "mentat-compile-")
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil {
		return err
	}
	return unix.Chroot(".")
}

func dropRoot() error {
	// The Go runtime does these on every thread.
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(nobody); err != nil {
		return err
	}
	if err := syscall.Setuid(nobody); err != nil {
		return err
	}
	if os.Geteuid() != nobody || os.Getegid() != nobody {
		return errors.New("still root")
	}
	return nil
}
