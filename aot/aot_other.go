//go:build !linux

package aot

import (
	"context"
	"io"
	"runtime"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
)

// Cache is only there on Linux.
type Cache struct{}

// Open says that agents run on Linux.
func Open(Options) (*Cache, error) {
	return nil, fault.New(fault.Unsupported, "", "WASM agents run on Linux, not on %s", runtime.GOOS)
}

// Module never succeeds.
func (*Cache) Module(context.Context, digest.Digest, func() (io.ReadCloser, error)) (Entry, error) {
	_, err := Open(Options{})
	return Entry{}, err
}

// Prune has nothing to remove.
func (*Cache) Prune() error { return nil }

// Sweep has nothing to remove.
func Sweep(string) error { return nil }
