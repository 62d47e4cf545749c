package chain

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
)

// takeLock locks a file for as long as the process lives or the file is open.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot open the lock")
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fault.New(fault.Exists, path, "the audit log is kept by another process already")
	} else if err != nil {
		err = fault.Wrap(err, fault.Internal, path, "cannot lock the audit log")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
