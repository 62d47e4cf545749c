package main

/*
#include <errno.h>

// A system call by the gate of 32-bit programs, with other numbers: 20 is getpid.
static long old_gate(void) {
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
	return r;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/lock"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

func main() {
	// What an attempt to start a program starts.
	if len(os.Args) == 2 && os.Args[1] != compile {
		for os.Args[1] == "waits" {
			time.Sleep(time.Hour)
		}
		os.Exit(0)
	}
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(fault.ExitStatus(err))
	}
}

// compile is the host's other task, with the result on descriptor 3. Anything
// will do that is not empty: it is not run.
const compile = "compile"

func run(args []string) error {
	if len(args) == 2 {
		_, err := io.Copy(io.Discard, os.Stdin)
		if err == nil {
			_, err = os.NewFile(3, "result").WriteString("nothing")
		}
		return err
	}
	if len(args) < 4 {
		return fault.New(fault.Usage, "probe", "it is started as a host is")
	}
	doc, err := hostdoc.Read(args[3])
	if err != nil {
		return err
	}
	// An old thread must be held as well as the one that installs the filter.
	old, answers := make(chan string), make(chan error)
	go func() {
		runtime.LockOSThread()
		for name := range old {
			answers <- attempt(name)
		}
	}()
	old <- "nothing"
	if err := <-answers; err != nil {
		return err
	}
	missing, err := lock.Early(doc.Lock, args[4:])
	if err != nil {
		return err
	}
	for _, line := range missing {
		fmt.Println("missing:", line)
	}
	entered := false
	// The first is the program's own name.
	for _, name := range doc.Args[min(1, len(doc.Args)):] {
		rest, before := strings.CutPrefix(name, "before:")
		if !before && !entered {
			if err := lock.Enter(doc.Lock); err != nil {
				return err
			}
			entered = true
		}
		var err error
		if rest, ok := strings.CutPrefix(rest, "old-thread:"); ok {
			old <- rest
			err = <-answers
		} else {
			err = attempt(rest)
		}
		fmt.Printf("%s: %s\n", name, answer(err))
	}
	return nil
}

// oldGate is in C, which has the instruction.
func oldGate() error {
	if r := C.old_gate(); r < 0 {
		return syscall.Errno(-r)
	}
	return nil
}

// answer names an errno; "ok" is none.
func answer(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// attempt tries one thing, "before:" the filter is installed or on an
// "old-thread:" if its name says so; what follows a colon is its argument.
func attempt(name string) error {
	name, arg, _ := strings.Cut(name, ":")
	try, ok := attempts[name]
	if !ok {
		return fmt.Errorf("there is no attempt %q", name)
	}
	return try(arg)
}
