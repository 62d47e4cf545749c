package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// process runs the agent for one request.
func (s *Server) process(a *answer, r *http.Request) {
	began := time.Now()
	ctx, cancel := s.context(r)
	defer cancel(nil)
	reason := ""
	defer func() {
		code := a.code
		if errors.Is(context.Cause(ctx), output.ErrGone) {
			// What was written then reached nobody, and no fault of ours is behind it.
			code, reason = codeClientLeft, clientLeft
		}
		s.metrics.answered(code, reason, time.Since(began))
	}()
	in, p := s.admit(a, r)
	defer in.drop()
	if p == nil {
		if err := s.admission.enter(ctx); err != nil {
			p = s.refused(err)
		}
	}
	if p != nil {
		reason = p.Reason
		p.write(a)
		return
	}
	begun := func() { s.metrics.firstByte.Observe(time.Since(began).Seconds()) }
	exit, whole := s.run(ctx, s.sink(a, r, begun), in)
	reason = reasonOf(exit)
	if !whole {
		// The connection ends without the last chunk: no client takes it for the end.
		panic(http.ErrAbortHandler)
	}
}

// How a request is counted whose client did not wait for the answer.
const (
	codeClientLeft = 499
	clientLeft     = "client-left"
)

func reasonOf(exit hostdoc.Exit) string {
	switch {
	case exit.Reason != "":
		return exit.Reason
	case exit.Status != 0:
		return agentFailed
	}
	return ""
}

// admit judges a request and reads its body; nothing is made for it yet.
func (s *Server) admit(a *answer, r *http.Request) (*body, *problem) {
	none := new(body)
	none.of = s.bodies
	switch {
	case r.Method != http.MethodPost:
		return none, notAllowed(r, http.MethodPost)
	case s.phase.Load() == refusing:
		return none, s.refused(fault.New(fault.Canceled, "", "this server is ending").WithHint("send the request again: another one will take it"))
	case s.admission.full():
		return none, s.refused(s.admission.overloaded())
	case encoded(r.Header):
		return none, newProblem(http.StatusUnsupportedMediaType, fault.New(fault.Unsupported, "", "the body is in a coding, and is passed to the agent as it is").
			WithHint("send it without Content-Encoding"))
	}
	in, err := s.bodies.read(a, r)
	if err == nil {
		return in, nil
	}
	return in, s.refused(err)
}

// refused is the answer to a request that does not get to run.
func (s *Server) refused(err error) *problem {
	code := http.StatusInternalServerError
	switch fault.ReasonOf(err) {
	case fault.Unavailable, fault.Canceled:
		code = http.StatusServiceUnavailable
	case fault.ResourceLimit:
		code = http.StatusRequestEntityTooLarge
	case fault.Deadline:
		code = http.StatusRequestTimeout
	case fault.Usage:
		code = http.StatusBadRequest
	}
	p := newProblem(code, err)
	if code == http.StatusServiceUnavailable {
		p.retry = s.admission.retry()
	}
	// What is left of the body would have to be read before the next request.
	p.close = code != http.StatusServiceUnavailable
	return p
}

// context ends with the client or with the server, whichever is first.
func (s *Server) context(r *http.Request) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(s.runs)
	stop := context.AfterFunc(r.Context(), func() { cancel(output.ErrGone) })
	return ctx, func(cause error) {
		stop()
		cancel(cause)
	}
}

// sink is the answer in the form that the client asks for.
func (s *Server) sink(a *answer, r *http.Request, begun func()) sink {
	if wantsEvents(r.Header) {
		return newEvents(a, begun)
	}
	return &plain{
		gate: gate{a: a, begun: begun}, contentType: s.doc.Serve.ContentType,
		trailers: wantsTrailers(r.Header), modern: r.ProtoAtLeast(1, 1),
	}
}

// run runs the agent in the place that was waited for, and answers. False is an
// answer that must not look whole.
func (s *Server) run(ctx context.Context, out sink, in *body) (hostdoc.Exit, bool) {
	l := &lease{s: s, began: time.Now()}
	defer l.answered()
	id := newRunID()
	out.begin(id)
	exit := s.guarded(ctx, Request{ID: id, Input: bytes.NewReader(in.data), Sink: out, Freed: l.freed}, l)
	l.ended()
	return exit, out.finish(exit)
}

// guarded runs the program; a panic of ours ends this run and no other.
func (s *Server) guarded(ctx context.Context, r Request, l *lease) (exit hostdoc.Exit) {
	defer func() {
		if p := recover(); p != nil {
			s.log(fault.OneLine(fmt.Sprintf("run %s: the host failed: %v", r.ID, p)))
			exit = hostdoc.Exit{Version: hostdoc.Version, Status: fault.RowOf(fault.Internal).Exit, Reason: string(fault.Internal), Message: "the host failed"}
			l.freed()
		}
	}()
	exit, err := s.program.Run(ctx, r)
	if err != nil && succeeded(exit) {
		exit.Status, exit.Reason, exit.Message = fault.ExitStatus(err), string(fault.ReasonOf(err)), err.Error()
	}
	return exit
}
