package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/mentatlab/mentat/sdk/internal/pack"
)

func main() {
	if err := run("go", filepath.Join("embedded", "go.txtar")); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	data, err := pack.Archive(os.DirFS(from))
	if err != nil {
		return err
	}
	next := to + ".new"
	if err := os.WriteFile(next, data, 0o644); err != nil { // #nosec G306 -- a source file
		return err
	}
	return os.Rename(next, to)
}
