package engine

/*
#include <stdlib.h>
#include "engine.h"
*/
import "C"

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"sync"
	"unsafe"

	// Brings libwasmtime itself and the flags to link it.
	_ "github.com/bytecodealliance/wasmtime-go/v39"
)

// Version is libwasmtime's.
const Version = C.MT_WASMTIME_VERSION

// Engine holds the configuration; one serves a whole process.
type Engine struct{ p *C.wasm_engine_t }

// New makes an engine whose guests may use stack bytes of stack.
func New(stack int) *Engine { return &Engine{C.mt_engine_new(C.size_t(stack))} }

// Compile turns a WASM module into native code for this machine. The error says
// why the engine refuses the module.
func (e *Engine) Compile(wasm []byte) ([]byte, error) {
	var out C.wasm_byte_vec_t
	if err := C.mt_compile(e.p, (*C.uint8_t)(unsafe.SliceData(wasm)), C.size_t(len(wasm)), &out); err != nil {
		return nil, failed(err)
	}
	defer C.wasm_byte_vec_delete(&out)
	if uint64(out.size) > math.MaxInt32 {
		return nil, errors.New("the compiled module is over 2 GiB")
	}
	return C.GoBytes(unsafe.Pointer(out.data), C.int(out.size)), nil
}

// Validate says why the engine refuses the module, or nil.
func (e *Engine) Validate(wasm []byte) error {
	if err := C.wasmtime_module_validate(e.p, (*C.uint8_t)(unsafe.SliceData(wasm)), C.size_t(len(wasm))); err != nil {
		return failed(err)
	}
	return nil
}

// Load maps a compiled module into memory. The file must stay unchanged while
// the module lives.
func (e *Engine) Load(path string) (*Module, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	m := &Module{e: e}
	if err := C.wasmtime_module_deserialize_file(e.p, name, &m.p); err != nil {
		return nil, failed(err)
	}
	C.wasmtime_module_imports(m.p, &m.imports)
	return m, nil
}

// Module is a loaded module.
type Module struct {
	e       *Engine
	p       *C.wasmtime_module_t
	imports C.wasm_importtype_vec_t
}

// Import is one import of a module. Types are bytes of the binary format.
type Import struct {
	Module, Name    string
	Func            bool
	Params, Results []byte
}

// Imports lists what the module imports, in its order.
func (m *Module) Imports() []Import {
	list := make([]Import, m.imports.size)
	var im C.mt_import
	for i := range list {
		C.mt_import_at(&m.imports, C.size_t(i), &im)
		list[i] = Import{
			Module:  C.GoStringN(im.module, C.int(im.module_len)),
			Name:    C.GoStringN(im.name, C.int(im.name_len)),
			Func:    im.is_func != 0,
			Params:  types(im.params[:], int(im.nparams)),
			Results: types(im.results[:], int(im.nresults)),
		}
	}
	return list
}

// types turns the library's kinds into the binary format's. A list too long to
// be reported becomes one that no host function has.
func types(kinds []C.wasm_valkind_t, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		if i < len(kinds) && kinds[i] <= 3 {
			out[i] = 0x7f - byte(kinds[i])
		}
	}
	return out
}

// Exports names the functions and the globals that the module exports.
func (m *Module) Exports() (funcs, globals []string) {
	var exports C.wasm_exporttype_vec_t
	C.wasmtime_module_exports(m.p, &exports)
	defer C.wasm_exporttype_vec_delete(&exports)
	for i := range int(exports.size) {
		var data *C.char
		var n C.size_t
		kind := C.mt_export_at(&exports, C.size_t(i), &data, &n)
		switch name := C.GoStringN(data, C.int(n)); kind {
		case C.MT_WASM_EXTERN_FUNC:
			funcs = append(funcs, name)
		case C.MT_WASM_EXTERN_GLOBAL:
			globals = append(globals, name)
		}
	}
	return funcs, globals
}

// Close frees the module; its runs must be closed before.
func (m *Module) Close() {
	C.wasm_importtype_vec_delete(&m.imports)
	C.wasmtime_module_delete(m.p)
}

// Value is a parameter or result of a host function.
type Value struct{ bits [2]uint64 }

// U32 reads an i32.
func (v *Value) U32() uint32 { return uint32(v.bits[0]) }

// U64 reads an i64.
func (v *Value) U64() uint64 { return v.bits[0] }

// I32 reads an i32 as signed.
func (v *Value) I32() int32 { return int32(v.bits[0]) }

// F64 reads an f64.
func (v *Value) F64() float64 { return math.Float64frombits(v.bits[0]) }

// SetI32 makes it an i32.
func (v *Value) SetI32(x int32) { v.bits[0] = uint64(uint32(x)) }

// SetI64 makes it an i64.
func (v *Value) SetI64(x int64) { v.bits[0] = uint64(x) }

// SetF64 makes it an f64.
func (v *Value) SetF64(x float64) { v.bits[0] = math.Float64bits(x) }

