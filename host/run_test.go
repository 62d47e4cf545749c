package host

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

func TestTrapsSayWhatHappenedAndWhere(t *testing.T) {
	for name, c := range map[string]struct{ code, more, says string }{
		"unreachable":      {`(unreachable)`, ``, "trap: unreachable code reached in $culprit"},
		"load":             {`(i32.load (i32.const 65533))`, ``, "trap: memory access out of bounds in $culprit"},
		"store far away":   {`(i32.store offset=0xffffffff (i32.const -1) (i32.const 0)) (i32.const 0)`, ``, "trap: memory access out of bounds in $culprit"},
		"bulk memory":      {`(memory.fill (i32.const 0) (i32.const 0) (i32.const -1)) (i32.const 0)`, ``, "trap: memory access out of bounds in $culprit"},
		"division":         {`(i32.div_s (i32.const 1) (local.get $n))`, ``, "trap: integer division by zero in $culprit"},
		"remainder":        {`(i32.rem_u (i32.const 1) (local.get $n))`, ``, "trap: integer division by zero in $culprit"},
		"integer overflow": {`(i32.div_s (i32.const 0x80000000) (i32.const -1))`, ``, "trap: integer overflow in $culprit"},
		"conversion":       {`(i32.trunc_f32_s (f32.const nan))`, ``, "trap: float has no integer value in $culprit"},
		"empty entry":      {`(call_indirect (result i32) (i32.const 1))`, `(table 2 funcref)`, "trap: indirect call of an empty table entry in $culprit"},
		"table bounds":     {`(call_indirect (result i32) (i32.const 9))`, `(table 2 funcref)`, "trap: table access out of bounds in $culprit"},
		"signature":        {`(call_indirect (result i32) (i32.const 0))`, `(table 2 funcref) (elem (i32.const 0) $f) (func $f)`, "trap: indirect call with another signature in $culprit"},
		"recursion":        {`(call $f (i32.const 1))`, `(func $f (param i32) (result i32) (i32.add (call $f (local.get 0)) (i32.const 1)))`, "trap: the call stack is exhausted in $f"},
		"host function":    {`(call $read (i32.const 0) (i32.const -1) (i32.const 1))`, ``, "outside of the guest's memory of 65536 bytes in $culprit"},
	} {
		t.Run(name, func(t *testing.T) {
			o := runWAT(t, agent(`(call $culprit)`, c.more, `(func $culprit (result i32) (local $n i32) `+c.code+`)`))
			o.wants(t, fault.ExitTrap, fault.Trap).says(t, strings.ReplaceAll(c.says, "$", ""))
			_, fn, _ := strings.Cut(c.says, " in $")
			if o.exit.Function != fn {
				t.Errorf("function %q, want %q", o.exit.Function, fn)
			}
			if strings.Count(o.stderr, "\n") != 1 || !strings.HasPrefix(o.stderr, "error mentat: ") {
				t.Errorf("stderr is not one line: %q", o.stderr)
			}
		})
	}
}

func TestTrapInAFunctionWithoutANameGivesItsIndex(t *testing.T) {
	o := runWAT(t, `(module (memory (export "memory") 1) (func unreachable) (func (export "process") (result i32) (call 0) (i32.const 0)))`)
	o.wants(t, fault.ExitTrap, fault.Trap).says(t, "in function 0")
}

func TestInitializeRunsOnceBeforeProcess(t *testing.T) {
	runWAT(t, agent(`(global.get $g)`, `(global $g (mut i32) (i32.const 5))
	  (func (export "_initialize") (global.set $g (i32.mul (global.get $g) (i32.const 3))))`)).wants(t, 15, "")
	runWAT(t, agent(`(i32.const 0)`, `(func $_initialize (export "_initialize") (unreachable))`)).wants(t, fault.ExitTrap, fault.Trap).says(t, "in _initialize")
}

