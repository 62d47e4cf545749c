package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/module"
)

// Streams are the run's standard streams. Stdin may be nil: no input.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Locked, if not nil, is called once the module is loaded and before the
	// guest's first instruction: the host takes from itself what it needs no more
	// (package lock).
	Locked func() error
}

// Signal is the cause of a context that a signal cancelled; a run that does not
// end by itself then has the status 128+n.
type Signal syscall.Signal

func (s Signal) Error() string { return "ended by " + unix.SignalName(syscall.Signal(s)) }

// Run runs what the document describes, once, and reports how it ended: also to
// doc.ExitFile, doc.Termination and as one line on stderr. When the context is
// cancelled the guest is asked to end and, after [limits.DrainGrace],
// interrupted.
//
// The error is nil when the guest ended by itself, whatever its status, and
// else what the exit's reason says.
func Run(ctx context.Context, doc *hostdoc.Document, streams Streams) (hostdoc.Exit, error) {
	if streams.Stdout == nil {
		streams.Stdout = io.Discard
	}
	if streams.Stderr == nil {
		streams.Stderr = io.Discard
	}
	log := newLogger(streams.Stderr, doc)
	for _, notice := range doc.Notices {
		log.log(levelWarn, fromHost, notice)
	}
	e, err := start(ctx, doc, log, streams)
	if err != nil {
		e = endOf(fault.ReasonOf(err), err.Error())
	}
	exit := hostdoc.Exit{
		Version:  hostdoc.Version,
		Status:   e.status,
		Reason:   string(e.reason),
		Message:  fault.OneLine(e.message),
		Function: fault.OneLine(e.function),
	}
	if exit.Status != 0 && exit.Message != "" {
		log.log(levelError, fromHost, exit.Message)
	}
	if werr := Report(doc, exit); werr != nil {
		log.log(levelError, fromHost, werr.Error())
	}
	if err == nil && e.reason != "" {
		err = fault.New(e.reason, "", "%s", exit.Message)
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

// start loads and links the module and waits for the guest. The error is a
// failure before the guest's first instruction.
func start(ctx context.Context, doc *hostdoc.Document, log *logger, streams Streams) (*end, error) {
	began := time.Now()
	eng, err := shared()
	if err != nil {
		return nil, err
	}
	mod, err := eng.Load(doc.Module)
	if err != nil {
		return nil, loadError(doc.Module, err)
	}
	if streams.Locked != nil {
		if err := streams.Locked(); err != nil {
			mod.Close()
			return nil, err
		}
	}
	// A guest that was left behind still uses them.
	var release []func()
	returned := true
	defer func() {
		for i := len(release) - 1; i >= 0 && returned; i-- {
			release[i]()
		}
	}()
	release = append(release, mod.Close)

	s := newSession(doc, log, streams)
	in, closeInput, err := openInput(doc.Input, streams.Stdin, doc.Limits.InputBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.NotFound, doc.Input.Path, "cannot open the run's input")
	}
	release = append(release, closeInput)
	s.handles[0] = in
	funcs, globals := mod.Exports()
	s.hasAlloc = slices.Contains(funcs, "mentat_alloc")
	in.keep = s.hasAlloc
	s.command = doc.Entry == hostdoc.EntryCommand || doc.Entry == "" && !slices.Contains(funcs, "process")
	config := engine.RunConfig{MemoryBytes: doc.Limits.MemoryBytes, TableElements: limits.TableElements, Host: s}
	config.Numbers, err = s.link(mod.Imports())
	if err != nil {
		return nil, err
	}
	if slices.Contains(config.Numbers, engine.UseWASI) {
		var done func()
		if config.WASI, done, err = wasiConfig(doc, streams); err != nil {
			return nil, err
		}
		defer done()
		if s.command {
			closeFeed, err := feedStdin(doc.Input, streams.Stdin, config.WASI)
			if err != nil {
				return nil, err
			}
			defer closeFeed()
		}
	}
	s.run, err = mod.NewRun(config)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, doc.Agent.ID, "cannot prepare the run")
	}
	release = append(release, s.run.Close, s.endWaits)

	done := make(chan *end, 1)
	go func() {
		if doc.Limits.CPUMillis > 0 {
			s.clock <- ownClock()
			defer runtime.UnlockOSThread()
		}
		done <- s.guest(globals)
	}()
	var e *end
	e, returned = s.supervise(ctx, done, began)
	return e, nil
}

