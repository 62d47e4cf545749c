package oci

import (
	"os"
	"path/filepath"
	"testing"
)

// A layout that somebody cloned can have any directory as its blobs.
func TestPruneRemovesNothingOutsideOfTheLayout(t *testing.T) {
	l, err := CreateLayout(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	theirs := t.TempDir()
	file := filepath.Join(theirs, "thesis.tex")
	if err := os.WriteFile(file, []byte("years"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(theirs, filepath.Join(l.Dir(), "blobs")); err != nil {
		t.Fatal(err)
	}
	if err := l.Prune(t.Context()); err == nil {
		t.Error("it went along the link")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
