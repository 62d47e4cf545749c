package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest/module"
)

// A script is calls of WASI that one and the same guest makes, whoever serves
// them: the calls and a piece of memory are its input, what became of them and of
// its memory is its output.
const (
	scriptAt    = 0x1000 // the number of calls, and from scriptCalls on the calls
	scriptCalls = scriptAt + 16
	dataAt      = 0x20000
	scriptPages = 4

	// A call is its function's number in [module.ABI], a mask, and parameters; those
	// in the mask are addresses of what is passed. What it returned follows.
	maxParams  = 9
	callBytes  = 8 + 8*maxParams + 8
	callResult = 8 + 8*maxParams
)

// scriptGuest is the text of that guest.
var scriptGuest = sync.OnceValue(func() string {
	var imports, calls strings.Builder
	for i, f := range module.ABI {
		if f.Module != module.ModuleWASI || f.Name == "proc_exit" {
			continue
		}
		fmt.Fprintf(&imports, "(import %q %q (func $%s (param", f.Module, f.Name, f.Name)
		fmt.Fprintf(&calls, "(if (i32.eq (i32.load (local.get $r)) (i32.const %d)) (then (return (call $%s", i, f.Name)
		for n, p := range f.Types[0].Params {
			name := map[string]string{"i32": "i", "i64": "I"}[fmt.Sprint(p)]
			fmt.Fprintf(&imports, " %v", p)
			fmt.Fprintf(&calls, " (call $%s (local.get $r) (i32.const %d))", name, n)
		}
		imports.WriteString(") (result i32)))\n")
		calls.WriteString("))))\n")
	}
	return fmt.Sprintf(`(module
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  %s
  (memory (export "memory") %d)
  (func $at (param $r i32) (param $n i32) (result i32)
    (i32.add (i32.add (local.get $r) (i32.const 8)) (i32.mul (local.get $n) (i32.const 8))))
  (func $taken (param $r i32) (param $n i32) (result i32)
    (local.set $n (i32.shl (i32.const 1) (local.get $n)))
    (i32.and (i32.load offset=4 (local.get $r)) (local.get $n)))
  (func $i (param $r i32) (param $n i32) (result i32)
    (if (call $taken (local.get $r) (local.get $n)) (then (return (i32.load (i32.load (call $at (local.get $r) (local.get $n)))))))
    (i32.load (call $at (local.get $r) (local.get $n))))
  (func $I (param $r i32) (param $n i32) (result i64)
    (if (call $taken (local.get $r) (local.get $n)) (then (return (i64.load (i32.load (call $at (local.get $r) (local.get $n)))))))
    (i64.load (call $at (local.get $r) (local.get $n))))
  (func $call (param $r i32) (result i32)
    %s
    (i32.const -1))
  (func (export "process") (result i32) (local $p i32) (local $n i32) (local $left i32)
    (local.set $p (i32.const %d))
    (loop $more
      (local.set $n (call $read (i32.const 0) (local.get $p) (i32.const 65536)))
      (local.set $p (i32.add (local.get $p) (local.get $n)))
      (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
    (local.set $left (i32.load (i32.const %[4]d)))
    (local.set $p (i32.const %d))
    (loop $next
      (if (local.get $left) (then
        (i32.store offset=%d (local.get $p) (call $call (local.get $p)))
        (local.set $p (i32.add (local.get $p) (i32.const %d)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $next))))
    (call $write_output (i32.const 0) (i32.mul (memory.size) (i32.const 65536)))
    (i32.const 0)))`, imports.String(), scriptPages, calls.String(), scriptAt, scriptCalls, callResult, callBytes)
})

// numberOf is a function's number in the script.
func numberOf(name string) uint32 {
	for i, f := range module.ABI {
		if f.Module == module.ModuleWASI && f.Name == name {
			return uint32(i)
		}
	}
	panic(name)
}

type calls struct {
	binary []byte
	names  []string
	data   []byte
}

// ref passes what lies at an address.
type ref uint32

// place puts bytes into the guest's memory.
func (s *calls) place(b []byte) uint32 {
	for len(s.data)%8 != 0 {
		s.data = append(s.data, 0)
	}
	at := dataAt + uint32(len(s.data))
	s.data = append(s.data, b...)
	return at
}

// room is n bytes of memory that are nothing yet.
func (s *calls) room(n int) uint32 { return s.place(make([]byte, n)) }

