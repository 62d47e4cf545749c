package host

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest/module"
)

// puppet is a guest that does what its input says: a sequence of calls, each a
// byte that picks a function and then its arguments. Of functions that may be
// imported under several types it has the one of that number.
func puppet(form int) string {
	var imports, dispatch strings.Builder
	n := 0
	for _, f := range module.ABI {
		for _, typ := range f.Types[min(form, len(f.Types)-1):][:1] {
			// The guest is to end by the host's doing only.
			if f.Module != module.ModuleMentat && f.Module != module.ModuleEnv || f.Name == "abort" {
				continue
			}
			fmt.Fprintf(&imports, "(import %q %q (func $f%d", f.Module, f.Name, n)
			var args string
			for _, p := range typ.Params {
				fmt.Fprintf(&imports, " (param %s)", p)
				if p == module.F64 {
					args += " (f64.reinterpret_i64 (i64.mul (i64.const 0x100000001) (i64.extend_i32_u (call $arg))))"
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

// position is the number of a function in the puppet.
func position(name string) int {
	n := 0
	for _, f := range module.ABI {
		if f.Module == module.ModuleMentat && f.Name == name {
			return n
		}
		n++
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

// fuzzed is a document that grants something of everything.
func fuzzed(t testing.TB, text string) (*hostdoc.Document, Options) {
	t.Helper()
	doc := document(t, text)
	doc.Config = map[string]string{"": "value"}
	doc.Limits.DeadlineMillis = 20_000
	doc.LogFormat = "json"
	doc.Env = []string{"KEY=value"}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	doc.Preopens = []hostdoc.Preopen{{Host: dir, Guest: "/data"}}
	withMedia(t.TempDir(), "media:read", "media:write", "env:KEY", "filesystem:read-write:/data", "network:https:*.example.com", "llm:gpt-*", "extension:x")(doc)
	doc.Denials = []hostdoc.Denial{{Capability: "env:OTHER", Rule: "r", Reason: "no"}}
	return doc, Options{Backends: map[string]backend.Backend{"network": &fake{}, "llm": &fake{open: func(backend.Grant) *backend.Refusal {
		return &backend.Refusal{Code: backend.Limit, Reason: "the budget\nis used up"}
	}}}}
}

// FuzzHostCalls: whatever a guest passes, every call ends in a code or a trap;
// the host does not fail, what it writes is well-formed and within its limits, and
// nothing stays open.
func FuzzHostCalls(f *testing.F) {
	op := func(name string) uint32 { return uint32(position(name)) }
	// Texts lie behind the calls, where the script is loaded to address 0.
	with := func(calls []byte, texts ...string) []byte {
		out := make([]byte, 1024)
		copy(out, calls)
		return append(out, strings.Join(texts, "")...)
	}
	const at = 1024
	for _, seed := range [][]byte{
		{},
		script([]uint32{op("write_output"), 0, 100}, []uint32{op("last_error")}),
		script([]uint32{op("write_output"), 0xffffffff, 0xffffffff}),
		script([]uint32{op("write_output"), 131071, 1}, []uint32{op("write_output"), 131071, 2}),
		script([]uint32{op("log"), 0, 131072}, []uint32{op("log"), 0xffffff, 0, 10}),
		script([]uint32{op("read"), 0, 0, 0xffffffff}),
		script([]uint32{op("get_config"), 0, 0}, []uint32{op("read"), 1, 4096, 100}, []uint32{op("size"), 1}, []uint32{op("close"), 1}, []uint32{op("read"), 1, 0, 1}),
		script([]uint32{op("set_error"), 0x80000000, 0, 9000}, []uint32{op("last_error")}, []uint32{op("read"), 1, 65536, 65536}),
		script([]uint32{op("read_input")}, []uint32{op("close"), 0}, []uint32{op("read_input")}, []uint32{op("size"), 0}),
		with(script([]uint32{op("start_stream"), at, 3}, []uint32{op("write_stream"), 1, 0, 70_000}, []uint32{op("start_stream"), at, 3}, []uint32{op("end_stream"), 1, 0}, []uint32{op("write_stream"), 1, 0, 1}), "abc"),
		with(script([]uint32{op("start_stream"), at, 3}, []uint32{op("close"), 1}, []uint32{op("end_stream"), 1, 7}), "abc"),
		with(script([]uint32{op("record_metric"), at, 3, 0, 0x3ff00000, at + 3, 9}, []uint32{op("record_metric"), at, 3, 1, 0x7ff80000, at + 3, 9}), "abc", `{"k":"v"}`),
		with(script([]uint32{op("upload_media"), at, 10, at, 100}, []uint32{op("read"), 1, at + 200, 77}, []uint32{op("download_media"), at + 200, 77}, []uint32{op("read"), 2, 0, 50}), "text/plain"),
		with(script([]uint32{op("request_capability"), at, 7, 0, 0}, []uint32{op("invoke_capability"), 1, at + 7, 3, 0, 0}, []uint32{op("read"), 2, 4096, 100}), "env:KEY", "get"),
		with(script([]uint32{op("request_capability"), at, 27, 0, 0}, []uint32{op("invoke_capability"), 1, at + 27, 4, at + 31, 25}, []uint32{op("read"), 2, 4096, 100}),
			"filesystem:read-write:/data", "read", framed(`{"path":"/data/file"}`, "")),
		with(script([]uint32{op("request_capability"), at, 25, at + 25, 2}, []uint32{op("invoke_capability"), 1, at + 27, 5, at + 32, 10}, []uint32{op("read"), 2, 4096, 100}, []uint32{op("close"), 2}, []uint32{op("close"), 1}),
			"network:https:example.com", "{}", "fetch", framed("{}", "body")),
		with(script([]uint32{op("request_capability"), at, 9, 0, 0}, []uint32{op("last_error")}, []uint32{op("read"), 1, 0, 200}), "llm:gpt-4"),
		with(script([]uint32{op("request_capability"), at, 9, 0, 0}, []uint32{op("last_error")}, []uint32{op("read"), 1, 0, 200}), "env:OTHER"),
	} {
		f.Add(seed)
	}
	type form struct {
		p   *Program
		log *bytes.Buffer
	}
	var forms []form
	for i := range 2 {
		log := new(bytes.Buffer)
		doc, o := fuzzed(f, puppet(i))
		o.Stderr = log
		forms = append(forms, form{load1(f, doc, o), log})
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 4096 {
			return
		}
		for _, one := range forms {
			for _, framing := range []string{hostdoc.FramingRaw, hostdoc.FramingNDJSON} {
				one.log.Reset()
				var out bytes.Buffer
				var sink output.Sink = output.NewRaw(&out)
				if framing == hostdoc.FramingNDJSON {
					sink = output.NewNDJSON(&out)
				}
				exit, _ := one.p.Run(t.Context(), IO{ID: "run", Input: bytes.NewReader(input), Sink: sink})
				switch fault.Reason(exit.Reason) {
				case "", fault.Trap, fault.ResourceLimit:
				default:
					t.Errorf("ended with %+v", exit)
				}
				if out.Len() > 8<<20 || framing == hostdoc.FramingRaw && out.Len() > 1<<20 {
					t.Errorf("%d bytes of output", out.Len())
				}
				if framing == hostdoc.FramingNDJSON {
					checkEvents(t, out.String())
				}
				for _, line := range logged(t, one.log.String()) {
					if line.Run != "run" || line.Source != fromAgent && line.Source != fromHost {
						t.Errorf("logged %+v", line)
					}
				}
			}
		}
	})
}

// checkEvents holds that streams are opened, numbered and ended as they must be.
func checkEvents(t *testing.T, text string) {
	open := map[string]int64{}
	for line := range strings.Lines(text) {
		var e struct {
			Event, Stream string
			Seq           int64
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("event %q: %v", line, err)
		}
		next, there := open[e.Stream]
		switch e.Event {
		case "start":
			if there {
				t.Errorf("stream %q is opened twice", e.Stream)
			}
			open[e.Stream] = 0
		case "chunk":
			if !there || next != e.Seq {
				t.Errorf("chunk %d of %q, next is %d, open %v", e.Seq, e.Stream, next, there)
			}
			open[e.Stream]++
		case "end":
			if !there {
				t.Errorf("stream %q ends and was not open", e.Stream)
			}
			delete(open, e.Stream)
		case "output", "log", "metric", "error":
		default:
			t.Errorf("event %q", line)
		}
	}
	if len(open) > 0 {
		t.Errorf("streams %v never ended", open)
	}
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
