package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/host/serve"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Serve answers requests as the document says until the context ends, drains
// and reports the exit, also to the document's files and on o.Stderr. With a
// [host.Signal] as the cause its status is 128+n.
func Serve(ctx context.Context, doc *hostdoc.Document, o host.Options) hostdoc.Exit {
	log := host.NewLog(o.Stderr, doc)
	exit := exitOf(ctx, run(ctx, doc, o, log))
	if exit.Reason == string(fault.Canceled) {
		log.Info(exit.Message)
	} else {
		log.Error(exit.Message)
	}
	if err := host.Report(doc, exit); err != nil {
		log.Error(err.Error())
	}
	return exit
}

func run(ctx context.Context, doc *hostdoc.Document, o host.Options, log host.Log) (err error) {
	if doc.Serve == nil {
		return fault.New(fault.Internal, doc.Instance, "the document does not say how the agent is served")
	}
	l, err := listen(doc.Serve)
	if err != nil {
		return err
	}
	busy(doc)
	m := serve.NewMetrics(doc)
	if o.Metrics == nil {
		o.Metrics = metrics.New()
	}
	m.Guests(o.Metrics)
	if o.Meters != nil {
		o.Meters.Add(m.Tokens)
	}
	m.Memory(host.MemoryInUse)
	o.Recorder = recorder{o.Recorder, m}
	p, err := host.Load(doc, o)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	s, err := serve.New(program{p}, serve.Options{Document: doc, Log: log.Info, Metrics: m})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	log.Info(fmt.Sprintf("serving on %s: %d requests at once, %d waiting, %d MiB each", l.Addr(), doc.Serve.Concurrent, doc.Serve.Queue, doc.Limits.MemoryBytes/limits.MiB))
	return s.Serve(ctx, l)
}

// busy takes back what keeps a host small that runs one guest: a server may use
// every processor that the container has, and collects garbage when there is
// some, but never grows beyond its own share of the memory.
func busy(doc *hostdoc.Document) {
	runtime.SetDefaultGOMAXPROCS()
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(2*doc.Serve.BufferBytes + int64(doc.Serve.Concurrent)*limits.ServeShare + limits.MinServeHost/2)
}

// listen opens the socket, or takes the one that is there.
func listen(s *hostdoc.Serve) (net.Listener, error) {
	if s.Socket > 0 {
		f := os.NewFile(uintptr(s.Socket), "socket")
		l, err := net.FileListener(f)
		// The listener has a descriptor of its own.
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fault.Wrap(err, fault.Internal, s.Listen, "descriptor %d is no listening socket", s.Socket)
		}
		return l, nil
	}
	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, s.Listen, "cannot listen there")
	}
	return l, nil
}

// program runs requests by the host.
type program struct{ p *host.Program }

func (p program) Run(ctx context.Context, r serve.Request) (hostdoc.Exit, error) {
	return p.p.Run(ctx, host.IO{ID: r.ID, Input: r.Input, Sink: r.Sink, Freed: r.Freed})
}

// recorder passes records on and counts them.
type recorder struct {
	next host.Recorder
	m    *serve.Metrics
}

func (r recorder) Decision(d host.Decision) {
	if d.Operation == "" && !d.DryRun {
		r.m.Capability(d.Capability, d.Allowed)
	}
	if r.next != nil {
		r.next.Decision(d)
	}
}

func (r recorder) Execution(e host.Execution) {
	if e.Instantiated > 0 { // else nothing was instantiated, or it did not come back
		r.m.Instance(e.Instantiated, e.MemoryBytes)
	}
	if r.next != nil {
		r.next.Execution(e)
	}
}

// exitOf is how a server ended.
func exitOf(ctx context.Context, err error) hostdoc.Exit {
	exit := hostdoc.Exit{Version: hostdoc.Version, Reason: string(fault.Canceled)}
	var sig host.Signal
	switch {
	case ctx.Err() == nil && err == nil:
		err = fault.New(fault.Internal, "", "the server ended by itself")
		fallthrough
	case err != nil && fault.ReasonOf(err) != fault.Canceled:
		exit.Status, exit.Reason = fault.ExitStatus(err), string(fault.ReasonOf(err))
	case errors.As(context.Cause(ctx), &sig):
		exit.Status = 128 + int(sig)
	default:
		exit.Status = 128 + int(syscall.SIGTERM)
	}
	if err != nil {
		exit.Message = fault.OneLine(err.Error())
	} else {
		exit.Message = fault.OneLine(context.Cause(ctx).Error() + ", after every request was answered")
	}
	return exit
}
