package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// wasiConfig is what the document grants, in the directories of one run.
func (p *Program) wasiConfig(r request, dirs []*os.File) wasi.Config {
	c := wasi.Config{Args: p.doc.Args, Env: p.doc.Env, Terminals: r.terminals}
	for i, d := range dirs {
		c.Preopens = append(c.Preopens, wasi.Preopen{Dir: d, Guest: p.doc.Preopens[i].Guest, ReadOnly: p.doc.Preopens[i].ReadOnly})
	}
	return c
}

// wasiFunc serves a function of WASI.
func wasiFunc(f wasi.Function) func(*call) bool {
	return func(c *call) bool {
		result, outside := c.s.wasi.Serve(f, wasi.Call{Values: c.values, Memory: c.memory})
		if outside != nil {
			return c.outOfRange(outside.Ptr, outside.Len)
		}
		return c.returns(int32(result))
	}
}

// surroundings are what WASI sees of a run.
type surroundings struct{ s *session }

// Read takes from the input of a command. An agent with a process entry has an
// empty stdin: its input comes through read_input.
func (o surroundings) Read(p []byte, wait bool) (int, wasi.Errno) {
	if !o.s.p.command {
		return 0, wasi.Success
	}
	o.s.sync()
	return o.s.in.stream(o.s, p, wait)
}

func (o surroundings) Write(fd int, p []byte) wasi.Errno {
	s := o.s
	if fd == 2 {
		if s.terminals[2] {
			s.log.raw(p)
		} else {
			s.mutter(p)
		}
		return wasi.Success
	}
	write := s.out.write
	if s.terminals[1] {
		write = s.out.sink.Output // people do not count
	}
	if err := write(p); err != nil {
		s.stop(outputEnd(err))
		return wasi.IO
	}
	return wasi.Success
}

func (o surroundings) Over() bool { return o.s.isOver.Load() }

func (o surroundings) Wait(d time.Duration, stdin bool) (ready bool) {
	s, in := o.s, o.s.in
	var input <-chan chunk
	var asked <-chan struct{}
	if stdin {
		s.sync()
		if !s.p.command || in.ready() {
			return true
		}
		in.start(s)
		input, asked = in.chunks, s.draining
	}
	var passed <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		passed = t.C
	}
	select {
	case c := <-input:
		in.accept(c)
		return true
	case <-asked:
		return true
	case <-passed:
	case <-s.over:
	}
	return false
}

// stream reads a command's stdin, which is not held: its length has no bound.
func (i *input) stream(s *session, p []byte, wait bool) (int, wasi.Errno) {
	for i.rest() == 0 && wait && len(p) > 0 {
		more, code := i.fill(s)
		switch {
		case code != 0:
			return 0, wasi.Canceled
		case more:
		case errors.Is(i.err, io.EOF):
			return 0, wasi.Success
		default:
			return 0, wasi.IO
		}
	}
	return i.take(p), wasi.Success
}

// openDirs opens the granted directories.
func openDirs(preopens []hostdoc.Preopen) ([]*os.File, error) {
	var dirs []*os.File
	for _, p := range preopens {
		d, err := openDir(p.Host)
		if err != nil {
			closeAll(dirs)
			return nil, fault.Wrap(err, fault.Internal, p.Host, "cannot open the directory")
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // only handles
	}
}

// openDir opens a granted directory. No symbolic link on the way is followed: one
// grant's place may lie in another's directory, where guests make links, and the
// host sees more than they do.
func openDir(name string) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open("/", flags, 0)
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if err != nil || part == "" {
			break
		}
		above := fd
		fd, err = unix.Openat(above, part, flags, 0)
		_ = unix.Close(above)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// isTerminal tells whether a stream is the process's own by that descriptor, and
// that is a terminal.
func isTerminal(stream any, fd uintptr) bool {
	f, ok := stream.(*os.File)
	if !ok || f.Fd() != fd {
		return false
	}
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return err == nil
}

// fdPath is a name by which the process can open its own descriptor again.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
