//go:build wasm && !js

package agent

import (
	"os"
	_ "unsafe" // for go:linkname

	"github.com/mentatlab/sdk-go/internal/mentat"
)

// mainMain is the agent's main function, which a module built with
// -buildmode=c-shared never runs by itself.
//
//go:linkname mainMain main.main
func mainMain()

// inModule is set before main runs when the host called process.
var inModule bool

// exported is the module's entry. main runs before the first input, because
// that is where an agent registers itself.
//
//go:wasmexport process
func exported() int32 {
	if !inModule {
		inModule = true
		mentat.Use(mentat.Module{})
		mainMain()
	}
	if registered == nil {
		mentat.Current().SetError(statusFailed, "main did not call agent.Register")
		return statusFailed
	}
	return process(registered)
}

// run does nothing in a module; without -buildmode=c-shared the program is a
// WASI command, whose host reads and writes the standard streams.
func run() {
	if inModule {
		return
	}
	if status := process(registered); status != 0 {
		os.Exit(int(status)) //nolint:forbidigo // Run is a program's last call, and this is its status
	}
}
