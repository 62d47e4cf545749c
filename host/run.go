package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// request is one run as it is asked for.
type request struct {
	id   string
	in   *input
	sink output.Sink
	// media may be read beside what every run may.
	media []media.Ref
	// last, if not nil, takes the exit after everything else.
	last func(hostdoc.Exit) error
	// terminals says which of the guest's standard streams are terminals.
	terminals [3]bool
	// freed, if not nil, is called when the run holds nothing any more.
	freed func()
	began time.Time
}

// run runs the guest once and reports its end to the log and the sink.
func (p *Program) run(ctx context.Context, r request, log *logger) (hostdoc.Exit, error) {
	s := newSession(ctx, p, r, log)
	e, back, err := p.start(ctx, s, r)
	if err != nil {
		e = endOf(fault.ReasonOf(err), err.Error())
	}
	exit := log.exit(e)
	if p.o.Recorder != nil {
		p.o.Recorder.Execution(s.execution(r.began, exit, back))
	}
	// A guest that was left behind may still hold the sink. The caller is told
	// the rest, too: a reader that left misses nothing.
	if back && s.failure != nil {
		_ = r.sink.Error(s.failure.code, s.failure.message)
	}
	if back && r.last != nil {
		_ = r.last(exit)
	}
	if err == nil && e.reason != "" {
		err = fault.New(e.reason, "", "%s", exit.Message)
	}
	return exit, err
}

// start makes the instance and waits for the guest; back says that it came back.
// The error is a failure before the guest's first instruction.
func (p *Program) start(ctx context.Context, s *session, r request) (_ *end, back bool, _ error) {
	config := engine.RunConfig{
		MemoryBytes:   p.doc.Limits.MemoryBytes,
		TableElements: limits.TableElements,
		Host:          s,
	}
	release := []func(){r.in.free}
	free := func() {
		for i := len(release) - 1; i >= 0; i-- {
			release[i]()
		}
		if r.freed != nil {
			r.freed()
		}
	}
	own, err := p.newRunDirs()
	if err != nil {
		s.endWaits()
		free()
		return nil, true, err
	}
	s.backends = own.backends
	release = append(release, func() {
		if err := own.remove(); err != nil {
			s.log.log(levelError, fromHost, err.Error())
		}
	})
	run, err := p.ready.NewRun(config)
	if err != nil {
		s.endWaits()
		free()
		return nil, true, fault.Wrap(err, fault.Internal, p.doc.Agent.ID, "cannot prepare the run")
	}
	s.run = run
	if p.wasi {
		s.wasi = wasi.New(p.wasiConfig(r, own.dirs), surroundings{s}, run)
	}
	release = append(release, run.Close, s.settle)
	p.runs.Add(1)
	finish := func() {
		s.memory = run.MemoryBytes()
		free()
		p.runs.Done()
	}
	unwatch := s.watch(ctx, r.began)
	if p.direct() {
		e := s.guest()
		unwatch()
		finish()
		return e, true, nil
	}
	done := make(chan *end, 1)
	go func() { done <- s.guest() }()
	e, back := s.await(done)
	unwatch()
	if back {
		finish()
	} else {
		go func() {
			<-done
			finish()
		}()
	}
	return e, back, nil
}

// direct says that nothing the guest does can hold it up beyond its end: it then
// runs on its caller's goroutine, for changing threads costs as much as a small
// run does. A run of a process of its own may block in its streams, and any in a
// directory whose file system does not answer.
func (p *Program) direct() bool { return p.reused && (!p.wasi || len(p.dirs) == 0) }

// watch ends the run at its deadline or, after it was asked to end, when its
// context is cancelled.
func (s *session) watch(ctx context.Context, began time.Time) (unwatch func()) {
	var deadline *time.Timer
	if ms := s.p.doc.Limits.DeadlineMillis; ms > 0 {
		limit := time.Duration(ms) * time.Millisecond
		deadline = time.AfterFunc(limit-time.Since(began), func() {
			s.stop(endOf(fault.Deadline, fmt.Sprintf("the deadline of %d ms passed", ms)))
		})
	}
	forget := func() bool { return true }
	if ctx.Done() != nil {
		forget = context.AfterFunc(ctx, func() {
			if errors.Is(context.Cause(ctx), output.ErrGone) {
				s.stop(outputEnd(output.ErrGone))
				return
			}
			s.drain()
			grace := time.NewTimer(limits.DrainGrace)
			defer grace.Stop()
			select {
			case <-grace.C:
				s.stop(canceledEnd(ctx))
			case <-s.over:
			}
		})
	}
	return func() {
		if deadline != nil {
			deadline.Stop()
		}
		forget()
		s.finish()
	}
}

// await waits for the guest's end. False says that it did not come back when the
// run was over.
func (s *session) await(done <-chan *end) (*end, bool) {
	select {
	case e := <-done:
		return e, true
	case <-s.over:
	}
	t := time.NewTimer(limits.StopGrace)
	defer t.Stop()
	select {
	case e := <-done:
		return e, true
	case <-t.C:
		s.gone.Store(true)
		return s.stopped(), false
	}
}

func canceledEnd(ctx context.Context) *end {
	e := endOf(fault.Canceled, "the run was ended from outside")
	e.status = 128 + int(syscall.SIGTERM)
	var sig Signal
	if errors.As(context.Cause(ctx), &sig) {
		e.message = sig.Error()
		e.status = 128 + int(sig)
	}
	return e
}

