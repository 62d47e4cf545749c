package audit

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// lockPause is the pause between two tries to get a lock that somebody holds.
const lockPause = time.Millisecond

// appendShared appends under a lock of the newest file. A process that is killed
// gives its lock back; one that is stopped keeps it, and is not waited for.
func (s *Spool) appendShared(text []byte) error {
	began := time.Now()
	for {
		waited := time.Since(began)
		done, err := s.tryShared(text, waited > limits.AuditWait/2)
		if done || err != nil {
			return err
		}
		if waited > limits.AuditWait {
			return fault.New(fault.Unavailable, s.dir, "somebody keeps the records locked")
		}
		time.Sleep(lockPause)
	}
}

// tryShared makes one try; false without an error means that another is needed.
// A file without a header is one that its maker has not finished; who finds one
// that is abandoned finishes it.
func (s *Spool) tryShared(text []byte, adopt bool) (done bool, err error) {
	files, err := spoolFiles(s.dir)
	if err != nil {
		return false, fault.Wrap(err, fault.Unavailable, s.dir, "cannot look at the records that wait")
	}
	if len(files) == 0 {
		return false, s.begin()
	}
	newest := files[len(files)-1]
	f, err := os.OpenFile(filepath.Join(s.dir, newest.name()), os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.Wrap(err, fault.Unavailable, s.dir, "cannot open the records that wait")
	}
	defer func() { _ = f.Close() }() // and with it the lock: the write said whether it went well
	if locked, err := s.lock(f, unix.LOCK_NB); !locked {
		return false, err
	}
	// Whoever holds the lock of the newest file may make the next one.
	if _, err := os.Lstat(filepath.Join(s.dir, spoolFile{number: newest.number + 1}.name())); err == nil {
		return false, nil
	}
	info, err := f.Stat()
	if err != nil {
		return false, fault.Wrap(err, fault.Unavailable, s.dir, "cannot look at the records that wait")
	}
	switch size := info.Size(); {
	case size == 0 && !adopt:
		return false, nil
	case size == 0:
		head, err := json.Marshal(header{Spool: spoolVersion, ID: newID()})
		if err != nil {
			return false, fault.Wrap(err, fault.Internal, s.dir, "cannot encode a header")
		}
		text = append(append(head, '\n'), text...)
	case size+int64(len(text)) > s.bytes/filesPerSpool:
		return false, s.begin()
	case torn(f, size):
		text = append([]byte{'\n'}, text...)
	}
	s.f, s.size = f, info.Size()
	defer func() { s.f = nil }()
	return true, s.write(text)
}

func (s *Spool) lock(f *os.File, how int) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|how)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fault.Wrap(err, fault.Unavailable, s.dir, "cannot lock the records that wait")
	}
	return true, nil
}

// begin makes the next file and leaves it to the next try. Its lock is taken
// before its header is written; who was faster has written one.
func (s *Spool) begin() error {
	p, err := s.plan()
	if err != nil {
		return err
	}
	f, err := p.create()
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if locked, err := s.lock(f, unix.LOCK_NB); !locked {
		return err
	}
	if info, err := f.Stat(); err != nil || info.Size() > 0 {
		return err
	}
	return p.finish(f)
}

// torn tells that the last line was not finished: its writer was killed.
func torn(f *os.File, size int64) bool {
	last := make([]byte, 1)
	if size == 0 {
		return false
	}
	_, err := f.ReadAt(last, size-1)
	return err == nil && last[0] != '\n'
}

// openRegular opens a file that may be another's: no link leads elsewhere, no
// pipe is waited for.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