func TestStartFunctionsMayUseTheHost(t *testing.T) {
	runWAT(t, agent(`(i32.const 0)`, `(func $s (drop (call $write_output (i32.const 0) (i32.const 2)))) (start $s) (data (i32.const 0) "hi")`)).wants(t, 0, "").output(t, "hi")
	runWAT(t, agent(`(i32.const 0)`, `(func $s (drop (call $write_output (i32.const -1) (i32.const 2)))) (start $s)`)).wants(t, fault.ExitTrap, fault.Trap)
	runWAT(t, agent(`(i32.const 0)`, `(func $s unreachable) (start $s)`)).wants(t, fault.ExitTrap, fault.Trap)
}

func TestEntryFollowsTheDocumentElseTheExports(t *testing.T) {
	both := `(module (memory (export "memory") 1) (func (export "process") (result i32) i32.const 3) (func (export "_start") unreachable))`
	run := func(text, entry string) outcome {
		return setup{wat: text, edit: func(d *hostdoc.Document) { d.Entry = entry }}.run(t)
	}
	run(both, "").wants(t, 3, "")
	run(both, hostdoc.EntryProcess).wants(t, 3, "")
	run(both, hostdoc.EntryCommand).wants(t, fault.ExitTrap, fault.Trap)
	command := `(module (memory (export "memory") 1) (func (export "_start")))`
	run(command, "").wants(t, 0, "")
	run(command, hostdoc.EntryProcess).wants(t, fault.ExitDenied, fault.ModuleInvalid).says(t, "does not export process")
}

// The limit is 8 MiB, 128 pages.
func TestMemoryBeyondTheLimitIsRefused(t *testing.T) {
	grow := func(body string) string {
		return `(module (memory (export "memory") 1) (func (export "process") (result i32) ` + body + `))`
	}
	// A guest that copes goes on.
	runWAT(t, grow(`(i32.add (i32.eq (memory.grow (i32.const 127)) (i32.const 1)) (i32.eq (memory.grow (i32.const 1)) (i32.const -1))) (drop) (i32.const 0)`)).wants(t, 0, "")
	// One that aborts is reported for what it is, however much it asked for.
	for _, pages := range []string{"128", "65535", "60000"} {
		o := runWAT(t, grow(`(if (i32.eq (memory.grow (i32.const `+pages+`)) (i32.const -1)) (then unreachable)) (i32.const 0)`))
		o.wants(t, fault.ExitOutOfMemory, fault.OutOfMemory).says(t, "out of memory: more than 8388608 bytes were refused, then trap: unreachable code reached")
	}
	// Step by step.
	runWAT(t, grow(`(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable`)).wants(t, fault.ExitOutOfMemory, fault.OutOfMemory)
	// Its own status passes through with the reason.
	runWAT(t, grow(`(drop (memory.grow (i32.const 1000))) (i32.const 2)`)).wants(t, 2, fault.OutOfMemory)
	// A trap that has nothing to do with memory stays one.
	runWAT(t, grow(`(drop (memory.grow (i32.const 100))) unreachable`)).wants(t, fault.ExitTrap, fault.Trap)
	// Memory that was given can be used to its end, and not beyond.
	runWAT(t, grow(`(drop (memory.grow (i32.const 127))) (i32.store (i32.const 8388604) (i32.const 42)) (i32.load (i32.const 8388604))`)).wants(t, 42, "")
	runWAT(t, grow(`(drop (memory.grow (i32.const 127))) (i32.load (i32.const 8388605))`)).wants(t, fault.ExitTrap, fault.Trap)
}

func TestAModuleThatNeedsMoreThanItGetsDoesNotStart(t *testing.T) {
	o := runWAT(t, `(module (memory (export "memory") 129) (func (export "process") (result i32) unreachable))`)
	o.wants(t, fault.ExitHostFailure, fault.ResourceLimit).says(t, "needs more memory to start than its limit of 8388608 bytes")
	runWAT(t, `(module (memory (export "memory") 1) (table 1 funcref) (table 1 funcref) (table 1 funcref) (func (export "process") (result i32) unreachable))`).wants(t, fault.ExitHostFailure, fault.ResourceLimit)
	runWAT(t, `(module (memory (export "memory") 1) (table $t 1 funcref) (func (export "process") (result i32) (i32.sub (i32.const 0) (table.grow $t (ref.null func) (i32.const 1000000)))))`).wants(t, 1, "")
}

