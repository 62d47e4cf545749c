//go:build !linux

package cli

import (
	"context"
	"os/exec"

	"github.com/mentatlab/mentat/internal/fault"
)

// supervise is for Linux: run refuses before it gets here.
func supervise(context.Context, *exec.Cmd, bool) (int, error) {
	return 0, fault.New(fault.Unsupported, "", "agents run on Linux")
}
