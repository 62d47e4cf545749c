//go:build !wasm || js

package agent

import "os"

func run() {
	if status := process(registered); status != 0 {
		os.Exit(int(status)) //nolint:forbidigo // Run is a program's last call, and this is its status
	}
}
