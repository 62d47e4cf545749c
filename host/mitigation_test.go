package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// What the engine has off it refuses itself, with its own words for that: the
// reader in front of it is not the only one who would.
func TestTheEngineRefusesWhatIsOff(t *testing.T) {
	e, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, says string }{
		"threads":             {`(module (memory 1 1 shared))`, "threads must be enabled"},
		"atomic instructions": {`(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))`, "threads support is not enabled"},
		"memory64":            {`(module (memory i64 1))`, "memory64 must be enabled"},
		"table64":             {`(module (table i64 1 funcref))`, "memory64 must be enabled"},
		"multiple memories":   {`(module (memory 1) (memory 1))`, "multiple memories"},
		"structures":          {`(module (type (struct)))`, "without the gc feature"},
		"garbage collection":  {`(module (func (drop (ref.i31 (i32.const 1)))))`, "gc support is not enabled"},
		"function references": {`(module (type $t (func)) (func (param (ref $t)) (call_ref $t (local.get 0))))`, "function references required"},
		"relaxed SIMD":        {`(module (func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1))))`, "relaxed SIMD support is not enabled"},
		"custom page sizes":   {`(module (memory 1 (pagesize 1)))`, "custom page sizes proposal must be enabled"},
		"exceptions":          {`(module (tag))`, "exceptions proposal not enabled"},
		"try blocks":          {`(module (func try_table end))`, "exceptions support is not enabled"},
		"wide arithmetic":     {`(module (func (param i64 i64) (result i64 i64) (i64.mul_wide_s (local.get 0) (local.get 1))))`, "wide arithmetic support is not enabled"},
		"stack switching":     {`(module (type $f (func)) (type $c (cont $f)) (func (param (ref $c))))`, "stack switching is disabled"},
		"components":          {`(component)`, "component model feature is not enabled"},
	} {
		module := wat(t, c.text)
		if err := e.Validate(module); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: the engine says %v, want %q", name, err, c.says)
		}
		if _, err := Compile(module); fault.ReasonOf(err) != fault.ModuleInvalid {
			t.Errorf("%s: compiled, or %v", name, err)
		}
	}
}

// section is one of a module's.
func section(id byte, content []byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(content))), content...)
}

// agentWith is a module whose process has so many bytes of code, and with as many
// more functions that do nothing.
func agentWith(body, functions int) []byte {
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, []byte{1, 0x60, 0, 1, 0x7f})...)
	m = append(m, section(3, append(binary.AppendUvarint(nil, uint64(functions+1)), make([]byte, functions+1)...))...)
	m = append(m, section(5, []byte{1, 0, 1})...)
	m = append(m, section(7, []byte("\x02\x06memory\x02\x00\x07process\x00\x00"))...)
	code := binary.AppendUvarint(nil, uint64(functions+1))
	nothing := []byte{0, 0x41, 0, 0x0b} // no locals, i32.const 0, end
	code = binary.AppendUvarint(code, uint64(body))
	code = append(code, 0)
	code = append(code, bytes.Repeat([]byte{0x01}, body-len(nothing))...) // nop
	code = append(code, nothing[1:]...)
	for range functions {
		code = append(code, byte(len(nothing)))
		code = append(code, nothing...)
	}
	return append(m, section(10, code)...)
}

