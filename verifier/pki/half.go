package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/mentatlab/mentat/internal/fault"
)

// halfPrefix begins the name of the directory beside dir in which a CA is made. It says
// what it is for, so that nothing of anybody else has such a name.
func halfPrefix(dir string) string { return "." + filepath.Base(dir) + ".init-" }

// makeHalf makes such a directory and holds it, so that nobody takes it for a left one
// until release is called.
func makeHalf(dir string) (half string, release func(), err error) {
	for range 10 {
		if half, err = os.MkdirTemp(filepath.Dir(dir), halfPrefix(dir)+"*"); err != nil {
			return "", nil, err
		}
		held, free := hold(half)
		switch {
		case free:
			return half, func() {}, nil // it cannot be held here, and is never removed by others
		case held != nil:
			return half, func() { _ = held.Close() }, nil // only locked
		}
		// Whoever looks for left ones came between the two steps, and takes it away.
	}
	return "", nil, errors.New("others remove what is made there")
}

// removeHalves removes what processes left that were killed while they made a CA in
// dir: there is a root's key in it. What another process is at work on stays.
func removeHalves(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return nil //nolint:nilerr // who may not list the directory may still make one in it
	}
	is := regexp.MustCompile("^" + regexp.QuoteMeta(halfPrefix(dir)) + "[0-9]+$")
	for _, e := range entries {
		path := filepath.Join(filepath.Dir(dir), e.Name())
		if !is.MatchString(e.Name()) || !e.IsDir() {
			continue
		}
		held, _ := hold(path)
		if held == nil {
			continue
		}
		var err error
		if mine(held) {
			err = os.RemoveAll(path)
		}
		_ = held.Close() // only locked
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(err, fault.AccessDenied, path, "is left over and cannot be removed").WithHint("remove it: there may be a root's key in it")
		}
	}
	return nil
}
