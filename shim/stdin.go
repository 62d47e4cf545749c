package shim

import (
	"encoding/binary"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
)

// inputEnd watches an agent's standard input for the moment when whoever
// writes it closes it.
//
// The runc shim keeps a writer of its own on the FIFO, so that the process sees
// an end only after CloseIO. ctr calls that only if its own standard input ends
// after the task was created: with a short file it never does, and an agent
// that reads its input to the end would wait for ever. A batch agent's input
// ends when its writer closes it, as it does in a pipe.
type inputEnd struct {
	events *os.File
}

// watchInput must be called before the task opens the FIFO for reading: until
// then no writer can have opened it, so none can have closed it.
func watchInput(fifo string) (*inputEnd, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, fifo, "cannot watch the input")
	}
	events := os.NewFile(uintptr(fd), "inotify:"+filepath.Base(fifo))
	if _, err := unix.InotifyAddWatch(fd, fifo, unix.IN_CLOSE_WRITE); err != nil {
		_ = events.Close()
		return nil, fault.Wrap(err, fault.Internal, fifo, "cannot watch the input")
	}
	return &inputEnd{events: events}, nil
}

// wait returns true once a writer closed the input and false once the FIFO is
// gone or [inputEnd.stop] was called.
func (e *inputEnd) wait() bool {
	buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := e.events.Read(buf)
		if err != nil {
			return false
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mask := binary.NativeEndian.Uint32(b[4:])
			if mask&unix.IN_CLOSE_WRITE != 0 {
				return true
			}
			if mask&unix.IN_IGNORED != 0 {
				return false
			}
			b = b[unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:])):]
		}
	}
}

// stop ends the watch; it may be called more than once.
func (e *inputEnd) stop() { _ = e.events.Close() }