// The engine's flaws of large functions (GHSA-897f) begin far above what a
// compiler makes, and modules that are all size are no agents.
func TestModulesOverTheCapsAreNotCompiled(t *testing.T) {
	if _, err := Compile(agentWith(4096, 2)); err != nil {
		t.Fatalf("the control: %v", err)
	}
	if _, err := Compile(agentWith(limits.FunctionBodyBytes, 0)); err != nil {
		t.Errorf("a body of the largest size: %v", err)
	}
	table := func(n int) string {
		return fmt.Sprintf(`(module (table %d funcref) (memory (export "memory") 1) (func (export "process") (result i32) (i32.const 0)))`, n)
	}
	if _, err := Compile(wat(t, table(limits.TableElements))); err != nil {
		t.Errorf("a table of the largest size: %v", err)
	}
	large := agentWith(4096, 2)
	for name, c := range map[string]struct {
		module []byte
		says   string
	}{
		"a function body": {agentWith(limits.FunctionBodyBytes+1, 0), "function 0 has 1048577 bytes, at most 1048576"},
		"functions":       {agentWith(4096, limits.ModuleFunctions), "functions, at most 200000"},
		"a module":        {append(large, section(0, append([]byte("\x01x"), make([]byte, limits.ModuleBytes)...))...), "at most 67108864"},
		"a table":         {wat(t, table(limits.TableElements+1)), "a table of 1000001 elements"},
	} {
		if _, err := Compile(c.module); fault.ReasonOf(err) != fault.ModuleInvalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestTablesEndAtTheirLimit(t *testing.T) {
	grow := func(tables int, body string) string {
		return agent(body, strings.Repeat(`(table 0 funcref)`, tables))
	}
	most := strconv.Itoa(limits.TableElements)
	runWAT(t, grow(2, `(table.grow 0 (ref.null func) (i32.const `+most+`))`)).wants(t, 0, "")
	// -1, whose lowest byte is the status.
	runWAT(t, grow(2, `(drop (table.grow 0 (ref.null func) (i32.const `+most+`))) (table.grow 0 (ref.null func) (i32.const 1))`)).wants(t, 255, "")
	runWAT(t, grow(2, `(table.grow 1 (ref.null func) (i32.const 0x7fffffff))`)).wants(t, 255, "")
	runWAT(t, grow(3, `(i32.const 0)`)).wants(t, fault.ExitHostFailure, fault.ResourceLimit)
}

// Without explicit checks an access past the memory's end must meet pages that
// nobody may touch, wherever 32 bits of address and 32 of offset lead, and before
// its beginning (GHSA-6wgr is of memories without them).
func TestAroundAMemoryNothingCanBeTouched(t *testing.T) {
	const guard, reach = 32 << 20, 4<<30 + 32<<20
	var problem string
	mentatFuncs["get_config"] = func(c *call) bool {
		base := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(c.memory))))
		problem = open(base-guard, base) + open(base+uint64(len(c.memory)), base+reach)
		return true
	}
	defer func() { mentatFuncs["get_config"] = getConfig }()
	runWAT(t, agent(`(drop (call $get_config (i32.const 0) (i32.const 0))) (i32.const 7)`)).wants(t, 7, "")
	if problem != "" {
		t.Errorf("%s", problem)
	}
	for name, code := range map[string]string{
		"just past the end":     `(i32.load (i32.const 65533))`,
		"at the end of 32 bits": `(i32.load (i32.const -1))`,
		"with an offset":        `(i32.load offset=4294967295 (i32.const 0))`,
		"with both":             `(i32.load offset=4294967295 (i32.const -1))`,
		"a store":               `(i64.store offset=4294967288 (i32.const -1) (i64.const 1)) (i32.const 0)`,
		"a vector":              `(drop (v128.load offset=4294967280 (i32.const -16))) (i32.const 0)`,
		"a copy":                `(memory.copy (i32.const 65530) (i32.const 0) (i32.const 7)) (i32.const 0)`,
		"a fill":                `(memory.fill (i32.const 1) (i32.const 0) (i32.const -1)) (i32.const 0)`,
	} {
		t.Run(name, func(t *testing.T) {
			runWAT(t, `(module (memory (export "memory") 1 1) (func (export "process") (result i32) `+code+`))`).
				wants(t, fault.ExitTrap, fault.Trap).says(t, "memory access out of bounds")
		})
	}
}

// open says what of a stretch of addresses is not closed to everybody.
func open(from, to uint64) string {
	data, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err.Error()
	}
	at := from
	for line := range strings.Lines(string(data)) {
		var first, last uint64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &first, &last, &rights); err != nil {
			return err.Error()
		}
		if last <= at || first >= to {
			continue
		}
		if first > at {
			return fmt.Sprintf("nothing is reserved at %#x; ", at)
		}
		if !strings.HasPrefix(rights, "---") {
			return fmt.Sprintf("%#x to %#x is %s; ", first, last, rights)
		}
		at = last
	}
	if at < to {
		return fmt.Sprintf("nothing is reserved at %#x; ", at)
	}
	return ""
}

func TestOneEngineServesTheProcess(t *testing.T) {
	a, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := shared(); a != b {
		t.Error("there are two engines")
	}
}

// What is not declared cannot be called: the parts of the library whose flaws
// are the newest, and those that would bring a second way to do what is done.
func TestTheBindingHasNoneOfTheEnginesOtherParts(t *testing.T) {
	header, err := os.ReadFile("internal/engine/wasmtime_abi.h")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`\b(?:wasmtime|wasm|wasi)_[a-z0-9_]+\(`).FindAllString(string(header), -1)
	if len(declared) < 50 {
		t.Fatalf("only %d functions found", len(declared))
	}
	for _, name := range declared {
		for _, part := range []string{"async", "pooling", "component", "cache_config", "profiler", "sharedmemory", "anyref", "eqref", "structref", "arrayref", "wat2wasm", "wasi"} {
			if strings.Contains(name, part) && name != "wasmtime_config_wasm_component_model_set(" {
				t.Errorf("%s) is declared", name)
			}
		}
	}
}

// A store in which a guest trapped is never entered again, and its memory is
// nobody's any more.
func TestNothingOfATrappedRunIsSeenByTheNext(t *testing.T) {
	p := load1(t, document(t, agent(`
    (if (i32.or (global.get $g) (i32.load (i32.const 4096))) (then (return (i32.const 9))))
    (global.set $g (i32.const 1))
    (i32.store (i32.const 4096) (i32.const 1))
    (unreachable)`, `(global $g (mut i32) (i32.const 0))`)), Options{})
	for range 5 {
		if exit, _ := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != fault.ExitTrap {
			t.Errorf("%+v", exit)
		}
	}
}
