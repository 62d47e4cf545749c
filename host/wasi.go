package host

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// wasiConfig gives the guest what the document grants. The second result closes
// what it opened, once a run was made from it.
func wasiConfig(doc *hostdoc.Document, streams Streams) (_ *engine.WASI, done func(), err error) {
	w := &engine.WASI{
		Args: doc.Args,
		Env:  doc.Env,
		// Terminals stay terminals to the guest. All else goes through the
		// host, which counts it.
		InheritStdout: isTerminal(streams.Stdout, 1),
		InheritStderr: isTerminal(streams.Stderr, 2),
	}
	var dirs []*os.File
	done = func() {
		for _, d := range dirs {
			_ = d.Close() // only a handle
		}
	}
	for _, p := range doc.Preopens {
		d, err := openDir(p.Host)
		if err != nil {
			done()
			return nil, nil, fault.Wrap(err, fault.Internal, p.Host, "cannot open the directory")
		}
		dirs = append(dirs, d)
		w.Preopens = append(w.Preopens, engine.Preopen{Host: fdPath(d), Guest: p.Guest, ReadOnly: p.ReadOnly})
	}
	return w, done, nil
}

// openDir opens a granted directory for the engine to open again. No symbolic
// link on the way is followed: one grant's place may lie in another's directory,
// where guests make links, and the host sees more than they do.
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

// feedStdin connects a command's stdin to the run's input. An agent with a
// process entry has an empty one: its input comes through read_input.
func feedStdin(in hostdoc.Input, stdin io.Reader, w *engine.WASI) (func(), error) {
	nothing := func() {}
	switch in.Kind {
	case hostdoc.InputText:
		w.StdinData = []byte(in.Text)
		return nothing, nil
	case hostdoc.InputFile:
		f, err := openFile(in.Path)
		if err != nil {
			return nil, fault.Wrap(err, fault.NotFound, in.Path, "cannot open the run's input")
		}
		w.StdinFile = fdPath(f)
		return func() { _ = f.Close() }, nil
	}
	if f, ok := stdin.(*os.File); ok && f.Fd() == 0 {
		w.InheritStdin = true
		return nothing, nil
	}
	if stdin == nil {
		return nothing, nil
	}
	// The engine reads files only.
	r, wr, err := os.Pipe()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot make a pipe")
	}
	w.StdinFile = fdPath(r)
	go func() {
		// The guest may end before it has read everything.
		_, _ = io.Copy(wr, stdin)
		_ = wr.Close()
	}()
	return func() {
		_ = r.Close()
		_ = wr.Close()
	}, nil
}

func isTerminal(w io.Writer, fd uintptr) bool {
	f, ok := w.(*os.File)
	if !ok || f.Fd() != fd {
		return false
	}
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return err == nil
}

// fdPath is a name by which the process can open its own descriptor again.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
