package host

import (
	"os"
	"runtime"
	"sync"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/module"
)

// AllowARM64 is the environment variable that lets the engine start on arm64
// when it is "1".
const AllowARM64 = "MENTAT_ALLOW_ARM64"

// Engine names the engine that modules are compiled for and run in.
const Engine = "wasmtime-" + engine.Version

// One engine serves the process: modules of two engines must never meet.
var shared = sync.OnceValues(func() (*engine.Engine, error) {
	if err := checkArch(runtime.GOARCH, os.Getenv(AllowARM64)); err != nil {
		return nil, err
	}
	return engine.New(limits.GuestStackBytes), nil
})

func checkArch(arch, override string) error {
	// The engine's arm64 code generator has known flaws that break the sandbox
	// (GHSA-jhxm, GHSA-mghf) and no fixed version is to be had.
	if arch != "amd64" && (arch != "arm64" || override != "1") {
		return fault.New(fault.Unsupported, "", "the WASM engine is not safe on %s", arch).
			WithHint("run WASM agents on x86-64")
	}
	return nil
}

// Compile checks a WASM module and compiles it to native code for this machine,
// in the form that a run maps into memory. It refuses everything that is not a
// module MentatLab can run ([fault.ModuleInvalid]), native code above all.
//
// The compiler is large and the module hostile: call it in a process that has
// nothing to lose.
func Compile(wasm []byte) ([]byte, error) {
	info, err := module.Inspect(wasm)
	if err != nil {
		return nil, err
	}
	if err := info.Check(); err != nil {
		return nil, err
	}
	e, err := shared()
	if err != nil {
		return nil, err
	}
	compiled, err := e.Compile(wasm)
	if err == nil {
		return compiled, nil
	}
	if invalid := e.Validate(wasm); invalid != nil {
		return nil, fault.Wrap(invalid, fault.ModuleInvalid, "", "the engine refuses the module")
	}
	return nil, fault.Wrap(err, fault.CompileFailed, "", "the engine cannot compile the module")
}
