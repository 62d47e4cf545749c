package owndir

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestADirectoryThatOthersCanEnterIsRefused(t *testing.T) {
	loose := filepath.Join(t.TempDir(), "loose")
	if err := os.Mkdir(loose, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Make(loose); err == nil || !strings.Contains(err.Error(), "mode 0755 lets others in (run: chmod 700 "+loose+")") {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Make(file); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
	deep := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := Make(deep); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(deep); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v: %v", info, err)
	}
}

func TestOnlySmallRegularFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	for _, text := range []string{"one", "two"} {
		if err := Write(good, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if data, _, err := Read(good); err != nil || string(data) != text {
			t.Errorf("%q: %v", data, err)
		}
	}
	for name, make := range map[string]func(path string) error{
		"link":   func(path string) error { return os.Symlink(good, path) },
		"pipe":   func(path string) error { return unix.Mkfifo(path, 0o600) },
		"large":  func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte{'x'}, FileBytes+1), 0o600) },
		"absent": func(string) error { return nil },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if data, _, err := Read(path); err == nil {
			t.Errorf("%s: read %d bytes", name, len(data))
		}
	}
	if err := Write(filepath.Join(dir, "no", "file"), nil); err == nil {
		t.Error("wrote into a directory that is not there")
	}
	if names, _ := filepath.Glob(filepath.Join(dir, TempPrefix+"*")); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestAChangedFileHasAnotherIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	seen := map[string]bool{}
	for _, change := range []func() error{
		func() error { return os.WriteFile(path, []byte("1"), 0o600) },
		func() error { return os.WriteFile(path, []byte("12"), 0o600) },
		func() error { return Write(path, []byte("12")) },
		func() error { return os.Chmod(path, 0o400) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if id := Identity(info); id == "" || seen[id] {
			t.Errorf("%q is no new identity", id)
		} else {
			seen[id] = true
		}
	}
}
