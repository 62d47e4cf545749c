//go:build unix

package pki

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// hold locks a directory that is still where it was; held is nil if it is gone, or held
// by somebody. free tells that nobody can hold it, because its file system has no such
// locks.
func hold(path string) (held *os.File, free bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, !errors.Is(err, fs.ErrNotExist)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // only opened
		return nil, !errors.Is(err, syscall.EWOULDBLOCK)
	}
	opened, err := f.Stat()
	there, terr := os.Lstat(path)
	if err == nil && terr == nil && os.SameFile(opened, there) {
		return f, false
	}
	_ = f.Close() // only locked
	return nil, false
}

// mine tells whether a directory that is held is the running user's.
func mine(held *os.File) bool {
	info, err := held.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
