package host

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest/module"
)

// puppet is a guest that does what its input says: a sequence of calls, each a
// byte that picks a function and then its arguments.
func puppet() string {
	var imports, dispatch strings.Builder
	n := 0
	for _, f := range module.ABI {
		for _, typ := range f.Types {
			// The guest is to end by the host's doing only.
			if f.Module != module.ModuleMentat && f.Module != module.ModuleEnv || f.Name == "abort" {
				continue
			}
			fmt.Fprintf(&imports, "(import %q %q (func $f%d", f.Module, f.Name, n)
			var args string
			for _, p := range typ.Params {
				fmt.Fprintf(&imports, " (param %s)", p)
				if p == module.F64 {
					args += " (f64.const 1)"
				} else {
					args += " (call $arg)"
				}
			}
			call := fmt.Sprintf("(call $f%d%s)", n, args)
			for _, r := range typ.Results {
				fmt.Fprintf(&imports, " (result %s)", r)
				call = "(drop " + call + ")"
			}
			imports.WriteString("))\n")
			fmt.Fprintf(&dispatch, "(if (i32.eq (local.get $op) (i32.const %d)) (then %s (br $next)))\n", n, call)
			n++
		}
	}
	return `(module ` + imports.String() + `
  (memory (export "memory") 2 4)
  (global $at (mut i32) (i32.const 0))
  (global $end (mut i32) (i32.const 0))
  (func $arg (result i32) (local $v i32)
    ;; beyond the end of the script everything is zero
    (local.set $v (i32.load (global.get $at)))
    (global.set $at (i32.add (global.get $at) (i32.const 4)))
    (local.get $v))
  (func (export "process") (result i32) (local $op i32) (local $n i32)
    ;; the script goes to the first page, in as many steps as it takes
    (loop $more
      (local.set $n (call $fread (i32.const 0) (global.get $end) (i32.sub (i32.const 4096) (global.get $end))))
      (global.set $end (i32.add (global.get $end) (local.get $n)))
      (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
    (loop $next
      (if (i32.ge_u (global.get $at) (global.get $end)) (then (return (i32.const 0))))
      (local.set $op (i32.rem_u (i32.load8_u (global.get $at)) (i32.const ` + fmt.Sprint(n) + `)))
      (global.set $at (i32.add (global.get $at) (i32.const 1)))
      ` + dispatch.String() + `)
    (i32.const 0))
  (func $fread (param i32 i32 i32) (result i32) (call $f` + fmt.Sprint(position("read")) + ` (local.get 0) (local.get 1) (local.get 2))))`
}

// position is the number of a function's first form in the puppet.
func position(name string) int {
	n := 0
	for _, f := range module.ABI {
		if f.Module == module.ModuleMentat && f.Name == name {
			return n
		}
		n += len(f.Types)
	}
	panic(name)
}

// script encodes calls for the puppet.
func script(calls ...[]uint32) []byte {
	var out []byte
	for _, c := range calls {
		out = append(out, byte(c[0]))
		for _, arg := range c[1:] {
			out = binary.LittleEndian.AppendUint32(out, arg)
		}
	}
	return out
}

// FuzzHostCalls: whatever a guest passes, every call ends in a code or a trap;
// the host does not fail, and neither output nor log exceed what they may.
func FuzzHostCalls(f *testing.F) {
	text := puppet()
	op := func(name string) uint32 { return uint32(position(name)) }
	for _, seed := range [][]byte{
		{},
		script([]uint32{op("write_output"), 0, 100}, []uint32{op("last_error")}),
		script([]uint32{op("write_output"), 0xffffffff, 0xffffffff}),
		script([]uint32{op("write_output"), 131071, 1}, []uint32{op("write_output"), 131071, 2}),
		script([]uint32{op("log"), 0, 131072}, []uint32{op("log") + 1, 0xffffff, 0, 10}),
		script([]uint32{op("read"), 0, 0, 0xffffffff}),
		script([]uint32{op("get_config"), 0, 0}, []uint32{op("read"), 1, 4096, 100}, []uint32{op("size"), 1}, []uint32{op("close"), 1}, []uint32{op("read"), 1, 0, 1}),
		script([]uint32{op("set_error"), 0x80000000, 0, 9000}, []uint32{op("last_error")}, []uint32{op("read"), 1, 65536, 65536}),
		script([]uint32{op("request_capability"), 0, 1024, 0, 0}, []uint32{op("invoke_capability"), 1, 0, 1, 2, 3}),
		script([]uint32{op("record_metric"), 0, 1, 7, 0, 1025}, []uint32{op("upload_media"), 0, 1, 2, 3}),
		script([]uint32{op("read_input")}, []uint32{op("close"), 0}, []uint32{op("read_input")}, []uint32{op("size"), 0}),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 4096 {
			return
		}
		o := setup{wat: text, stdin: strings.NewReader(string(input)), edit: func(d *hostdoc.Document) {
			d.Config = map[string]string{"": "value"}
			d.Limits.OutputBytes = 1 << 20
			d.Limits.DeadlineMillis = 20_000
		}}.run(t)
		switch fault.Reason(o.exit.Reason) {
		case "", fault.Trap, fault.ResourceLimit:
		default:
			t.Errorf("ended with %+v", o.exit)
		}
		if len(o.stdout) > 1<<20 {
			t.Errorf("%d bytes of output", len(o.stdout))
		}
		for line := range strings.Lines(o.stderr) {
			if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\x1b\x00") || !strings.HasSuffix(line, "\n") {
				t.Errorf("logged %q", line)
			}
		}
	})
}

// FuzzView: the one function that turns a guest's pointer into bytes.
func FuzzView(f *testing.F) {
	for _, s := range [][3]uint32{{0, 0, 0}, {10, 0, 10}, {10, 10, 0}, {10, 10, 1}, {10, 0xffffffff, 1}, {10, 0xffffffff, 0xffffffff}, {10, 1, 0xffffffff}} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, size, ptr, n uint32) {
		memory := make([]byte, size%4096)
		got := view(memory, ptr, n)
		inside := uint64(ptr)+uint64(n) <= uint64(len(memory))
		if (got != nil) != inside {
			t.Fatalf("view of %d bytes at %d+%d: %v", len(memory), ptr, n, got != nil)
		}
		if inside && (uint32(len(got)) != n || cap(got) != len(got) || n > 0 && &got[0] != &memory[ptr]) {
			t.Fatal("not the bytes asked for")
		}
	})
}

// FuzzUTF16String: AssemblyScript's strings name their own size.
func FuzzUTF16String(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00h\x00i\x00"), uint32(4))
	f.Add([]byte("\xff\xff\xff\xffh\x00i\x00"), uint32(4))
	f.Add([]byte("\x03\x00\x00\x00h\x00"), uint32(4))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, memory []byte, ptr uint32) {
		if s := utf16String(memory, ptr); len(s) > 3*len(memory) {
			t.Fatalf("%d bytes from %d", len(s), len(memory))
		}
	})
}
