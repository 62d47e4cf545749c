//go:build !linux

package doctor

import (
	"context"

	"github.com/mentatlab/mentat/internal/fault"
)

// Run is for Linux, where nodes are.
func Run(context.Context, Options) (*Report, error) {
	return nil, fault.New(fault.Unsupported, "", "nodes run on Linux")
}
