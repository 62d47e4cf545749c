package host

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// wasiConfig gives the guest what the document grants. The second result closes
// what it opened, once the run is over.
func (p *Program) wasiConfig(r request, dirs []*os.File, over <-chan struct{}) (_ *engine.WASI, done func(), err error) {
	w := &engine.WASI{
		Args: p.doc.Args,
		Env:  p.doc.Env,
		// All but a terminal goes through the host, which counts it.
		InheritStdout: r.inheritOut,
		InheritStderr: r.inheritErr,
	}
	for i, d := range dirs {
		w.Preopens = append(w.Preopens, engine.Preopen{Host: fdPath(d), Guest: p.doc.Preopens[i].Guest, ReadOnly: p.doc.Preopens[i].ReadOnly})
	}
	done = func() {}
	if p.command {
		done, err = feedStdin(r.in, w, over)
	}
	return w, done, err
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
func feedStdin(in *input, w *engine.WASI, over <-chan struct{}) (func(), error) {
	nothing := func() {}
	if in.file != nil {
		// The engine opens it anew: reading by handle goes on beside it.
		w.StdinFile = fdPath(in.file)
		return nothing, nil
	}
	if in.source == nil {
		w.StdinData = in.buf // copied
		return nothing, nil
	}
	if f, ok := in.source.(*os.File); ok && f.Fd() == 0 {
		w.InheritStdin = true
		return nothing, nil
	}
	// The engine reads files only.
	r, wr, err := os.Pipe()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot make a pipe")
	}
	w.StdinFile = fdPath(r)
	closeWriter := sync.OnceFunc(func() { _ = wr.Close() })
	go func() {
		// The guest may end before it has read everything.
		_, _ = io.Copy(wr, in.source)
		closeWriter()
	}()
	go func() {
		// A guest that waits for more comes back when there is no more.
		<-over
		closeWriter()
	}()
	return func() { _ = r.Close() }, nil
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
