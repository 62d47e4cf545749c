package host

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/module"
)

// AllowARM64 is the environment variable that lets the engine start on arm64
// when it is "1".
const AllowARM64 = "MENTAT_ALLOW_ARM64"

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

// EngineID names everything that compiled code depends on beside the module:
// engine, its exact build, its configuration, and the processor's features. Code
// compiled under another id must not be loaded.
func EngineID() string {
	h := sha256.New()
	fmt.Fprintln(h, "format 1")
	fmt.Fprintln(h, "library", libraryBuild())
	fmt.Fprintln(h, "config", engine.Config, limits.GuestStackBytes)
	fmt.Fprintln(h, "rules", limits.ModuleBytes, limits.ModuleFunctions, limits.FunctionBodyBytes)
	fmt.Fprintln(h, "cpu", runtime.GOOS, runtime.GOARCH, cpuFeatures())
	return "wasmtime-" + engine.Version + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// libraryBuild identifies the library's bytes: they are part of the Go module
// that brings them, and so of the module's checksum.
func libraryBuild() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return engine.Version
	}
	for _, dep := range info.Deps {
		if strings.HasPrefix(dep.Path, "github.com/bytecodealliance/wasmtime-go/") {
			return dep.Version + " " + dep.Sum
		}
	}
	return engine.Version
}

// cpuFeatures returns what the kernel reports. Where it reports nothing, the
// engine's own check when it loads a module is what is left.
func cpuFeatures() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			switch strings.TrimSpace(name) {
			case "flags", "Features":
				return strings.TrimSpace(value)
			}
		}
	}
	return ""
}