// Host receives what a guest asks for, on the thread that runs the guest.
type Host interface {
	// Call serves the host function with that number. values holds the
	// parameters and takes the result at index 0; memory is the guest's, valid
	// until guest code runs again. False traps.
	Call(number int, values []Value, memory []byte) bool
}

// Program is a module whose imports are resolved: what its runs share.
type Program struct {
	m *Module
	p *C.mt_program
}

// Served says how an import is served: by the host under the number that
// [Host.Call] gets, or without it where the kind can.
type Served struct {
	Number int
	Kind   Kind
}

// Kind is what is served without the host where that is possible.
type Kind int

// The kinds. ServesRead needs a [Window] to read from, those of descriptors a file
// ([Run.ServeFile]).
const (
	ServesOther    Kind = C.MT_OTHER
	ServesVersion  Kind = C.MT_VERSION
	ServesRead     Kind = C.MT_READ
	ServesFDRead   Kind = C.MT_FD_READ
	ServesFDWrite  Kind = C.MT_FD_WRITE
	ServesFDPread  Kind = C.MT_FD_PREAD
	ServesFDPwrite Kind = C.MT_FD_PWRITE
	ServesFDSeek   Kind = C.MT_FD_SEEK
	ServesFDTell   Kind = C.MT_FD_TELL
)

// Prepare resolves the imports, each as served says; version is what functions of
// kind [ServesVersion] return. The module must stay open while the program lives.
func (m *Module) Prepare(served []Served, version int32) (*Program, error) {
	if len(served) != int(m.imports.size) {
		return nil, errors.New("every import must be served")
	}
	p := &Program{m, C.mt_program_new(m.e.p, m.p, &m.imports, C.int32_t(version))}
	if p.p == nil {
		return nil, errors.New("out of memory")
	}
	if err := p.link(served); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Program) link(served []Served) error {
	for i, s := range served {
		if err := C.mt_program_host(p.p, C.size_t(i), C.int(s.Number), C.int(s.Kind)); err != nil {
			return failed(err)
		}
	}
	if err := C.mt_program_ready(p.p, cBool(namedTwice(p.m.Imports()))); err != nil {
		return failed(err)
	}
	return nil
}

// namedTwice tells whether a function is imported under two types.
func namedTwice(imports []Import) bool {
	first := map[[2]string]Import{}
	for _, im := range imports {
		name := [2]string{im.Module, im.Name}
		other, twice := first[name]
		if twice && (!bytes.Equal(im.Params, other.Params) || !bytes.Equal(im.Results, other.Results)) {
			return true
		}
		first[name] = im
	}
	return false
}

// Close frees the program; its runs must be closed before.
func (p *Program) Close() { C.mt_program_delete(p.p) }

// KeepMemories sets how many memories of runs that ended are kept for others, and
// how many bytes of them.
func (*Engine) KeepMemories(n, bytes int) { C.mt_engine_keep(C.size_t(n), C.size_t(bytes)) }

// RunConfig configures a run.
type RunConfig struct {
	// MemoryBytes bounds the linear memory, TableElements each table.
	MemoryBytes   int64
	TableElements int64
	Host          Host
}

// Run is one instance with a store of its own. Its methods belong to one
// goroutine, [Run.Stop] excepted.
type Run struct {
	// Window shows the guest bytes.
	Window Window

	host   Host
	slot   slot
	panics any

	mu sync.Mutex // guards p against Stop after Close
	p  *C.mt_run
}

// NewRun prepares a run; no guest code runs yet.
func (p *Program) NewRun(c RunConfig) (*Run, error) {
	if c.MemoryBytes < 0 {
		return nil, errors.New("negative memory limit")
	}
	r := &Run{host: c.Host}
	r.Window.r = r
	r.slot = enter(r)
	r.p = C.mt_run_new(p.p, C.uintptr_t(r.slot), C.size_t(c.MemoryBytes), C.int64_t(c.TableElements))
	if r.p == nil {
		r.slot.leave()
		return nil, errors.New("out of memory")
	}
	return r, nil
}

// Instantiate makes the instance, which runs the module's start function if it
// has one. A guest's failure is a [*Failure].
func (r *Run) Instantiate() error {
	var f C.mt_failure
	code := C.mt_run_instantiate(r.p, &f)
	r.rethrow()
	if code != 0 {
		return failure(&f)
	}
	return nil
}

// ErrNoExport says that a module does not export a function.
var ErrNoExport = errors.New("no such function is exported")

// Call runs an exported function that takes arg (none if nil) and returns an
// i32 if result is not nil. A guest's failure is a [*Failure].
func (r *Run) Call(name string, arg, result *int32) error {
	var f C.mt_failure
	var in, out C.int32_t
	var pin, pout *C.int32_t
	if arg != nil {
		in = C.int32_t(*arg)
		pin = &in
	}
	if result != nil {
		pout = &out
	}
	code := C.mt_run_call(r.p, (*C.char)(unsafe.Pointer(unsafe.StringData(name))), C.size_t(len(name)), pin, pout, &f)
	r.rethrow()
	switch {
	case code > 0:
		return ErrNoExport
	case code < 0:
		return failure(&f)
	case result != nil:
		*result = int32(out)
	}
	return nil
}

