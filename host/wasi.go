package host

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// wasiConfig gives the guest what the document grants.
func wasiConfig(doc *hostdoc.Document, streams Streams) *engine.WASI {
	w := &engine.WASI{
		Args: doc.Args,
		Env:  doc.Env,
		// Terminals stay terminals to the guest. All else goes through the
		// host, which counts it.
		InheritStdout: isTerminal(streams.Stdout, 1),
		InheritStderr: isTerminal(streams.Stderr, 2),
	}
	for _, p := range doc.Preopens {
		w.Preopens = append(w.Preopens, engine.Preopen{Host: p.Host, Guest: p.Guest, ReadOnly: p.ReadOnly})
	}
	return w
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
		w.StdinFile = in.Path
		return nothing, nil
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
