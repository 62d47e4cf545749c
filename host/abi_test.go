package host

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/module"
)

func TestTheSpecificationsModuleRuns(t *testing.T) {
	o := setup{wat: readTestdata(t, "spec.wat"), stdin: strings.NewReader("document")}.run(t)
	o.wants(t, 0, "").output(t, strings.Repeat("\x00", 100))
	if o.stderr != "" {
		t.Errorf("stderr is not quiet: %q", o.stderr)
	}
}

func TestMetadataIsLoggedAsJSONOnly(t *testing.T) {
	o := setup{wat: readTestdata(t, "spec.wat"), edit: func(d *hostdoc.Document) { d.LogFormat = "json" }}.run(t)
	var line struct {
		Level, Source, Agent, Instance, Msg string
		Exports                             map[string]int64
	}
	if err := json.Unmarshal([]byte(o.stderr), &line); err != nil {
		t.Fatalf("%q: %v", o.stderr, err)
	}
	if line.Exports["agent_version"] != 1 || line.Level != "debug" || line.Source != "host" || line.Agent != "test.agent" || line.Instance != "i1" {
		t.Errorf("got %+v", line)
	}
}

// Each function must be served, whatever type the table lets a module import.
func TestEveryFunctionOfTheTableIsServed(t *testing.T) {
	var b strings.Builder
	b.WriteString("(module\n")
	for _, f := range module.ABI {
		for _, typ := range f.Types {
			fmt.Fprintf(&b, "  (import %q %q (func", f.Module, f.Name)
			for _, p := range typ.Params {
				fmt.Fprintf(&b, " (param %s)", p)
			}
			for _, r := range typ.Results {
				fmt.Fprintf(&b, " (result %s)", r)
			}
			b.WriteString("))\n")
		}
	}
	b.WriteString(`(memory (export "memory") 1) (func (export "process") (result i32) i32.const 7))`)
	runWAT(t, b.String()).wants(t, 7, "")
	for _, f := range module.ABI {
		if f.Module == module.ModuleMentat && mentatFuncs[f.Name] == nil {
			t.Errorf("mentat.%s is not served", f.Name)
		}
		if f.Module == module.ModuleEnv && envFuncs[f.Name] == nil {
			t.Errorf("env.%s is not served", f.Name)
		}
	}
	if len(mentatFuncs) != 18 {
		t.Errorf("%d functions served, the ABI has 18", len(mentatFuncs))
	}
}

