//go:build !linux

package chain

import (
	"os"

	"github.com/mentatlab/mentat/internal/fault"
)

// takeLock is for nodes, and those run Linux.
func takeLock(path string) (*os.File, error) {
	return nil, fault.New(fault.Unsupported, path, "an audit log is kept on Linux only")
}
