package serve

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Paths of the server.
const (
	ProcessPath = "/v1/process"
	HealthPath  = "/healthz"
	ReadyPath   = "/readyz"
	MetricsPath = "/metrics"
)

// Request is one run.
type Request struct {
	// ID names the run in the answer, in log lines and in records.
	ID    string
	Input io.Reader
	Sink  output.Sink
	// Freed is called once when what the run took of the machine was given back,
	// which for a guest that does not come back is later than the run's end.
	Freed func()
}

// Program runs an agent, each time with an instance of its own.
type Program interface {
	// Run runs it once. It ends early with the context; the cause
	// [output.ErrGone] says that it need not end in order. The error only repeats
	// the exit's reason.
	Run(ctx context.Context, r Request) (hostdoc.Exit, error)
}

// Options is what a server works with.
type Options struct {
	// Document is the one that the program was loaded from; its Serve is set.
	Document *hostdoc.Document
	// Log takes lines for the operator; nil discards them.
	Log func(line string)
	// Metrics answers /metrics; nil is a registry with the server's own series.
	Metrics *Metrics
}

// Server answers requests for one agent.
type Server struct {
	program   Program
	doc       *hostdoc.Document
	log       func(string)
	metrics   *Metrics
	admission *admission
	bodies    *bodies
	inflight  inflight
	phase     atomic.Int32
	// stuck counts the instances of guests that did not come back.
	stuck atomic.Int64
	// local says that only this machine reaches the server, set before it serves.
	local bool
	// runs is what every run's context descends from; end ends it.
	runs context.Context //nolint:containedctx // it lives as long as the server, not as one call
	end  context.CancelCauseFunc
}

// The phases of a server's life.
const (
	serving = iota
	// noticing: it is no longer ready, but takes requests from whoever has not
	// noticed yet.
	noticing
	// refusing: what runs and waits may finish.
	refusing
)

// New makes a server; nothing is listened to yet.
func New(p Program, o Options) (*Server, error) {
	if p == nil || o.Document == nil || o.Document.Serve == nil {
		return nil, fault.New(fault.Internal, "serve", "a program and a document that says how it is served are required")
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	s := &Server{
		program: p, doc: o.Document, log: o.Log, metrics: o.Metrics,
		admission: newAdmission(o.Document.Serve.Concurrent, o.Document.Serve.Queue),
		bodies:    &bodies{each: o.Document.Limits.InputBytes, all: o.Document.Serve.BufferBytes},
	}
	if s.metrics == nil {
		s.metrics = NewMetrics(o.Document)
	}
	s.metrics.watch(s)
	s.runs, s.end = context.WithCancelCause(context.Background())
	return s, nil
}

// Serve answers what comes from l until the context ends, and then drains: it
// is nil when every request finished in its own time. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	addr, ok := l.Addr().(*net.TCPAddr)
	s.local = ok && addr.IP.IsLoopback()
	defer s.end(nil)
	conns := newConnections(l, limits.ServeConnections+s.doc.Serve.Concurrent+s.doc.Serve.Queue)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ConnState:         conns.changed,
		ReadHeaderTimeout: limits.ServeHeaderTime,
		IdleTimeout:       limits.ServeIdle,
		MaxHeaderBytes:    limits.ServeHeader,
		Protocols:         protocols,
		ErrorLog:          log.New(writer(s.serverLog), "", 0),
		// Neither a request nor what the server says of it ends with the context:
		// it is drained.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(conns) }()
	select {
	case err := <-failed:
		s.end(err)
		return errors.Join(fault.Wrap(err, fault.Internal, l.Addr().String(), "cannot accept connections"), server.Close())
	case <-ctx.Done():
		return s.drain(ctx, server, conns)
	}
}

func (s *Server) serverLog(line []byte) (int, error) {
	s.log(fault.OneLine(string(bytes.TrimSpace(line))))
	return len(line), nil
}

