package limits

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadCutsNothingOff(t *testing.T) {
	for text, want := range map[string]error{"": nil, "1234": nil, "12345": ErrExceeded, strings.Repeat("x", 1000): ErrExceeded} {
		got, err := Read(strings.NewReader(text), 4)
		if !errors.Is(err, want) || want == nil && string(got) != text || want != nil && got != nil {
			t.Errorf("%d bytes: %q, %v, want %v", len(text), got, err, want)
		}
	}
	if _, err := Read(strings.NewReader("12345"), 4); !strings.Contains(err.Error(), "limit of 4 bytes") {
		t.Errorf("the limit is not named: %v", err)
	}
}

func TestReadFileTakesRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("1234"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile(path, 4); err != nil || string(got) != "1234" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ReadFile(path, 3); !errors.Is(err, ErrExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := ReadFile(filepath.Join(dir, "none"), 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for _, path := range []string{dir, os.DevNull} {
		if data, err := ReadFile(path, 4); err == nil || errors.Is(err, ErrExceeded) {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
}
