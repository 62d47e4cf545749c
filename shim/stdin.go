package shim

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"time"

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
	hold   func() // closes the reading end that is ours
	ended  bool   // before it was watched
}

// writerWait is how long a writer is waited for that may still be on its way.
// Clients open their end before they ask for the task, in the background.
const writerWait = 100 * time.Millisecond

// watchInput must be called before the task opens the FIFO. A writer that has
// nothing to say opens and closes its end before that: where there is none by
// now, and nothing was written, the input has ended.
func watchInput(ctx context.Context, fifo string) (*inputEnd, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, fifo, "cannot watch the input")
	}
	events := os.NewFile(uintptr(fd), "inotify:"+filepath.Base(fifo))
	if _, err := unix.InotifyAddWatch(fd, fifo, unix.IN_CLOSE_WRITE); err != nil {
		_ = events.Close()
		return nil, fault.Wrap(err, fault.Internal, fifo, "cannot watch the input")
	}
	e := &inputEnd{events: events}
	if err := e.look(ctx, fifo); err != nil {
		e.stop()
		return nil, fault.Wrap(err, fault.Internal, fifo, "cannot look for who writes the input")
	}
	return e, nil
}

// look opens the FIFO, which lets a writer that waits for a reader go on. It stays
// open until the task has it, so that nothing of what is written is lost.
func (e *inputEnd) look(ctx context.Context, fifo string) error {
	reader, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	e.hold = sync.OnceFunc(func() { _ = unix.Close(reader) })
	var scratch [2]int
	if err := unix.Pipe2(scratch[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(scratch[0])
	defer unix.Close(scratch[1])
	for begin := time.Now(); time.Since(begin) < writerWait; {
		// A copy takes nothing away, and says what no other call does: that there is
		// neither data nor a writer.
		switch n, err := unix.Tee(reader, scratch[1], 1, unix.SPLICE_F_NONBLOCK); {
		case n > 0, err == unix.EAGAIN:
			return nil
		case err == unix.EINVAL:
			return nil // no FIFO: nobody's end is seen
		case err != nil && err != unix.EINTR:
			return err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.ended = true
	return nil
}

// opened says that the task has the FIFO open.
func (e *inputEnd) opened() { e.hold() }

// wait returns true once a writer closed the input and false once the FIFO is
// gone or [inputEnd.stop] was called.
func (e *inputEnd) wait() bool {
	if e.ended {
		return true
	}
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
func (e *inputEnd) stop() {
	_ = e.events.Close()
	if e.hold != nil {
		e.hold()
	}
}
