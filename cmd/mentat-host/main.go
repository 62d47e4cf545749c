package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/host/lock"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/version"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(usage("which of run, compile, version?"))
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "run":
		os.Exit(run(args))
	case "compile":
		os.Exit(finish(compile(args)))
	case "version", "--version":
		fmt.Println("mentat-host", version.Version, host.Engine)
	default:
		os.Exit(usage(fmt.Sprintf("unknown command %q, there are run, compile and version", os.Args[1])))
	}
}

func usage(message string) int {
	return finish(fault.New(fault.Usage, "mentat-host", "%s", message))
}

// finish prints an error and turns it into an exit code.
func finish(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return fault.CLICode(err)
}

func run(args []string) int {
	flags := flag.NewFlagSet("mentat-host run", flag.ContinueOnError)
	document := flags.String("document", hostdoc.Path, "the host document")
	if err := flags.Parse(args); err != nil {
		return fault.RowOf(fault.Usage).Exit
	}
	frugal()
	settle()
	doc, err := hostdoc.Read(*document)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return fault.ExitStatus(err)
	}
	// What follows the flags is the lock's, which must be the document's.
	status, err := lock.Early(doc.Lock, flags.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return fault.ExitStatus(err)
	}
	doc.Notices = append(doc.Notices, status.Missing...)
	exit, _ := host.Run(signals(doc), doc, host.Streams{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Locked: func() error { return lock.Enter(doc.Lock) },
	})
	return exit.Status
}

// frugal keeps the host small beside its guest. One thread runs the guest; the
// collector has a few hundred KiB to look after; the engine's WASI starts a
// thread per processor unless told otherwise.
func frugal() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(50)
	// Cannot fail for such names.
	_ = os.Setenv("TOKIO_WORKER_THREADS", "1")
}

// signals returns a context that the first SIGTERM or SIGINT cancels; a second
// one ends the process at once. SIGPIPE becomes an error of the write.
func signals(doc *hostdoc.Document) context.Context {
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.Background())
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		first, _ := (<-c).(syscall.Signal)
		cancel(host.Signal(first))
		second, _ := (<-c).(syscall.Signal)
		status := 128 + int(second)
		// The process ends either way.
		_ = host.Report(doc, hostdoc.Exit{Version: hostdoc.Version, Status: status, Reason: string(fault.Canceled), Message: host.Signal(second).Error()})
		os.Exit(status)
	}()
	return ctx
}

func compile(args []string) error {
	if len(args) > 0 {
		return fault.New(fault.Usage, "mentat-host compile", "takes no arguments: the module comes on stdin, the result goes to descriptor %d", resultFD)
	}
	if !resultOpen() {
		return fault.New(fault.Usage, "mentat-host compile", "descriptor %d is not open", resultFD)
	}
	out := os.NewFile(resultFD, "result")
	// Few threads: the child has a limit of tasks. Set before the engine asks.
	if err := os.Setenv("RAYON_NUM_THREADS", strconv.Itoa(min(runtime.NumCPU(), 4))); err != nil {
		return fault.Wrap(err, fault.Internal, "", "cannot set the environment")
	}
	if err := confine(); err != nil {
		return fault.Wrap(err, fault.Internal, "", "the compiler cannot confine itself")
	}
	module, err := io.ReadAll(io.LimitReader(os.Stdin, limits.ModuleBytes+1))
	if err != nil {
		return fault.Wrap(err, fault.Internal, "", "cannot read the module")
	}
	compiled, err := host.Compile(module)
	if err != nil {
		return err
	}
	if _, err := out.Write(compiled); err != nil {
		return fault.Wrap(err, fault.CompileFailed, "", "cannot write the compiled module")
	}
	if err := out.Close(); err != nil {
		return fault.Wrap(err, fault.CompileFailed, "", "cannot write the compiled module")
	}
	return nil
}