// supervise waits for the guest's end, its deadline or its cancellation. False
// says that the guest did not come back.
func (s *session) supervise(ctx context.Context, done <-chan *end, began time.Time) (*end, bool) {
	var deadline, grace <-chan time.Time
	if ms := s.doc.Limits.DeadlineMillis; ms > 0 {
		limit := time.Duration(ms) * time.Millisecond
		t := time.NewTimer(limit - time.Since(began))
		defer t.Stop()
		deadline = t.C
	}
	canceled := ctx.Done()
	cpu := meter{limit: time.Duration(s.doc.Limits.CPUMillis) * time.Millisecond}
	for {
		select {
		case c := <-s.clock:
			cpu.start(c)
			continue
		case <-cpu.due:
			if !cpu.spent() {
				continue
			}
			s.stop(endOf(fault.CPUTime, fmt.Sprintf("the run's processor time of %d ms is used up", s.doc.Limits.CPUMillis)))
		case e := <-done:
			return e, true
		case <-deadline:
			s.stop(endOf(fault.Deadline, fmt.Sprintf("the deadline of %d ms passed", s.doc.Limits.DeadlineMillis)))
		case <-canceled:
			canceled = nil
			s.drain()
			t := time.NewTimer(limits.DrainGrace)
			defer t.Stop()
			grace = t.C
			continue
		case <-grace:
			s.stop(canceledEnd(ctx))
		case <-s.over:
			// The output failed under WASI; the guest may not care.
		}
		select {
		case e := <-done:
			return e, true
		case <-time.After(limits.StopGrace):
			s.gone.Store(true)
			return s.stopped(), false
		}
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
func (s *session) guest(globals []string) (e *end) {
	defer func() {
		if p := recover(); p != nil {
			e = endOf(fault.Internal, fmt.Sprintf("the host failed: %v", p))
		}
	}()
	if err := s.run.Instantiate(); err != nil {
		return s.ended(err, "")
	}
	s.metadata(globals)
	if s.command {
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
	return s.finished(int(status))
}

// maxMetadata bounds the globals that are logged.
const maxMetadata = 32

func (s *session) metadata(globals []string) {
	values := make(map[string]int64)
	for _, name := range globals {
		// Toolchains export their own under such names.
		if strings.HasPrefix(name, "__") || len(values) == maxMetadata || len(name) > 128 {
			continue
		}
		if v, ok := s.run.Global(name); ok {
			values[name] = v
		}
	}
	s.log.exports(values)
}

// finished is the end of a guest that ended by itself.
func (s *session) finished(status int) *end {
	e := &end{status: status}
	if s.failure != nil {
		e.message = *s.failure
		if status == 0 {
			e.status = 1
		}
	}
	if e.status != 0 && s.run.MemoryRefused() {
		e.reason = fault.OutOfMemory
		e.message = fmt.Sprintf("ended with status %d after memory beyond %d bytes was refused", e.status, s.doc.Limits.MemoryBytes)
	}
	return e
}

// ended judges what a call into the guest returned.
func (s *session) ended(err error, export string) *end {
	if err == nil {
		return s.finished(0)
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
			return s.finished(e.status)
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
			e.message = fmt.Sprintf("the module needs more memory to start than its limit of %d bytes", s.doc.Limits.MemoryBytes)
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
	e.message = fmt.Sprintf("out of memory: more than %d bytes were refused, then %s", s.doc.Limits.MemoryBytes, e.message)
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

// link finds a server for every import, by name and by the type under which the
// module imports it.
func (s *session) link(imports []engine.Import) ([]int, error) {
	numbers := make([]int, len(imports))
	var unknown []string
	for i, im := range imports {
		known := module.Lookup(im.Module, im.Name)
		if !im.Func || known == nil || !known.Accepts(module.FuncType{Params: valTypes(im.Params), Results: valTypes(im.Results)}) {
			unknown = append(unknown, im.Module+"."+im.Name)
			continue
		}
		serve, wasi := resolve(im)
		switch {
		case wasi:
			numbers[i] = engine.UseWASI
		case serve == nil:
			unknown = append(unknown, im.Module+"."+im.Name)
		default:
			numbers[i] = len(s.funcs)
			s.funcs = append(s.funcs, hostFunc{im.Module, im.Name, len(im.Params), len(im.Results), serve})
		}
	}
	if len(unknown) > 0 {
		return nil, fault.New(fault.ModuleInvalid, s.doc.Agent.ID, "imports what this host does not provide: %s", strings.Join(unknown, ", "))
	}
	return numbers, nil
}

func valTypes(b []byte) []module.ValType {
	out := make([]module.ValType, len(b))
	for i, t := range b {
		out[i] = module.ValType(t)
	}
	return out
}

// loadError explains why a compiled module cannot be mapped.
func loadError(path string, err error) error {
	e := fault.Wrap(err, fault.Internal, path, "cannot load the compiled module")
	var st unix.Statfs_t
	switch {
	case unix.Access(path, unix.R_OK) != nil:
		return e.WithHint("the file is missing, or its owner is not the user the run has")
	case unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NOEXEC != 0:
		return e.WithHint("it lies on a filesystem that is mounted noexec: move the cache to one that is not")
	}
	return e.WithHint("it was compiled for another machine or version: remove it from the cache")
}
