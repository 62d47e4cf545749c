package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"embed"
)

// sources are the programs in C. They are compiled when they are measured, by
// one compiler with the same flags for both sides: what another one made once
// would say little.
//
//go:embed testdata/c
var sources embed.FS

// compiler is clang with its linker for WASM.
type compiler struct{ dir string }

func newCompiler(dir string) (*compiler, error) {
	for _, program := range []string{"clang", "wasm-ld"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: run make testdeps as root", err)
		}
	}
	c := &compiler{filepath.Join(dir, "c")}
	return c, os.CopyFS(c.dir, sources)
}

// wasm compiles a program for WASM, without a C library, and returns the module.
func (c *compiler) wasm(ctx context.Context, name string, flags ...string) ([]byte, error) {
	out := filepath.Join(c.dir, name+".wasm")
	// Bulk memory is what copies and fills become, as they become the processor's
	// own instructions on the other side.
	flags = append(flags, "--target=wasm32", "-mbulk-memory", "-nostdlib", "-Wl,--no-entry")
	if err := c.compile(ctx, name, out, flags); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// native compiles a program for this machine and returns its path.
func (c *compiler) native(ctx context.Context, name string, flags ...string) (string, error) {
	out := filepath.Join(c.dir, name)
	return out, c.compile(ctx, name, out, flags)
}

func (c *compiler) compile(ctx context.Context, name, out string, flags []string) error {
	cmd := exec.CommandContext(ctx, "clang", append(flags, "-O2", "-Wall", "-Werror", "-o", out, name+".c")...)
	cmd.Dir = filepath.Join(c.dir, "testdata", "c")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("clang %s.c: %w\n%s", name, err, text)
	}
	return nil
}