// A run whose end depends on time is given so little of it that only its order
// matters; the guests in question would run or wait for ever.
func brief(d *hostdoc.Document) { d.Limits.DeadlineMillis = 30 }

func TestDeadlineEndsABusyGuest(t *testing.T) {
	for name, body := range map[string]string{
		"loop":       `(loop $again (br $again)) (i32.const 0)`,
		"calls":      `(loop $again (drop (call $abi_version)) (br $again)) (i32.const 0)`,
		"in read":    `(loop $again (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1))) (br $again)) (i32.const 0)`,
		"memory":     `(loop $again (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536)) (br $again)) (i32.const 0)`,
		"initialize": `(i32.const 0)`,
	} {
		t.Run(name, func(t *testing.T) {
			more := ""
			if name == "initialize" {
				more = `(func (export "_initialize") (loop $again (br $again)))`
			}
			o := setup{wat: agent(body, more), edit: brief}.run(t)
			o.wants(t, fault.ExitDeadline, fault.Deadline).says(t, "the deadline of 30 ms passed")
		})
	}
}

func TestDeadlineEndsAGuestThatWaitsForInput(t *testing.T) {
	for _, body := range []string{
		`(call $read (i32.const 0) (i32.const 0) (i32.const 1))`,
		`(call $read_input)`,
		`(loop $again (drop (call $read_input)) (br $again)) (i32.const 0)`,
	} {
		// No code reaches the guest: with one it could still end as it likes.
		setup{wat: agent(body), stdin: blocked(t), edit: brief}.run(t).wants(t, fault.ExitDeadline, fault.Deadline)
	}
}

func TestARunWithinItsDeadlineIsNotDisturbed(t *testing.T) {
	setup{wat: agent(`(call $drain (i32.const 0)) (i32.const 4)`), stdin: strings.NewReader("in"), edit: func(d *hostdoc.Document) {
		d.Limits.DeadlineMillis = int64(time.Hour / time.Millisecond)
	}}.run(t).wants(t, 4, "").output(t, "in")
}

