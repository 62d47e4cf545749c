package main

import (
	"io"
	"os"
	"runtime"
	"strconv"

	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/host/lock"
	"github.com/mentatlab/mentat/host/process"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "compile" {
		os.Exit(process.Finish(compile(os.Args[2:])))
	}
	os.Exit(process.Main(os.Args[1:], process.Options{Name: "mentat-host", Early: lock.Early, Locked: lock.Enter}))
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