// vectors is a list of buffers, each of which is nothing yet or a text.
func (s *calls) vectors(list ...any) uint32 {
	var b []byte
	for _, one := range list {
		n, at := 0, uint32(0)
		switch one := one.(type) {
		case int:
			n, at = one, s.room(one)
		case string:
			n, at = len(one), s.place([]byte(one))
		}
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, at), uint32(n))
	}
	return s.place(b)
}

// call adds a call; a text becomes two parameters.
func (s *calls) call(name string, args ...any) int {
	one := make([]byte, callBytes)
	binary.LittleEndian.PutUint32(one, numberOf(name))
	i, mask := 0, uint32(0)
	put := func(v uint64) {
		binary.LittleEndian.PutUint64(one[8+8*i:], v)
		i++
	}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			put(uint64(s.place([]byte(a))))
			put(uint64(len(a)))
		case ref:
			mask |= 1 << i
			put(uint64(a))
		case int:
			put(uint64(a))
		case uint32:
			put(uint64(a))
		case uint64:
			put(a)
		case int64:
			put(uint64(a))
		default:
			panic(fmt.Sprintf("%T", a))
		}
	}
	binary.LittleEndian.PutUint32(one[4:], mask)
	s.binary = append(s.binary, one...)
	s.names = append(s.names, name)
	return len(s.names) - 1
}

// open adds a call of path_open and returns where the number of the file will be.
func (s *calls) open(dir any, lookup int, path string, oflags int, rights uint64, flags int) ref {
	fd := s.place([]byte{0xff, 0xff, 0xff, 0xff})
	s.call("path_open", dir, lookup, path, oflags, rights, rights, flags, fd)
	return ref(fd)
}

func (s *calls) bytes() []byte {
	b := make([]byte, dataAt-scriptAt)
	binary.LittleEndian.PutUint32(b, uint32(len(s.names)))
	copy(b[scriptCalls-scriptAt:], s.binary)
	if len(s.binary) > dataAt-scriptCalls || len(s.data) > scriptPages<<16-dataAt {
		panic("the script is too long")
	}
	return append(b, s.data...)
}

// scripted is what became of a script. Of one that trapped nothing else is known.
type scripted struct {
	trapped bool
	results []int
	memory  []byte
	stdout  string
}

func (r *scripted) u32(at uint32) uint32 { return binary.LittleEndian.Uint32(r.memory[at:]) }
func (r *scripted) u64(at uint32) uint64 { return binary.LittleEndian.Uint64(r.memory[at:]) }

func (r *scripted) text(at uint32, n uint32) string { return string(r.memory[at : at+n]) }

// read takes the results out of the guest's memory.
func (r *scripted) read(s *calls, memory []byte) {
	r.memory = memory
	for i := range s.names {
		r.results = append(r.results, int(r.u32(uint32(scriptCalls+i*callBytes+callResult))))
	}
}

// given is what a script's guest has.
type given struct {
	args, env []string
	preopens  []hostdoc.Preopen
}

func dir(host string) given {
	return given{preopens: []hostdoc.Preopen{{Host: host, Guest: "/data"}}}
}

func readOnlyDir(host string) given {
	return given{preopens: []hostdoc.Preopen{{Host: host, Guest: "/data", ReadOnly: true}}}
}