// guest runs the guest's code from its first instruction to its last.
func (s *session) guest() (e *end) {
	defer func() {
		if p := recover(); p != nil {
			e = endOf(fault.Internal, fmt.Sprintf("the host failed: %v", p))
		}
	}()
	if ms := s.p.doc.Limits.CPUMillis; ms > 0 {
		defer s.meter(time.Duration(ms) * time.Millisecond)()
	}
	err := s.run.Instantiate()
	s.instantiated = time.Since(s.began)
	if err != nil {
		return s.ended(err, "")
	}
	s.metadata()
	if s.p.command {
		return s.ended(s.run.Call("_start", nil, nil), "_start")
	}
	if err := s.run.Call("_initialize", nil, nil); err != nil && !errors.Is(err, engine.ErrNoExport) {
		return s.ended(err, "_initialize")
	}
	var status int32
	if err := s.run.Call("process", nil, &status); err != nil {
		return s.ended(err, "process")
	}
	if status < 0 || status > 255 {
		status = 255
	}
	return s.endedWith(int(status))
}

// maxMetadata bounds the globals that are logged.
const maxMetadata = 32

// metadata logs the exported globals of a program's first run.
func (s *session) metadata() {
	s.p.described.Do(func() { s.log.exports(s.metadataValues()) })
}

func (s *session) metadataValues() map[string]int64 {
	values := make(map[string]int64)
	for _, name := range s.p.globals {
		// Toolchains export their own under such names.
		if strings.HasPrefix(name, "__") || len(values) == maxMetadata || len(name) > 128 {
			continue
		}
		if v, ok := s.run.Global(name); ok {
			values[name] = v
		}
	}
	return values
}

// endedWith is the end of a guest that ended by itself. One that came back
// because what it waited for was ended did not.
func (s *session) endedWith(status int) *end {
	if cause := s.stopped(); cause != nil && cause.reason != "" {
		return cause
	}
	e := &end{status: status}
	if s.failure != nil {
		e.message = fmt.Sprintf("%s (code %d)", s.failure.message, s.failure.code)
		if status == 0 {
			e.status = 1
		}
	}
	if s.lost && e.status == 0 {
		return outputEnd(output.ErrGone)
	}
	if e.status != 0 && s.run.MemoryRefused() {
		e.reason = fault.OutOfMemory
		e.message = fmt.Sprintf("ended with status %d after memory beyond %d bytes was refused", e.status, s.p.doc.Limits.MemoryBytes)
	}
	return e
}

// ended judges what a call into the guest returned.
func (s *session) ended(err error, export string) *end {
	if err == nil {
		return s.endedWith(0)
	}
	f := asFailure(err)
	if f == nil {
		if errors.Is(err, engine.ErrNoExport) {
			return endOf(fault.ModuleInvalid, fmt.Sprintf("the module does not export %s", export))
		}
		return endOf(fault.Internal, err.Error())
	}
	if s.inner != nil {
		f = s.inner
	}
	if cause := s.stopped(); cause != nil && f.Trap == engine.NoTrap {
		e := *cause
		switch {
		case e.reason == "":
			return s.endedWith(e.status)
		case e.reason == fault.Trap:
			e.function = functionName(f)
			e.message += inFunction(f)
			s.outOfMemory(&e)
		}
		return &e
	}
	if f.Trap == engine.NoTrap && !f.HasFrame {
		// Before the first instruction: the module asks for more than it gets.
		e := endOf(fault.ResourceLimit, "cannot instantiate the module: "+f.Message)
		if s.run.MemoryRefused() {
			e.message = fmt.Sprintf("the module needs more memory to start than its limit of %d bytes", s.p.doc.Limits.MemoryBytes)
		}
		return e
	}
	e := endOf(fault.Trap, trapText(f)+inFunction(f))
	e.function = functionName(f)
	s.outOfMemory(e)
	return e
}

// outOfMemory turns a trap into what caused it: guests react to refused memory
// with an instruction that traps.
func (s *session) outOfMemory(e *end) {
	if !s.run.MemoryRefused() {
		return
	}
	e.status, e.reason = fault.RowOf(fault.OutOfMemory).Exit, fault.OutOfMemory
	e.message = fmt.Sprintf("out of memory: more than %d bytes were refused, then %s", s.p.doc.Limits.MemoryBytes, e.message)
}

func asFailure(err error) *engine.Failure {
	var f *engine.Failure
	errors.As(err, &f)
	return f
}

var trapTexts = map[engine.Trap]string{
	engine.StackOverflow:       "the call stack is exhausted",
	engine.MemoryOutOfBounds:   "memory access out of bounds",
	engine.TableOutOfBounds:    "table access out of bounds",
	engine.IndirectCallToNull:  "indirect call of an empty table entry",
	engine.BadSignature:        "indirect call with another signature",
	engine.IntegerOverflow:     "integer overflow",
	engine.DivisionByZero:      "integer division by zero",
	engine.BadConversion:       "float has no integer value",
	engine.UnreachableExecuted: "unreachable code reached",
}

func trapText(f *engine.Failure) string {
	if text, ok := trapTexts[f.Trap]; ok {
		return "trap: " + text
	}
	return "trap: " + f.Message
}

func functionName(f *engine.Failure) string {
	switch {
	case !f.HasFrame:
		return ""
	case f.Function != "":
		const most = 256
		name := strings.ToValidUTF8(f.Function, "\uFFFD")
		if len(name) > most {
			name = strings.ToValidUTF8(name[:most], "") + "…"
		}
		return name
	}
	return fmt.Sprintf("function %d", f.Index)
}

func inFunction(f *engine.Failure) string {
	if name := functionName(f); name != "" {
		return " in " + name
	}
	return ""
}
