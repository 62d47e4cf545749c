package owndir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// FileBytes bounds the files that [Read] reads.
const FileBytes = 16 * limits.KiB

// Make makes dir with mode 0700, and what is missing above it, or checks that it
// is nobody else's.
func Make(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fault.New(fault.Internal, dir, "is not a directory")
	case !Mine(info):
		return fault.New(fault.Internal, dir, "belongs to another user").WithHint("what is kept there must be the running user's own")
	case info.Mode().Perm()&0o077 != 0:
		return fault.New(fault.Internal, dir, "mode %04o lets others in", info.Mode().Perm()).WithHint("run: chmod 700 %s", dir)
	}
	return nil
}

// Mine tells whether the file is the running user's.
func Mine(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// Open opens a file to read from, and never a link, nor waits for a pipe.
func Open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// Read reads a regular file of at most [FileBytes] bytes.
func Read(path string) ([]byte, fs.FileInfo, error) {
	f, err := Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > FileBytes || !Mine(info) {
		return nil, nil, fmt.Errorf("%s is %s of %d bytes, not a small file of this user", path, info.Mode(), info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, FileBytes))
	return data, info, err
}

// Write replaces a file. It is not synced: what is kept here may be lost with
// the machine.
func Write(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// TempPrefix begins the names of files that are not finished.
const TempPrefix = ".tmp-"

// Identity changes whenever the content of a file can have changed.
func Identity(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d.%d:%d.%d:%d", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec, st.Mtim.Sec, st.Mtim.Nsec, st.Size)
}
