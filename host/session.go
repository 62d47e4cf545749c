package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// The ABI's error codes.
const (
	codeInvalid     = -1
	codeDenied      = -2
	codeNotFound    = -3
	codeLimit       = -4
	codeDeadline    = -5
	codeCanceled    = -6
	codeUnavailable = -7
	codeBadHandle   = -8
	codeUnsupported = -9
	codeConflict    = -10
	codeInternal    = -11
)

// abiVersion is major<<16 | minor.
const abiVersion = 1 << 16

// detail is what last_error tells about a code.
type detail struct {
	Code         int32  `json:"code"`
	Capability   string `json:"capability,omitempty"`
	Reason       string `json:"reason"`
	Rule         string `json:"rule,omitempty"`
	Hint         string `json:"hint,omitempty"`
	RetryAfterMS int64  `json:"retry_after_ms,omitempty"`
}

// end is how a run ended. The zero value is success.
type end struct {
	status   int
	reason   fault.Reason
	message  string
	function string
}

func endOf(reason fault.Reason, message string) *end {
	return &end{status: fault.RowOf(reason).Exit, reason: reason, message: message}
}

// guestError is what a guest said with set_error.
type guestError struct {
	code    int32
	message string
}

// resource is what a handle stands for.
type resource interface {
	// read fills p and returns the count, 0 at the end, or a code.
	read(s *session, p []byte) int32
	// size returns the total or a code.
	size(s *session) int64
	// close frees what the handle holds.
	close(s *session)
}

// blob is a result that is complete.
type blob struct {
	data string
	pos  int
}

func (b *blob) read(_ *session, p []byte) int32 {
	n := copy(p, b.data[b.pos:])
	b.pos += n
	return int32(n)
}

func (b *blob) size(*session) int64 { return int64(len(b.data)) }

func (*blob) close(*session) {}

// session is the host's side of one run. All but stop, drain and the channels
// belongs to the goroutine that runs the guest.
type session struct {
	p   *Program
	id  string
	log *logger
	out *out
	// stderr is the beginning of a line that the guest writes to WASI's stderr.
	stderr []byte

	run *engine.Run
	// wasi is nil for a guest without.
	wasi *wasi.Guest
	// terminals says which of the standard streams are terminals.
	terminals [3]bool
	// ctx is what the run's work for the guest ends with.
	ctx    context.Context //nolint:containedctx // the session is the run
	cancel context.CancelFunc
	// work is the goroutines that fetch answers, calls how many there are, sending
	// the bytes of requests on their way.
	work           sync.WaitGroup
	calls, sending atomic.Int64

	handles map[int32]resource
	next    int32
	last    *detail
	// failure is the guest's own message (set_error).
	failure *guestError
	// streams are the ids of those that are open.
	streams map[string]bool
	// lost says that the output's reader left.
	lost bool
	// served are the backends that the run has asked, by their kind.
	served map[string]backend.Backend
	// backends are those that it can ask.
	backends map[string]backend.Backend
	// readable are the media that the run may read, uploaded is what it stored.
	readable map[media.Ref]struct{}
	uploaded int64
	tally    tally
	// instantiated is how long the instance took, from when the run was asked for.
	began        time.Time
	instantiated time.Duration
	// in is the input, also when its handle is closed; memory is what the guest
	// had at its end.
	in     *input
	memory int64
	// inAlloc says that mentat_alloc runs.
	inAlloc bool
	// inner is what ended the guest code that a host function called.
	inner *engine.Failure

	// draining is closed when the guest is asked to end, over when it must.
	draining, over      chan struct{}
	drainOnce, overOnce sync.Once

	mu       sync.Mutex // guards cause and finished
	cause    *end       // why the run was stopped; the first one counts
	finished bool
	// isOver says that over is closed.
	isOver atomic.Bool
	// shown is what the guest reads by itself.
	shown *stretch
	// current is the call that is served.
	current call
	// gone is set when nobody waits for the guest any more.
	gone atomic.Bool
}

func newSession(ctx context.Context, p *Program, r request, log *logger) *session {
	r.in.limit = p.doc.Limits.InputBytes
	r.in.keep = p.hasAlloc
	s := &session{
		p:        p,
		in:       r.in,
		id:       r.id,
		began:    r.began,
		log:      log,
		out:      newOut(r.sink, p.doc.Limits.OutputBytes),
		handles:  map[int32]resource{0: r.in},
		next:     1,
		draining: make(chan struct{}),
		over:     make(chan struct{}),
		served:   map[string]backend.Backend{},
		readable: map[media.Ref]struct{}{},
	}
	s.terminals = r.terminals
	// A cancelled run is asked to end first; what it asked for goes on until then.
	s.ctx, s.cancel = context.WithCancel(backend.WithCounter(context.WithoutCancel(ctx), func(used manifest.Capability, rules []string) {
		s.counted(used.String(), "use", rules)
	}))
	for _, refs := range [][]media.Ref{p.given, r.media} {
		for _, ref := range refs {
			s.readable[ref] = struct{}{}
		}
	}
	return s
}