// Other runs of the process share the engine's clock.
func TestOneRunsDeadlineDoesNotEndAnother(t *testing.T) {
	done := make(chan outcome)
	text := agent(`
    (loop $again
      (local.set $n (call $read (i32.const 0) (i32.const 0) (i32.const 1)))
      (br_if $again (local.get $n)))
    (i32.const 9)`)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() { done <- setup{wat: text, stdin: r}.run(t) }()
	for range 3 {
		setup{wat: agent(`(loop $again (br $again)) (i32.const 0)`), edit: brief}.run(t).wants(t, fault.ExitDeadline, fault.Deadline)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	(<-done).wants(t, 9, "")
}

func TestCancelledRuns(t *testing.T) {
	// What waits is told, and may end properly.
	setup{cause: Signal(syscall.SIGTERM), stdin: blocked(t), wat: agent(`
    (local.set $n (call $read (i32.const 0) (i32.const 0) (i32.const 1)))
    (drop (call $write_output (i32.const 0) (i32.const 3)))
    (i32.sub (i32.const 0) (local.get $n))`, `(data (i32.const 0) "bye")`)}.run(t).wants(t, -codeCanceled, "").output(t, "bye")
	if testing.Short() {
		t.Skip("the drain time of the rest is seconds")
	}
	for _, c := range []struct {
		cause  error
		status int
		says   string
	}{{Signal(syscall.SIGTERM), 143, "SIGTERM"}, {Signal(syscall.SIGINT), 130, "SIGINT"}, {errBroken, 143, "from outside"}} {
		t.Run(c.says, func(t *testing.T) {
			t.Parallel()
			setup{cause: c.cause, wat: agent(`(loop $again (br $again)) (i32.const 0)`)}.run(t).wants(t, c.status, fault.Canceled).says(t, c.says)
		})
	}
}

func TestExitAndTerminationAreWrittenInPlace(t *testing.T) {
	dir := t.TempDir()
	exit, termination := filepath.Join(dir, "exit.json"), filepath.Join(dir, "termination")
	for _, path := range []string{exit, termination} {
		if err := os.WriteFile(path, []byte(strings.Repeat("old", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(exit)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(d *hostdoc.Document) { d.ExitFile, d.Termination = exit, termination }
	o := setup{edit: edit, wat: agent(`(unreachable)`)}.run(t).wants(t, fault.ExitTrap, fault.Trap)
	data, err := os.ReadFile(exit)
	if err != nil {
		t.Fatal(err)
	}
	var got hostdoc.Exit
	if err := json.Unmarshal(data, &got); err != nil || got != o.exit || got.Version != hostdoc.Version {
		t.Errorf("%q: %v", data, err)
	}
	if after, err := os.Stat(exit); err != nil || !os.SameFile(before, after) {
		t.Error("the exit file was replaced")
	}
	if line, err := os.ReadFile(termination); err != nil || string(line) != o.exit.Message+"\n" {
		t.Errorf("%q: %v", line, err)
	}
	// A run that ends well says so, and has no reason to terminate.
	if err := os.Remove(termination); err != nil {
		t.Fatal(err)
	}
	setup{edit: edit, wat: agent(`(i32.const 0)`)}.run(t).wants(t, 0, "")
	if data, err := os.ReadFile(exit); err != nil || string(data) != fmt.Sprintf(`{"version":%d,"status":0}`+"\n", hostdoc.Version) {
		t.Errorf("%q: %v", data, err)
	}
	if _, err := os.Stat(termination); err == nil {
		t.Error("a termination message for a success")
	}
	// The agent's status is its own, also when it cannot be reported.
	o = setup{wat: agent(`(i32.const 3)`), edit: func(d *hostdoc.Document) { d.ExitFile = "/nonexistent/exit" }}.run(t).wants(t, 3, "")
	if !strings.Contains(o.stderr, "/nonexistent/exit: cannot report the exit") {
		t.Errorf("stderr %q", o.stderr)
	}
}

func TestCompiledModulesThatCannotBeLoaded(t *testing.T) {
	good, err := os.ReadFile(compiled(t, agent(`(i32.const 0)`)))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":     {},
		"wasm":      wat(t, agent(`(i32.const 0)`)),
		"truncated": good[:len(good)/2],
		"version":   bytes.Replace(good, []byte("39.0.0"), []byte("38.0.0"), 1),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "version" && bytes.Equal(data, good) {
				// The engine stamps its major version only: the cache's key has the rest.
				data = bytes.Replace(good, []byte("\x0239"), []byte("\x0238"), 1)
			}
			path := filepath.Join(t.TempDir(), "m.cwasm")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(data, good) {
				t.Skip("no version found to change")
			}
			setup{wat: agent(`(i32.const 0)`), edit: func(d *hostdoc.Document) { d.Module = path }}.run(t).wants(t, fault.ExitHostFailure, fault.Internal).says(t, "cannot load the compiled module")
		})
	}
	setup{wat: agent(`(i32.const 0)`), edit: func(d *hostdoc.Document) { d.Module = "/nonexistent/m" }}.run(t).wants(t, fault.ExitHostFailure, fault.Internal).says(t, "missing")
}

func TestCompileRefuses(t *testing.T) {
	native, err := Compile(wat(t, agent(`(i32.const 0)`)))
	if err != nil {
		t.Fatal(err)
	}
	entry := `(memory (export "memory") 1) (func (export "process") (result i32) i32.const 0)`
	for name, c := range map[string]struct {
		wasm []byte
		says string
	}{
		"empty":            {nil, ""},
		"native code":      {native, ""},
		"text":             {[]byte("(module)"), ""},
		"unknown imports":  {wat(t, `(module (import "mentat" "exec" (func)) (import "env" "x" (func)) `+entry+`)`), "env.x, mentat.exec"},
		"no entry":         {wat(t, `(module (memory (export "memory") 1))`), "process"},
		"no memory":        {wat(t, `(module (func (export "process") (result i32) i32.const 0))`), "memory"},
		"type error":       {append(wat(t, `(module `+entry+`)`)[:0:0], badBody(t, entry)...), ""},
		"memory64":         {wat(t, `(module (memory (export "memory") i64 1) (func (export "process") (result i32) i32.const 0))`), ""},
		"threads":          {wat(t, `(module (memory (export "memory") 1 1 shared) (func (export "process") (result i32) i32.const 0))`), ""},
		"multi-memory":     {wat(t, `(module (memory 1) `+entry+`)`), ""},
		"gc":               {wat(t, `(module (type (struct)) `+entry+`)`), ""},
		"relaxed simd":     {wat(t, `(module (memory (export "memory") 1) (func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1))) (func (export "process") (result i32) i32.const 0))`), ""},
		"exceptions":       {wat(t, `(module (tag) `+entry+`)`), ""},
		"function refs":    {wat(t, `(module (type $t (func)) (func (param (ref $t)) (call_ref $t (local.get 0))) `+entry+`)`), ""},
		"wide arithmetic":  {wat(t, `(module (func (param i64 i64) (result i64 i64) (i64.mul_wide_s (local.get 0) (local.get 1))) `+entry+`)`), ""},
		"custom page size": {wat(t, `(module (memory (export "memory") 1 (pagesize 1)) (func (export "process") (result i32) i32.const 0))`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(c.wasm)
			if fault.ReasonOf(err) != fault.ModuleInvalid {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q lacks %q", err, c.says)
			}
		})
	}
	for name, text := range map[string]string{
		"simd":            `(func (result v128) (i32x4.splat (i32.const 1)))`,
		"tail calls":      `(func $f (return_call $f))`,
		"reference types": `(table 1 externref)`,
		"multi-value":     `(func (result i32 i32) i32.const 1 i32.const 2)`,
	} {
		if _, err := Compile(wat(t, `(module `+entry+text+`)`)); err != nil {
			t.Errorf("%s must be allowed: %v", name, err)
		}
	}
}

// badBody is a module that reads well and does not validate.
func badBody(t *testing.T, entry string) []byte {
	wasm := wat(t, `(module `+entry+`)`)
	at := bytes.LastIndex(wasm, []byte{0x41, 0x00, 0x0b}) // i32.const 0, end
	if at < 0 {
		t.Fatal("no such code")
	}
	wasm[at] = 0x42 // i64.const
	return wasm
}

func TestTheEngineRefusesArm64(t *testing.T) {
	for _, c := range []struct {
		arch, override string
		ok             bool
	}{{"amd64", "", true}, {"arm64", "", false}, {"arm64", "yes", false}, {"arm64", "1", true}, {"riscv64", "1", false}} {
		if err := checkArch(c.arch, c.override); (err == nil) != c.ok || err != nil && fault.ReasonOf(err) != fault.Unsupported {
			t.Errorf("%s with %q: %v", c.arch, c.override, err)
		}
	}
}

func TestAPanicOfTheHostIsAFailureOfTheHost(t *testing.T) {
	mentatFuncs["get_config"] = func(*call) bool { panic("a bug") }
	defer func() { mentatFuncs["get_config"] = getConfig }()
	runWAT(t, agent(`(call $get_config (i32.const 0) (i32.const 0))`)).wants(t, fault.ExitHostFailure, fault.Internal).says(t, "a bug")
}

func TestManyRunsLeaveNothingBehind(t *testing.T) {
	text := agent(`(drop (memory.grow (i32.const 63))) (i32.store (i32.const 4000000) (i32.const 1)) (i32.const 0)`)
	mappings := func() int {
		data, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(data, []byte("\n"))
	}
	fds := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	runWAT(t, text).wants(t, 0, "")
	maps, open := mappings(), fds()
	for range 50 {
		runWAT(t, text).wants(t, 0, "")
	}
	// The Go runtime maps what it likes, but not one range per run.
	if now := mappings(); now > maps+25 {
		t.Errorf("%d mappings, were %d", now, maps)
	}
	if now := fds(); now > open {
		t.Errorf("%d descriptors, were %d", now, open)
	}
}
