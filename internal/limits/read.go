package limits

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ErrExceeded is in the error of what is longer than its limit.
var ErrExceeded = errors.New("over the limit")

// Read reads r to its end. Of what is longer than limit bytes nothing is
// returned but an error that is [ErrExceeded].
func Read(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w of %d bytes", ErrExceeded, limit)
	}
	return data, nil
}

// ReadFile is [Read] of a regular file. Nothing else is opened: a pipe would be
// waited for.
func ReadFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f, limit)
}