// drain lets requests finish, and ends those that do not.
func (s *Server) drain(ctx context.Context, server *http.Server, l net.Listener) error {
	cause := context.Cause(ctx)
	ctx = context.WithoutCancel(ctx)
	notice := time.Duration(s.doc.Serve.NoticeMillis) * time.Millisecond
	patience := time.Duration(s.doc.Serve.DrainMillis) * time.Millisecond
	s.phase.Store(noticing)
	s.log("draining: " + cause.Error())
	time.Sleep(notice)
	// Not yet Shutdown: it drops the connections on which one more request comes
	// without a word, and who sent it could not tell whether it ran.
	s.phase.Store(refusing)
	closing := l.Close()
	var late error
	select {
	case <-s.inflight.none():
	case <-time.After(patience - notice):
		late = fault.New(fault.Canceled, "", "%d requests did not finish within %v", len(s.admission.slots), patience)
		s.end(cause)
	}
	last, cancel := context.WithTimeout(ctx, limits.DrainGrace+2*limits.StopGrace)
	defer cancel()
	if err := server.Shutdown(last); err != nil {
		return errors.Join(late, err, server.Close())
	}
	if late == nil {
		s.log("drained")
	}
	return errors.Join(late, closing)
}

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.inflight.enter()
	defer s.inflight.leave()
	a := newAnswer(w)
	a.Header().Set("Server", "mentat")
	if s.phase.Load() != serving {
		a.Header().Set("Connection", "close")
	}
	if r.ContentLength != 0 {
		// A body is read also when it is not wanted: before the answer, to keep the
		// connection.
		if err := a.control.SetReadDeadline(time.Now().Add(limits.ServeBodyTime)); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if p := s.foreign(r); p != nil {
		p.write(a)
		return
	}
	switch r.URL.Path {
	case ProcessPath:
		s.process(a, r)
	case HealthPath, ReadyPath, MetricsPath:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			notAllowed(r, "GET, HEAD").write(a)
			return
		}
		s.look(a, r)
	default:
		newProblem(http.StatusNotFound, fault.New(fault.NotFound, "", "there is nothing here").
			WithHint("POST %s runs the agent; %s, %s and %s tell how it is", ProcessPath, HealthPath, ReadyPath, MetricsPath)).write(a)
	}
}

func notAllowed(r *http.Request, allow string) *problem {
	p := newProblem(http.StatusMethodNotAllowed, fault.New(fault.Usage, "", "the method %s is not for this path", r.Method))
	p.allow = allow
	return p
}

// foreign refuses what a page in a browser on this machine could be made to
// send to a server that only this machine is meant to reach: requests under
// another name (its name server says whose address that is), or from another
// page. Behind an ingress names and origins are the ingress's matter.
func (s *Server) foreign(r *http.Request) *problem {
	if !s.local {
		return nil
	}
	if !localName(r.Host) {
		return newProblem(http.StatusMisdirectedRequest, fault.New(fault.Usage, "", "this server is for this machine alone, and not called %q", r.Host).
			WithHint("use localhost or 127.0.0.1"))
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return newProblem(http.StatusForbidden, fault.New(fault.AccessDenied, "", "this server takes no requests from pages of other origins"))
	}
	return nil
}

func localName(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(trimBrackets(name))
	return ip != nil && ip.IsLoopback()
}

func trimBrackets(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}

// look answers who looks after the server.
func (s *Server) look(a *answer, r *http.Request) {
	if r.URL.Path == MetricsPath {
		s.metrics.handler.ServeHTTP(a, r)
		return
	}
	why := ""
	if r.URL.Path == ReadyPath {
		why = s.unready()
	}
	if s.stuck.Load() >= int64(s.doc.Serve.Concurrent) {
		why = "every instance is held by a guest that does not come back"
	}
	h := a.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	if why != "" {
		a.WriteHeader(http.StatusServiceUnavailable)
	} else {
		why = "ok"
	}
	_, _ = a.Write([]byte(why + "\n"))
}

// unready says why no requests should come, "" if they may.
func (s *Server) unready() string {
	switch {
	case s.phase.Load() != serving:
		return "draining"
	case s.admission.full():
		return "overloaded"
	}
	return ""
}

// newRunID names a run; nobody can tell another's.
func newRunID() string {
	var b [12]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}
