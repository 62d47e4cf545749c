package host

import (
	"encoding/json"
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
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

// resource is what a handle stands for.
type resource interface {
	// read fills p and returns the count, 0 at the end, or a code.
	read(s *session, p []byte) int32
	// size returns the total or a code.
	size(s *session) int64
}

// blob is a result that is complete.
type blob struct {
	data []byte
	pos  int
}

func (b *blob) read(_ *session, p []byte) int32 {
	n := copy(p, b.data[b.pos:])
	b.pos += n
	return int32(n)
}

func (b *blob) size(*session) int64 { return int64(len(b.data)) }

// session is the host's side of one run. All but stop, drain and the channels
// belongs to the goroutine that runs the guest.
type session struct {
	doc *hostdoc.Document
	log *logger
	out *output
	// diag is where WASI's stderr goes.
	diag *output

	run   *engine.Run
	funcs []hostFunc
	// command says that the entry is _start.
	command bool

	handles map[int32]resource
	next    int32
	last    *detail
	// failure is the guest's own message (set_error).
	failure *string
	// hasAlloc says that the module exports mentat_alloc, inAlloc that it runs.
	hasAlloc, inAlloc bool
	// inner is what ended the guest code that a host function called.
	inner *engine.Failure

	// draining is closed when the guest is asked to end, over when it must.
	draining, over      chan struct{}
	drainOnce, overOnce sync.Once

	// clock hands over the guest's thread clock where processor time is bounded.
	clock chan threadClock

	mu    sync.Mutex
	cause *end // why the run was stopped; the first one counts
	// gone is set when nobody waits for the guest any more.
	gone atomic.Bool
}

func newSession(doc *hostdoc.Document, log *logger, io Streams) *session {
	return &session{
		doc:      doc,
		log:      log,
		out:      &output{w: io.Stdout, left: doc.Limits.OutputBytes},
		diag:     &output{w: io.Stderr, left: math.MaxInt64},
		handles:  make(map[int32]resource),
		next:     1,
		draining: make(chan struct{}),
		over:     make(chan struct{}),
		clock:    make(chan threadClock, 1),
	}
}

// drain asks the guest to end: what it waits for is answered with CANCELED.
func (s *session) drain() { s.drainOnce.Do(func() { close(s.draining) }) }

// stop ends the run for a reason: guest code is interrupted, host functions
// return. Any goroutine may call it.
func (s *session) stop(e *end) {
	if s.because(e) {
		s.endWaits()
		s.run.Stop()
	}
}

// endWaits ends whatever waits on the run's behalf.
func (s *session) endWaits() { s.overOnce.Do(func() { close(s.over) }) }

// trap ends the guest from within a host function, which returns false to it.
func (s *session) trap(e *end) bool {
	s.because(e)
	return false
}

// because sets why the run is stopped; it reports whether it is the first to.
func (s *session) because(e *end) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return false
	}
	s.cause = e
	return true
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
	f := &s.funcs[number]
	if !f.serve(&call{s: s, f: f, values: values, memory: memory}) {
		return false
	}
	select {
	case <-s.over:
		// No code reaches the guest: with one it could still end as it likes.
		return false
	default:
		return true
	}
}

// Write takes WASI's output.
func (s *session) Write(fd int, data []byte) int {
	if s.gone.Load() {
		return -errnoIO
	}
	out := s.out
	if fd == 2 {
		out = s.diag
	}
	if err := out.write(data); err != nil {
		if fd != 2 {
			s.stop(outputEnd(err))
		}
		return -errnoIO
	}
	return len(data)
}

// errnoIO is EIO, which WASI passes on.
const errnoIO = 5

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
	return s.open(&blob{data: data})
}