// drain asks the guest to end: what it waits for is answered with CANCELED.
func (s *session) drain() { s.drainOnce.Do(func() { close(s.draining) }) }

// stop ends the run for a reason: guest code is interrupted, host functions
// return. Any goroutine may call it; once the run is finished it does nothing.
func (s *session) stop(e *end) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil || s.finished {
		return
	}
	s.cause = e
	s.endWaits()
	s.run.Stop()
	if i, ok := s.out.sink.(output.Interrupter); ok {
		i.Interrupt()
	}
}

// finish says that the run is over: its sink is the caller's again.
func (s *session) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
}

// endWaits ends whatever waits or works on the run's behalf.
func (s *session) endWaits() {
	s.overOnce.Do(func() {
		s.isOver.Store(true)
		close(s.over)
		s.cancel()
	})
}

// settle leaves nothing behind of a run whose guest is back.
func (s *session) settle() {
	s.endWaits()
	if len(s.stderr) > 0 {
		s.endLine()
	}
	s.log.lull()
	for _, h := range slices.Sorted(maps.Keys(s.handles)) {
		s.handles[h].close(s)
	}
	clear(s.handles)
	if s.wasi != nil {
		s.wasi.Close()
	}
	s.awaitWork()
	for _, b := range s.served {
		b.Done(s.id)
	}
}

// trap ends the guest from within a host function, which returns false to it.
func (s *session) trap(e *end) bool {
	s.because(e)
	return false
}

// awaitWork waits for the goroutines that fetch answers. A backend that does not
// end with its context is left behind.
func (s *session) awaitWork() {
	if s.calls.Load() == 0 {
		return
	}
	done := make(chan struct{})
	go func() {
		s.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limits.StopGrace):
	}
}

// because sets why the run is stopped, if nothing did before.
func (s *session) because(e *end) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = e
	}
}

func (s *session) stopped() *end {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// fail remembers the detail of an error and returns its code.
func (s *session) fail(code int32, d detail) int32 {
	d.Code = code
	s.last = &d
	return code
}

// open gives out a handle or a code.
func (s *session) open(r resource) int32 {
	if len(s.handles) >= limits.Handles || s.next == math.MaxInt32 {
		return s.fail(codeLimit, detail{Reason: "too many handles are open", Hint: "close handles that are no longer read"})
	}
	h := s.next
	s.next++
	s.handles[h] = r
	return h
}

// handle finds an open handle; nil has left its code.
func (s *session) handle(h int32) resource {
	r, ok := s.handles[h]
	if !ok {
		s.fail(codeBadHandle, detail{Reason: "the handle is not open"})
		return nil
	}
	return r
}

// Call serves the guest's host calls.
func (s *session) Call(number int, values []engine.Value, memory []byte) bool {
	if s.gone.Load() {
		return false
	}
	c := &s.current
	if s.inAlloc {
		c = new(call) // the one that waits for mentat_alloc goes on
	}
	*c = call{s: s, f: &s.p.funcs[number], values: values, memory: memory}
	// No code reaches the guest once the run is over: with one it could still end
	// as it likes.
	return c.f.serve(c) && !s.isOver.Load()
}

// say logs a line of the guest's, or leaves it to a sink that has a place for it.
func (s *session) say(level int, text string) {
	if !s.log.admits(len(text)) {
		return
	}
	if s.out.observer != nil {
		// A reader that left is noticed when something is written that counts.
		taken, err := s.out.observer.Log(levelNames[level], capped(strings.ToValidUTF8(text, "\uFFFD")))
		if taken && err == nil {
			return
		}
	}
	s.log.log(level, fromAgent, text)
}

// mutter takes what the guest writes to WASI's stderr: a line becomes a line of
// the agent's log, so that it is no other's. One without an end is cut.
func (s *session) mutter(data []byte) {
	for len(data) > 0 {
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		room := limits.LogLineBytes - len(s.stderr)
		if len(line) > room {
			rest, ended = data[room:], true
			line = line[:room]
		}
		s.stderr = append(s.stderr, line...)
		if ended {
			s.endLine()
		}
		data = rest
	}
}

// endLine logs what there is of a line.
func (s *session) endLine() {
	s.say(levelInfo, strings.TrimSuffix(string(s.stderr), "\r"))
	s.stderr = s.stderr[:0]
}

// outputEnd says how a run ends whose output cannot be written. A shortened
// output must not look like a whole one.
func outputEnd(err error) *end {
	switch {
	case errors.Is(err, errOutputLimit):
		return endOf(fault.ResourceLimit, err.Error())
	case readerGone(err):
		e := endOf(fault.Canceled, "nobody reads the run's output any more")
		e.status = 141 // as if by SIGPIPE
		return e
	}
	return endOf(fault.Unavailable, "the run's output cannot be written: "+err.Error())
}

// lastError opens a handle to the last error's detail.
func (s *session) lastError() int32 {
	if s.last == nil {
		return s.fail(codeNotFound, detail{Reason: "there was no error"})
	}
	data, err := json.Marshal(s.last)
	if err != nil {
		return s.fail(codeInternal, detail{Reason: "the detail cannot be encoded"})
	}
	return s.open(&blob{data: string(data)})
}
