package host

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// inputChunk is how much is read from a source at once.
const inputChunk = 64 << 10

// input is the run's input, handle 0. Its source is read by a goroutine of its
// own, started when the guest first asks, so that a guest that waits for input
// can be stopped.
type input struct {
	limit int64
	// keep holds on to everything read, for read_input's pointer form.
	keep bool
	// known is the total size, -1 if only the end will tell.
	known int64

	source io.Reader
	chunks chan chunk
	// file is the source when it is a file of the run's own, to be closed.
	file *os.File

	stretch
	// total counts the bytes that came from the source.
	total int64
	err   error // io.EOF at the end
}

type chunk struct {
	data []byte
	err  error
}

// openInput finds the input of a document. Nothing is read yet.
func openInput(in hostdoc.Input, stdin io.Reader) (*input, error) {
	switch in.Kind {
	case hostdoc.InputText:
		return newInput(strings.NewReader(in.Text)), nil
	case hostdoc.InputFile:
		f, err := openFile(in.Path)
		if err != nil {
			return nil, err
		}
		i := &input{source: f, known: -1, file: f}
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			// A file that grows meanwhile keeps the size that size() told.
			i.source, i.known = io.LimitReader(f, st.Size()), st.Size()
		}
		return i, nil
	}
	return newInput(stdin), nil
}

// newInput makes an input of what r holds; nil holds nothing. What is in memory
// stays where it is.
func newInput(r io.Reader) *input {
	var all captured
	switch r := r.(type) {
	case nil:
	case *bytes.Reader:
		_, _ = r.WriteTo(&all) // all does not fail
	case *strings.Reader:
		_, _ = r.WriteTo(&all)
	default:
		return &input{source: r, known: -1}
	}
	return &input{stretch: stretch{buf: all}, known: int64(len(all)), total: int64(len(all)), err: io.EOF}
}

// captured takes the bytes that a reader in memory hands out.
type captured []byte

func (c *captured) Write(p []byte) (int, error) {
	*c = p
	return len(p), nil
}

func (c *captured) WriteString(s string) (int, error) { return c.Write([]byte(s)) }

// beyond says that the input is over its limit. What is known to be is not read at
// all.
func (i *input) beyond() bool { return i.known > i.limit || i.total > i.limit }

// close leaves the source alone: the run ends what waits for it.
func (*input) close(*session) {}

// free frees what the input holds. A read that still waits goes on.
func (i *input) free() {
	if i.file != nil {
		_ = i.file.Close() // it was only read
	}
}

// openFile opens an input file. In a container it lies in a mount whose links,
// which a volume may well have, count only within it: the host sees more files
// than the guest may.
func openFile(name string) (*os.File, error) {
	within, ok := strings.CutPrefix(name, hostdoc.InputPath)
	if !ok || within != "" && within[0] != '/' {
		return os.Open(name)
	}
	// A pipe must not hold the host up before the run's deadline counts.
	const flags = os.O_RDONLY | unix.O_NONBLOCK
	if within == "" {
		return regular(os.OpenFile(name, flags, 0))
	}
	root, err := os.OpenRoot(hostdoc.InputPath)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return regular(root.OpenFile(within[1:], flags, 0))
}

func regular(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Usage, f.Name(), "is %s, the input is a file", info.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// pump moves the source's data into the channel until its end or until over is
// closed. A read that blocks outlives the run.
func pump(source io.Reader, out chan<- chunk, over <-chan struct{}) {
	for {
		data := make([]byte, inputChunk)
		n, err := source.Read(data)
		select {
		case out <- chunk{data[:n], err}:
		case <-over:
			return
		}
		if err != nil {
			return
		}
	}
}

// start begins to read the source.
func (i *input) start(s *session) {
	if i.chunks == nil {
		i.chunks = make(chan chunk)
		go pump(i.source, i.chunks, s.over)
	}
}

// ready says that a read would not wait.
func (i *input) ready() bool { return i.rest() > 0 || i.err != nil }

// fill waits for more data. It reports whether there may be some; if not, i.err
// or the returned code says why.
func (i *input) fill(s *session) (bool, int32) {
	if i.err != nil {
		return false, 0
	}
	i.start(s)
	select {
	case c := <-i.chunks:
		i.accept(c)
	case <-s.draining:
		return false, s.fail(codeCanceled, detail{Reason: "the run is being ended"})
	case <-s.over: // the guest does not see the code
		return false, s.fail(codeDeadline, detail{Reason: "the run's time is over"})
	}
	return true, 0
}

// accept takes what came from the source.
func (i *input) accept(c chunk) {
	i.err = c.err
	i.total += int64(len(c.data))
	if (!i.keep || i.beyond()) && i.rest() == 0 {
		i.buf, i.pos = c.data, 0
	} else {
		i.buf = append(i.buf, c.data...)
	}
}

// ended turns the end of the source into a code: 0 for a proper end.
func (i *input) ended(s *session) int32 {
	switch {
	case i.beyond():
		return s.fail(codeLimit, detail{Reason: "the input is larger than the run's input limit"})
	case errors.Is(i.err, io.EOF):
		return 0
	}
	return s.fail(codeUnavailable, detail{Reason: "the input cannot be read"})
}

// read copies what there is into p, waiting for the first byte.
func (i *input) read(s *session, p []byte) int32 {
	if len(p) == 0 {
		return 0
	}
	for i.rest() == 0 && !i.beyond() {
		if more, code := i.fill(s); code != 0 {
			return code
		} else if !more {
			return i.ended(s)
		}
	}
	if i.beyond() {
		return i.ended(s)
	}
	return int32(i.take(p))
}

func (i *input) left() *stretch { return &i.stretch }

// size returns the total size or a code.
func (i *input) size(s *session) int64 {
	switch {
	case i.known >= 0:
		return i.known
	case errors.Is(i.err, io.EOF):
		return i.total
	}
	return int64(s.fail(codeUnsupported, detail{Reason: "the input's size is known at its end only", Hint: "call read_input first, or read until 0"}))
}

// slurp reads to the end and returns the total size or a code.
func (i *input) slurp(s *session) int32 {
	for i.err == nil && !i.beyond() {
		// Everything must stay: what was not read yet is still to be.
		keep := i.keep
		i.keep = true
		_, code := i.fill(s)
		i.keep = keep
		if code != 0 {
			return code
		}
	}
	if code := i.ended(s); code != 0 {
		return code
	}
	return int32(i.total)
}