// rethrow continues a panic of the host in the goroutine that started the
// guest: it must not unwind through the engine's frames.
func (r *Run) rethrow() {
	if p := r.panics; p != nil {
		r.panics = nil
		panic(p)
	}
}

// Global reads an exported i32 or i64 global.
func (r *Run) Global(name string) (int64, bool) {
	var v C.int64_t
	ok := C.mt_run_global(r.p, (*C.char)(unsafe.Pointer(unsafe.StringData(name))), C.size_t(len(name)), &v)
	return int64(v), ok != 0
}

// Memory is the guest's memory as it is now.
func (r *Run) Memory() []byte {
	var n C.size_t
	return memory(C.mt_run_memory(r.p, &n), n)
}

func memory(base *C.uint8_t, n C.size_t) []byte {
	if base == nil {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(base)), int(n))
}

// Stop interrupts the guest code. Any goroutine may call it, at any time.
func (r *Run) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.p != nil {
		C.mt_run_stop(r.p)
	}
}

// MemoryRefused reports whether the guest was ever refused memory.
func (r *Run) MemoryRefused() bool { return C.mt_run_refused(r.p) != 0 }

// MemoryBytes is the size of the guest's memory.
func (r *Run) MemoryBytes() int64 { return int64(C.mt_run_memory_used(r.p)) }

// MemoryInUse is the size of the memories of all guests of this process.
func MemoryInUse() int64 { return int64(C.mt_memory_in_use()) }

// Close frees the run.
func (r *Run) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Window.Hide()
	C.mt_run_delete(r.p)
	r.p = nil
	r.slot.leave()
}

// Trap is the engine's code for why guest code cannot go on.
type Trap int

// The traps that the enabled features can raise. NoTrap is a failure that the
// engine did not raise itself: the host's, or an interruption.
const (
	NoTrap              Trap = -1
	StackOverflow       Trap = 0
	MemoryOutOfBounds   Trap = 1
	TableOutOfBounds    Trap = 3
	IndirectCallToNull  Trap = 4
	BadSignature        Trap = 5
	IntegerOverflow     Trap = 6
	DivisionByZero      Trap = 7
	BadConversion       Trap = 8
	UnreachableExecuted Trap = 9
	Interrupted         Trap = 10
)

// Failure is why a guest's code ended early.
type Failure struct {
	Trap Trap
	// Function is the guest function's name as the module gives it, Index its
	// index; HasFrame says whether they are known.
	HasFrame bool
	Function string
	Index    uint32
	// Message is the engine's own text.
	Message string
}

func (f *Failure) Error() string { return f.Message }

func failure(f *C.mt_failure) *Failure {
	defer C.free(unsafe.Pointer(f.func_name))
	defer C.free(unsafe.Pointer(f.message))
	return &Failure{
		Trap:     Trap(f.code),
		HasFrame: f.has_frame != 0,
		Function: C.GoStringN(f.func_name, C.int(f.func_name_len)),
		Index:    uint32(f.func_index),
		Message:  innermost(C.GoStringN(f.message, C.int(f.message_len))),
	}
}

// failed takes the library's error over.
func failed(err *C.wasmtime_error_t) error {
	var n C.size_t
	text := C.mt_error_text(err, &n)
	defer C.free(unsafe.Pointer(text))
	return errors.New(innermost(C.GoStringN(text, C.int(n))))
}

// innermost picks the last cause out of the library's report, whose other lines
// are a stack trace and what led there.
func innermost(report string) string {
	report, _, _ = strings.Cut(report, "\n\nStack backtrace:\n")
	head, causes, found := strings.Cut(report, "\n\nCaused by:\n")
	if !found {
		head, _, _ = strings.Cut(head, "\n")
		return head
	}
	var parts []string
	for line := range strings.SplitSeq(causes, "\n") {
		line = strings.TrimSpace(line)
		if n, rest, ok := strings.Cut(line, ": "); ok && len(n) <= 2 && n != "" && n[0] >= '0' && n[0] <= '9' {
			line = rest
			parts = parts[:0]
		}
		if line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, " ")
}

func cBool(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

//export goHostCall
func goHostCall(handle C.uintptr_t, number C.int, values *C.wasmtime_val_raw_t, n C.size_t, base *C.uint8_t, size C.size_t) (trap C.int) {
	r := slot(handle).run()
	defer func() {
		if p := recover(); p != nil {
			r.panics = p
			trap = 1
		}
	}()
	if r.host.Call(int(number), unsafe.Slice((*Value)(unsafe.Pointer(values)), int(n)), memory(base, size)) {
		return 0
	}
	return 1
}