// served runs a script as the host serves it.
func (g given) served(t testing.TB, s *calls) *scripted {
	t.Helper()
	doc := document(t, scriptGuest())
	doc.Args, doc.Env, doc.Preopens = g.args, g.env, g.preopens
	p, err := Load(doc, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	var out bytes.Buffer
	exit, _ := p.Run(t.Context(), IO{Input: bytes.NewReader(s.bytes()), Sink: output.NewRaw(&out)})
	switch {
	case exit.Status == fault.ExitTrap:
		return &scripted{trapped: true}
	case exit.Status != 0 || out.Len() < scriptPages<<16:
		t.Fatalf("%+v, %d bytes", exit, out.Len())
	}
	// What the script wrote to stdout comes first.
	r := &scripted{stdout: string(out.Next(out.Len() - scriptPages<<16))}
	r.read(s, out.Bytes())
	return r
}

// results runs a script and wants its calls to return that.
func (g given) results(t testing.TB, s *calls, want ...int) *scripted {
	t.Helper()
	r := g.served(t, s)
	if r.trapped || len(r.results) != len(want) {
		t.Fatalf("%+v, want %v", r, want)
	}
	for i := range want {
		if r.results[i] != want[i] {
			t.Errorf("call %d, %s: %d, want %d", i, s.names[i], r.results[i], want[i])
		}
	}
	return r
}

// foreign is the guest in the engine as others use it, with its own WASI.
type foreign struct {
	engine *wasmtime.Engine
	module *wasmtime.Module
}

var foreignGuest = sync.OnceValues(func() (f foreign, err error) {
	wasm, err := wasmtime.Wat2Wasm(scriptGuest())
	if err != nil {
		return f, err
	}
	f.engine = wasmtime.NewEngine()
	f.module, err = wasmtime.NewModule(f.engine, wasm)
	return f, err
})

// theirs runs a script as the engine's own WASI serves it.
func (g given) theirs(t testing.TB, s *calls) *scripted {
	t.Helper()
	f, err := foreignGuest()
	if err != nil {
		t.Fatal(err)
	}
	store := wasmtime.NewStore(f.engine)
	defer store.Close()
	store.SetWasi(g.wasi(t))
	linker := wasmtime.NewLinker(f.engine)
	defer linker.Close()
	if err := linker.DefineWasi(); err != nil {
		t.Fatal(err)
	}
	in := s.bytes()
	var out []byte
	data := func(c *wasmtime.Caller, ptr, n int32) []byte {
		memory := c.GetExport("memory").Memory().UnsafeData(c)
		return memory[ptr:min(int64(ptr)+int64(n), int64(len(memory)))]
	}
	for name, served := range map[string]any{
		"read": func(c *wasmtime.Caller, _, ptr, n int32) int32 {
			copied := copy(data(c, ptr, n), in)
			in = in[copied:]
			return int32(copied)
		},
		"write_output": func(c *wasmtime.Caller, ptr, n int32) { out = bytes.Clone(data(c, ptr, n)) },
	} {
		if err := linker.DefineFunc(store, module.ModuleMentat, name, served); err != nil {
			t.Fatal(err)
		}
	}
	instance, err := linker.Instantiate(store, f.module)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := instance.GetFunc(store, "process").Call(store); err != nil {
		return &scripted{trapped: true}
	}
	r := new(scripted)
	r.read(s, out)
	return r
}

func (g given) wasi(t testing.TB) *wasmtime.WasiConfig {
	t.Helper()
	c := wasmtime.NewWasiConfig()
	c.SetArgv(g.args)
	var keys, values []string
	for _, kv := range g.env {
		k, v, _ := strings.Cut(kv, "=")
		keys, values = append(keys, k), append(values, v)
	}
	c.SetEnv(keys, values)
	if err := c.SetStdinFile(os.DevNull); err != nil {
		t.Fatal(err)
	}
	for _, p := range g.preopens {
		dirs, files := wasmtime.DIR_READ, wasmtime.FILE_READ
		if !p.ReadOnly {
			dirs |= wasmtime.DIR_WRITE
			files |= wasmtime.FILE_WRITE
		}
		if err := c.PreopenDir(p.Host, p.Guest, dirs, files); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestAScriptSaysWhatItsCallsReturn(t *testing.T) {
	var s calls
	clock, args := s.room(8), s.room(8)
	s.call("clock_time_get", 0, int64(0), clock)
	s.call("args_sizes_get", args, args+4)
	s.call("fd_close", 77)
	g := given{args: []string{"a", "bcd"}}
	for name, r := range map[string]*scripted{"served": g.served(t, &s), "theirs": g.theirs(t, &s)} {
		if r.trapped || fmt.Sprint(r.results) != fmt.Sprint([]int{0, 0, errnoBadf}) || r.u64(clock) < 1<<60 || r.u32(args) != 2 || r.u32(args+4) != 6 {
			t.Errorf("%s: %v, clock %d, arguments %d, %d", name, r.results, r.u64(clock), r.u32(args), r.u32(args+4))
		}
	}
	var bad calls
	bad.call("fd_prestat_get", 3, -1)
	for name, r := range map[string]*scripted{"served": dir(t.TempDir()).served(t, &bad), "theirs": dir(t.TempDir()).theirs(t, &bad)} {
		if !r.trapped {
			t.Errorf("%s: a pointer out of range: %v", name, r.results)
		}
	}
}