// One module may even use both forms: each import is linked by its own type.
func TestLogAndWriteOutputAreLinkedByTheImportsType(t *testing.T) {
	o := runWAT(t, agent(`
    (call $log (i32.const 0) (i32.const 3))
    (call $log_level (i32.const 3) (i32.const 3) (i32.const 3))
    (call $write_output_void (i32.const 0) (i32.const 3))
    (call $write_output (i32.const 3) (i32.const 3))`, `(data (i32.const 0) "onetwo")`))
	o.wants(t, 0, "").output(t, "onetwo")
	if want := "info  test.agent: one\nwarn  test.agent: two\n"; o.stderr != want {
		t.Errorf("logged %q, want %q", o.stderr, want)
	}
	for _, text := range []string{
		`(import "mentat" "log" (func (param i32)))`,
		`(import "mentat" "log" (func (param i32 i32) (result i32)))`,
		`(import "mentat" "write_output" (func (param i32 i32) (result i64)))`,
	} {
		_, err := Compile(wat(t, `(module `+text+` (memory (export "memory") 1) (func (export "process") (result i32) i32.const 0))`))
		if fault.ReasonOf(err) != fault.ModuleInvalid {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAbiVersionIsOneDotZero(t *testing.T) {
	runWAT(t, agent(`(i32.eq (call $abi_version) (i32.const 65536))`)).wants(t, 1, "")
}

func TestResultOfProcessIsTheStatus(t *testing.T) {
	for result, status := range map[int]int{0: 0, 1: 1, 77: 77, 255: 255, 256: 255, -1: 255, 1 << 30: 255} {
		runWAT(t, agent(fmt.Sprintf("(i32.const %d)", result))).wants(t, status, "")
	}
}

func TestInputSources(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 20_000) // over several chunks
	file := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(file, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	// Length first, then the bytes.
	echo := agent(`
    (local.set $n (call $read_input))
    (call $drain (i32.const 0))
    (i32.ne (i64.ne (call $size (i32.const 0)) (i64.extend_i32_s (local.get $n))) (i32.const 0))`)
	// Bytes only.
	stream := agent(`(call $drain (i32.const 0)) (i32.const 0)`)
	for name, u := range map[string]setup{
		"stdin":         {stdin: strings.NewReader(long)},
		"stdin by byte": {stdin: iotest.OneByteReader(strings.NewReader(long[:100]))},
		"no stdin":      {},
		"text":          {edit: func(d *hostdoc.Document) { d.Input = hostdoc.Input{Kind: hostdoc.InputText, Text: "hello"} }},
		"file":          {edit: func(d *hostdoc.Document) { d.Input = hostdoc.Input{Kind: hostdoc.InputFile, Path: file} }},
	} {
		want := map[string]string{"stdin by byte": long[:100], "no stdin": "", "text": "hello"}
		expect, ok := want[name]
		if !ok {
			expect = long
		}
		for form, text := range map[string]string{"length first": echo, "as a stream": stream} {
			t.Run(name+"/"+form, func(t *testing.T) {
				v := u
				v.wat = text
				if s, ok := u.stdin.(*strings.Reader); ok {
					s.Reset(long)
				} else if u.stdin != nil {
					v.stdin = iotest.OneByteReader(strings.NewReader(long[:100]))
				}
				v.run(t).wants(t, 0, "").output(t, expect)
			})
		}
	}
}

func TestReadInputGivesTheWholeLengthAtAnyTime(t *testing.T) {
	setup{stdin: iotest.OneByteReader(strings.NewReader("abcdef")), wat: agent(`
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 2)))
    (local.set $n (call $read_input))
    (call $drain (i32.const 0))
    (i32.add (i32.mul (local.get $n) (i32.const 10)) (call $read_input))`)}.run(t).wants(t, 66, "").output(t, "bcdef")
}

func TestSizeOfAStreamIsUnsupportedUntilItsEnd(t *testing.T) {
	setup{stdin: iotest.HalfReader(strings.NewReader("abc")), wat: agent(`
    (if (i64.ne (call $size (i32.const 0)) (i64.const -9)) (then (return (i32.const 1))))
    (call $drain (i32.const 0))
    (i32.wrap_i64 (call $size (i32.const 0)))`)}.run(t).wants(t, 3, "").output(t, "abc")
	setup{wat: agent(`(i32.wrap_i64 (call $size (i32.const 0)))`), edit: func(d *hostdoc.Document) {
		d.Input = hostdoc.Input{Kind: hostdoc.InputText, Text: "hello"}
	}}.run(t).wants(t, 5, "")
}

func TestInputOverItsLimitIsRefusedNotCut(t *testing.T) {
	small := func(d *hostdoc.Document) { d.Limits.InputBytes = 100 }
	text := func(d *hostdoc.Document) {
		small(d)
		d.Input = hostdoc.Input{Kind: hostdoc.InputText, Text: strings.Repeat("x", 101)}
	}
	whole := agent(`(i32.sub (i32.const 0) (call $read_input))`)
	stream := agent(`
    (loop $again
      (local.set $n (call $read (i32.const 0) (i32.const 0) (i32.const 64)))
      (br_if $again (i32.gt_s (local.get $n) (i32.const 0))))
    (i32.sub (i32.const 0) (local.get $n))`)
	for _, w := range []string{whole, stream} {
		setup{wat: w, stdin: strings.NewReader(strings.Repeat("x", 101)), edit: small}.run(t).wants(t, -codeLimit, "")
		setup{wat: w, edit: text}.run(t).wants(t, -codeLimit, "")
	}
	setup{wat: agent(`(call $read_input)`), stdin: strings.NewReader(strings.Repeat("x", 100)), edit: small}.run(t).wants(t, 100, "")
}

func TestInputThatFailsIsUnavailable(t *testing.T) {
	setup{stdin: &brokenReader{first: "abc"}, wat: agent(`
    (call $drain (i32.const 0))
    (i32.sub (i32.const 0) (call $read (i32.const 0) (i32.const 0) (i32.const 1)))`)}.run(t).wants(t, -codeUnavailable, "").output(t, "abc")
	o := setup{wat: agent(`(i32.const 0)`), edit: func(d *hostdoc.Document) {
		d.Input = hostdoc.Input{Kind: hostdoc.InputFile, Path: "/nonexistent/input"}
	}}.run(t)
	o.wants(t, fault.ExitHostFailure, fault.NotFound).says(t, "/nonexistent/input")
}

const bump = `
  (global $top (mut i32) (i32.const 1024))
  (func (export "mentat_alloc") (param $n i32) (result i32)
    (global.get $top)
    (global.set $top (i32.add (global.get $top) (local.get $n))))`

func TestReadInputPointerForm(t *testing.T) {
	text := agent(`
    (local.set $h (call $read_input))
    (call $write_output_void (local.get $h) (i32.add (i32.const 4) (i32.load (local.get $h))))
    ;; and once more, elsewhere
    (local.set $n (call $read_input))
    (call $write_output_void (i32.add (local.get $n) (i32.const 4)) (i32.load (local.get $n)))
    ;; the bytes still come through read, too
    (call $drain (i32.const 0))
    (i32.eq (local.get $h) (local.get $n))`, bump)
	setup{wat: text, stdin: strings.NewReader("hello")}.run(t).wants(t, 0, "").output(t, "\x05\x00\x00\x00hellohellohello")
	setup{wat: text}.run(t).wants(t, 0, "").output(t, "\x00\x00\x00\x00")
}

func TestReadInputPointerFormFailures(t *testing.T) {
	alloc := func(body string) string {
		return `(func (export "mentat_alloc") (param $n i32) (result i32) ` + body + `)`
	}
	run := func(body string) outcome {
		return setup{wat: agent(`(call $read_input)`, alloc(body)), stdin: strings.NewReader("hello")}.run(t)
	}
	run(`(i32.const 0)`).wants(t, 0, "")
	run(`(i32.const 65530)`).wants(t, fault.ExitTrap, fault.Trap).says(t, "outside of the guest's memory")
	run(`(i32.const -1)`).wants(t, fault.ExitTrap, fault.Trap).says(t, "outside of the guest's memory")
	run(`(unreachable)`).wants(t, fault.ExitTrap, fault.Trap).says(t, "unreachable code reached")
	run(`(drop (call $read_input)) (i32.const 8)`).wants(t, fault.ExitTrap, fault.Trap).says(t, "called from mentat_alloc")
	// The address is unsigned, and memory may grow under the host's feet.
	run(`(drop (memory.grow (i32.const 1))) (i32.const 65600)`).wants(t, 255, "")
	setup{
		wat:   agent(`(i32.add (i32.mul (call $read_input) (i32.const 100)) (i32.gt_s (call $last_error) (i32.const 0)))`, bump),
		stdin: strings.NewReader("too long"),
		edit:  func(d *hostdoc.Document) { d.Limits.InputBytes = 3 },
	}.run(t).wants(t, 1, "")
}

// outOfRange are pointer and length pairs that no guest of one page may use.
var outOfRange = []string{
	"(i32.const 65536) (i32.const 1)",
	"(i32.const 65535) (i32.const 2)",
	"(i32.const 0) (i32.const 65537)",
	"(i32.const 0) (i32.const -1)",
	"(i32.const -1) (i32.const 1)",
	"(i32.const -1) (i32.const -1)",
	"(i32.const 65537) (i32.const 0)",
	"(i32.const 0x80000000) (i32.const 0x80000000)",
}

func TestAPointerOutOfRangeTraps(t *testing.T) {
	ok := "(i32.const 0) (i32.const 0)"
	for name, format := range map[string]string{
		"read":               "(drop (call $read (i32.const 0) %s))",
		"read bad handle":    "(drop (call $read (i32.const 99) %s))",
		"write_output":       "(drop (call $write_output %s))",
		"write_output void":  "(call $write_output_void %s)",
		"set_error":          "(drop (call $set_error (i32.const 1) %s))",
		"log":                "(call $log %s)",
		"log with a level":   "(call $log_level (i32.const 2) %s)",
		"start_stream":       "(drop (call $start_stream %s))",
		"write_stream":       "(drop (call $write_stream (i32.const 1) %s))",
		"download_media":     "(drop (call $download_media %s))",
		"upload_media type":  "(drop (call $upload_media %s " + ok + "))",
		"upload_media":       "(drop (call $upload_media " + ok + " %s))",
		"record_metric":      "(drop (call $record_metric %s (i32.const 0) (f64.const 1) " + ok + "))",
		"record_metric attr": "(drop (call $record_metric " + ok + " (i32.const 0) (f64.const 1) %s))",
		"request name":       "(drop (call $request_capability %s " + ok + "))",
		"request args":       "(drop (call $request_capability " + ok + " %s))",
		"invoke op":          "(drop (call $invoke_capability (i32.const 1) %s " + ok + "))",
		"invoke request":     "(drop (call $invoke_capability (i32.const 1) " + ok + " %s))",
		"get_config":         "(drop (call $get_config %s))",
	} {
		t.Run(name, func(t *testing.T) {
			for _, span := range outOfRange {
				o := runWAT(t, agent(fmt.Sprintf(format, span)+" (i32.const 0)"))
				o.wants(t, fault.ExitTrap, fault.Trap).says(t, "outside of the guest's memory of 65536 bytes")
				o.output(t, "")
			}
		})
	}
}

func TestEmptySpansAtTheEndOfMemoryAreInRange(t *testing.T) {
	runWAT(t, agent(`
    (call $log (i32.const 65536) (i32.const 0))
    (i32.add (call $write_output (i32.const 65536) (i32.const 0))
             (call $read (i32.const 0) (i32.const 65536) (i32.const 0)))`)).wants(t, 0, "")
}

func TestAtMostSoManyHandlesAreOpen(t *testing.T) {
	// The input is one of them.
	runWAT(t, agent(fmt.Sprintf(`
    (local.set $n (i32.const 0))
    (drop (call $get_config (i32.const 0) (i32.const 1)))
    (loop $again
      (local.set $h (call $last_error))
      (if (i32.ge_s (local.get $h) (i32.const 0)) (then
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $again))))
    (if (i32.ne (local.get $h) (i32.const %d)) (then (return (i32.const 1))))
    (if (i32.ne (local.get $n) (i32.const %d)) (then (return (i32.const 2))))
    ;; one that is closed makes room for one
    (if (call $close (i32.const 7)) (then (return (i32.const 3))))
    (if (i32.lt_s (call $last_error) (i32.const 0)) (then (return (i32.const 4))))
    (if (i32.ne (call $last_error) (i32.const %[1]d)) (then (return (i32.const 5))))
    (i32.const 0)`, codeLimit, limits.Handles-1))).wants(t, 0, "")
}

func TestClosedAndUnknownHandles(t *testing.T) {
	runWAT(t, agent(`
    (drop (call $get_config (i32.const 0) (i32.const 1)))
    (local.set $h (call $last_error))
    (if (call $close (local.get $h)) (then (return (i32.const 1))))
    (if (call $close (local.get $h)) (then (return (i32.const 2)))) ;; idempotent
    (if (i32.ne (call $read (local.get $h) (i32.const 0) (i32.const 1)) (i32.const -8)) (then (return (i32.const 3))))
    (if (i64.ne (call $size (local.get $h)) (i64.const -8)) (then (return (i32.const 4))))
    (if (i32.ne (call $read (i32.const 200) (i32.const 0) (i32.const 1)) (i32.const -8)) (then (return (i32.const 5))))
    (if (i32.ne (call $read (i32.const -5) (i32.const 0) (i32.const 1)) (i32.const -8)) (then (return (i32.const 6))))
    (if (i32.ne (call $close (i32.const 200)) (i32.const -8)) (then (return (i32.const 7))))
    (if (i32.ne (call $close (i32.const -1)) (i32.const -8)) (then (return (i32.const 8))))
    ;; a handle is never given out twice
    (if (i32.eq (call $last_error) (local.get $h)) (then (return (i32.const 9))))
    ;; the input is a handle like others
    (if (call $close (i32.const 0)) (then (return (i32.const 10))))
    (if (i32.ne (call $read (i32.const 0) (i32.const 0) (i32.const 1)) (i32.const -8)) (then (return (i32.const 11))))
    (if (i32.ne (call $read_input) (i32.const -8)) (then (return (i32.const 12))))
    (i32.const 0)`)).wants(t, 0, "")
}

func TestReadStopsAtTheEnd(t *testing.T) {
	setup{stdin: strings.NewReader("abc"), wat: agent(`
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 0)))
    (if (i32.ne (call $read (i32.const 0) (i32.const 0) (i32.const 100)) (i32.const 3)) (then (return (i32.const 1))))
    (if (call $read (i32.const 0) (i32.const 0) (i32.const 100)) (then (return (i32.const 2))))
    (if (call $read (i32.const 0) (i32.const 0) (i32.const 100)) (then (return (i32.const 3))))
    (call $write_output (i32.const 0) (i32.const 4))`)}.run(t).wants(t, 0, "").output(t, "abc\x00")
}

func TestGetConfig(t *testing.T) {
	edit := func(d *hostdoc.Document) { d.Config = map[string]string{"model": "small", "": "empty"} }
	data := `(data (i32.const 0) "modelother")`
	setup{edit: edit, wat: agent(`
    (local.set $h (call $get_config (i32.const 0) (i32.const 5)))
    (call $drain (local.get $h))
    (if (i64.ne (call $size (local.get $h)) (i64.const 5)) (then (return (i32.const 1))))
    (call $drain (call $get_config (i32.const 0) (i32.const 0)))
    (i32.sub (i32.const 0) (call $get_config (i32.const 5) (i32.const 5)))`, data)}.run(t).wants(t, -codeNotFound, "").output(t, "smallempty")
}

func TestSetErrorMarksTheRunFailed(t *testing.T) {
	data := `(data (i32.const 0) "no such\nmodel")`
	o := runWAT(t, agent(`(call $set_error (i32.const 42) (i32.const 0) (i32.const 13))`, data))
	o.wants(t, 1, "").says(t, "(code 42)")
	if o.exit.Message != "no such model (code 42)" {
		t.Errorf("message %q", o.exit.Message)
	}
	runWAT(t, agent(`(drop (call $set_error (i32.const 42) (i32.const 0) (i32.const 7))) (i32.const 9)`, data)).wants(t, 9, "").says(t, "no such (code 42)")
	runWAT(t, agent(`(i32.sub (i32.const 0) (call $set_error (i32.const 1) (i32.const 0) (i32.const 9000)))`)).wants(t, -codeLimit, "")
	runWAT(t, agent(`(i32.sub (i32.const 0) (call $set_error (i32.const 1) (i32.const 0) (i32.const 1)))`, `(data (i32.const 0) "\ff")`)).wants(t, -codeInvalid, "")
}

// lastError runs code that leaves an error code on the stack and returns it
// with the detail.
func lastError(t *testing.T, edit func(*hostdoc.Document), code string, more ...string) (int, detail) {
	t.Helper()
	o := setup{edit: edit, wat: agent(`
    (local.set $n `+code+`)
    (call $drain (call $last_error))
    (i32.sub (i32.const 0) (local.get $n))`, more...)}.run(t)
	var d detail
	if err := json.Unmarshal([]byte(o.stdout), &d); err != nil {
		t.Fatalf("%q: %v", o.stdout, err)
	}
	if d.Code != int32(-o.exit.Status) || d.Reason == "" {
		t.Errorf("code %d, detail %+v", -o.exit.Status, d)
	}
	return -o.exit.Status, d
}

func TestWhatIsNotGrantedIsDeniedWithTheLineThatAsksForIt(t *testing.T) {
	data := `(data (i32.const 0) "network:https:*.openai.com")`
	code, d := lastError(t, nil, `(call $request_capability (i32.const 0) (i32.const 26) (i32.const 0) (i32.const 0))`, data)
	if code != codeDenied || d.Capability != "network:https:*.openai.com" || d.Rule == "" || !strings.Contains(d.Hint, "add to wasm.capabilities: - network:https:*.openai.com") {
		t.Errorf("%d, %+v", code, d)
	}
	// A grant is not denied; without a backend nothing serves it.
	code, _ = lastError(t, func(d *hostdoc.Document) { d.Grants = []hostdoc.Grant{{Capability: "network:https:*.openai.com"}} },
		`(call $request_capability (i32.const 0) (i32.const 26) (i32.const 0) (i32.const 0))`, data)
	if code != codeUnsupported {
		t.Errorf("%d", code)
	}
	for _, bad := range []string{`(i32.const 0) (i32.const 0)`, `(i32.const 40) (i32.const 2)`, `(i32.const 0) (i32.const 2000)`} {
		code, _ := lastError(t, nil, `(call $request_capability `+bad+` (i32.const 0) (i32.const 0))`, `(data (i32.const 40) "\ff\ff")`)
		if code != codeInvalid {
			t.Errorf("%s: %d", bad, code)
		}
	}
}

func TestLastErrorWithoutAnErrorIsNotFound(t *testing.T) {
	runWAT(t, agent(`(i32.sub (i32.const 0) (call $last_error))`)).wants(t, -codeNotFound, "")
}

func TestLogLinesCannotBeForged(t *testing.T) {
	data := `(data (i32.const 0) "a\nerror mentat: forged\1b[2J\e2\80\ae\ff")`
	o := runWAT(t, agent(`(call $log_level (i32.const 0) (i32.const 0) (i32.const 30)) (i32.const 0)`, data))
	if want := "trace test.agent: a\\nerror mentat: forged\\u001b[2J\\u202e\uFFFD\n"; o.stderr != want {
		t.Errorf("got  %q\nwant %q", o.stderr, want)
	}
	o = setup{edit: func(d *hostdoc.Document) { d.LogFormat = "json" }, wat: agent(`(call $log (i32.const 0) (i32.const 30)) (i32.const 0)`, data)}.run(t)
	var line logLine
	if err := json.Unmarshal([]byte(o.stderr), &line); err != nil || strings.Count(o.stderr, "\n") != 1 {
		t.Fatalf("%q: %v", o.stderr, err)
	}
	if line.Source != fromAgent || line.Level != "info" || !strings.HasPrefix(line.Message, "a\nerror") {
		t.Errorf("%+v", line)
	}
}

func TestLogLevelsAreClampedAndLinesCapped(t *testing.T) {
	o := runWAT(t, agent(`
    (call $log_level (i32.const -7) (i32.const 0) (i32.const 1))
    (call $log_level (i32.const 99) (i32.const 0) (i32.const 1))
    (drop (memory.grow (i32.const 2)))
    (memory.fill (i32.const 0) (i32.const 120) (i32.const 70000))
    (call $log (i32.const 0) (i32.const 70000))
    (i32.const 0)`, `(data (i32.const 0) "x")`))
	lines := strings.Split(strings.TrimSuffix(o.stderr, "\n"), "\n")
	if len(lines) != 3 || lines[0] != "trace test.agent: x" || lines[1] != "error test.agent: x" {
		t.Fatalf("got %q", lines)
	}
	if !strings.HasSuffix(lines[2], "x … (4464 bytes more)") || len(lines[2]) > limits.LogLineBytes+100 {
		t.Errorf("a line of %d bytes ends %q", len(lines[2]), lines[2][len(lines[2])-30:])
	}
}

func TestNoticesComeFirst(t *testing.T) {
	o := setup{edit: func(d *hostdoc.Document) { d.Notices = []string{"mount /x withheld\x1b"} },
		wat: agent(`(call $log (i32.const 0) (i32.const 1)) (i32.const 0)`, `(data (i32.const 0) "x")`)}.run(t)
	if o.stderr != "warn  mentat: mount /x withheld\\u001b\ninfo  test.agent: x\n" {
		t.Errorf("got %q", o.stderr)
	}
}

func TestOutputOverItsLimit(t *testing.T) {
	edit := func(d *hostdoc.Document) { d.Limits.OutputBytes = 5 }
	setup{edit: edit, wat: agent(`
    (drop (call $write_output (i32.const 0) (i32.const 3)))
    (i32.sub (i32.const 0) (call $write_output (i32.const 0) (i32.const 3)))`)}.run(t).wants(t, -codeLimit, "").output(t, "\x00\x00\x00")
	// Without a result a guest cannot learn it: a cut output must not look whole.
	setup{edit: edit, wat: agent(`
    (call $write_output_void (i32.const 0) (i32.const 3))
    (call $write_output_void (i32.const 0) (i32.const 3))
    (i32.const 0)`)}.run(t).wants(t, fault.ExitHostFailure, fault.ResourceLimit).says(t, "output limit")
}

func TestOutputThatNobodyReads(t *testing.T) {
	for _, err := range []error{syscall.EPIPE, io.ErrClosedPipe} {
		o := setup{stdout: brokenWriter{err}, wat: agent(`(loop $again (call $write_output_void (i32.const 0) (i32.const 3)) (br $again)) (i32.const 0)`)}.run(t)
		o.wants(t, 141, fault.Canceled)
	}
	setup{stdout: brokenWriter{errBroken}, wat: agent(`(call $write_output (i32.const 0) (i32.const 3))`)}.run(t).wants(t, fault.ExitHostFailure, fault.Unavailable).says(t, "broken")
}

func TestAssemblyScriptsImports(t *testing.T) {
	text := func(body string) string {
		return `(module
  (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
  (import "env" "trace" (func $trace (param i32 i32 f64 f64 f64 f64 f64)))
  (import "env" "seed" (func $seed (result f64)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\04\00\00\00h\00i\00")
  (data (i32.const 32) "\08\00\00\00a\00.\00t\00s\00")
  (func (export "process") (result i32) ` + body + `))`
	}
	o := runWAT(t, text(`(call $abort (i32.const 20) (i32.const 36) (i32.const 3) (i32.const 7)) (i32.const 0)`))
	o.wants(t, fault.ExitTrap, fault.Trap).says(t, "abort: hi at a.ts:3:7")
	for _, ptr := range []string{"0", "3", "-1", "65534", "65536"} {
		runWAT(t, text(`(call $abort (i32.const `+ptr+`) (i32.const `+ptr+`) (i32.const 3) (i32.const 7)) (i32.const 0)`)).wants(t, fault.ExitTrap, fault.Trap)
	}
	o = runWAT(t, text(`(call $trace (i32.const 20) (i32.const 2) (f64.const 1.5) (f64.const -2) (f64.const 0) (f64.const 0) (f64.const 0)) (i32.const 0)`))
	if o.wants(t, 0, ""); o.stderr != "trace test.agent: hi 1.5 -2\n" {
		t.Errorf("got %q", o.stderr)
	}
	runWAT(t, text(`(i32.or (f64.lt (call $seed) (f64.const 0)) (f64.eq (call $seed) (call $seed)))`)).wants(t, 0, "")
}
