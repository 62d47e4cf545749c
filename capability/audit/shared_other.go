//go:build !linux

package audit

import (
	"os"

	"github.com/mentatlab/mentat/internal/fault"
)

// appendShared is for nodes, and those run Linux.
func (s *Spool) appendShared([]byte) error {
	return fault.New(fault.Unsupported, s.dir, "records are written on Linux only")
}

// openRegular opens a file.
func openRegular(path string) (*os.File, error) { return os.Open(path) }
