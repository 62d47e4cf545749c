package host

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// Streams are a run's standard streams. Stdin may be nil: no input.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Signal is the cause of a context that a signal cancelled; a run that does not
// end by itself then has the status 128+n.
type Signal syscall.Signal

func (s Signal) Error() string { return "ended by " + unix.SignalName(syscall.Signal(s)) }

// Run is [Once] for a document that needs nothing beyond itself.
func Run(ctx context.Context, doc *hostdoc.Document, streams Streams) (hostdoc.Exit, error) {
	return Once(ctx, doc, Options{}, streams)
}

// Once loads what the document describes, runs it once, and reports how it
// ended: also to doc.ExitFile, doc.Termination and as one line on stderr, which
// takes the place of o.Stderr. The input is the document's. The deadline counts
// from the call. When the context is cancelled the guest is asked to end and,
// after [limits.DrainGrace], interrupted.
//
// The error is nil when the guest ended by itself, whatever its status, and
// else what the exit's reason says.
func Once(ctx context.Context, doc *hostdoc.Document, o Options, streams Streams) (hostdoc.Exit, error) {
	began := time.Now()
	if streams.Stdout == nil {
		streams.Stdout = io.Discard
	}
	o.Stderr = streams.Stderr
	log := newLogger(o.Stderr, doc).of(doc.Instance)
	exit, err := once(ctx, doc, o, streams, log, began)
	if werr := Report(doc, exit); werr != nil {
		log.log(levelError, fromHost, werr.Error())
	}
	return exit, err
}

func once(ctx context.Context, doc *hostdoc.Document, o Options, streams Streams, log *logger, began time.Time) (hostdoc.Exit, error) {
	p, err := load(doc, o, log, false)
	if err != nil {
		return log.exit(endOf(fault.ReasonOf(err), err.Error())), err
	}
	in, err := openInput(doc.Input, streams.Stdin)
	if err != nil {
		_ = p.Close() // nothing ran
		err = fault.Wrap(err, fault.NotFound, doc.Input.Path, "cannot open the run's input")
		return log.exit(endOf(fault.ReasonOf(err), err.Error())), err
	}
	r := request{id: doc.Instance, in: in, began: began}
	r.terminals[0] = doc.Input.Kind == hostdoc.InputStdin && isTerminal(streams.Stdin, 0)
	if doc.Framing == hostdoc.FramingNDJSON {
		lines := output.NewNDJSON(streams.Stdout)
		r.sink, r.last = lines, lines.Exit
	} else {
		// Terminals stay terminals to the guest.
		r.sink = output.NewRaw(streams.Stdout)
		r.terminals[1] = isTerminal(streams.Stdout, 1)
		r.terminals[2] = isTerminal(streams.Stderr, 2) && doc.LogFormat == "text"
	}
	exit, err := p.run(ctx, r, log)
	if _, events := r.sink.(output.Observer); o.Metrics == nil && !events {
		log.metrics(p.metrics.Families())
	}
	if cerr := p.Close(); cerr != nil && err == nil {
		log.log(levelError, fromHost, cerr.Error())
	}
	return exit, err
}

// Report writes the exit to the document's files. They may be bind mounts, so
// they are written in place.
func Report(doc *hostdoc.Document, exit hostdoc.Exit) error {
	data, err := json.Marshal(exit)
	if err != nil {
		return fault.Wrap(err, fault.Internal, doc.ExitFile, "cannot encode the exit")
	}
	err = writeInPlace(doc.ExitFile, append(data, '\n'))
	if exit.Status != 0 && exit.Message != "" {
		err = errors.Join(err, writeInPlace(doc.Termination, []byte(exit.Message+"\n")))
	}
	return err
}

func writeInPlace(path string, data []byte) error {
	if path == "" {
		return nil
	}
	// Neither a link nor a pipe in the place of the file leads or holds the host.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot report the exit")
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot report the exit")
	}
	return nil
}
