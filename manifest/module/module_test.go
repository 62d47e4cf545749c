package module

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// The builder: small functions that put binary modules together.

const header = "\x00asm\x01\x00\x00\x00"

func leb(n int) string {
	var out []byte
	for ; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return string(append(out, byte(n)))
}

func str(s string) string { return leb(len(s)) + s }

func vec(items ...string) string { return leb(len(items)) + strings.Join(items, "") }

func sec(id byte, content string) string { return string(id) + str(content) }

func mod(sections ...string) []byte { return []byte(header + strings.Join(sections, "")) }

// fn spells a function type in the shorthand of the ABI table.
func fn(shorthand string) string {
	t := function("", "", []string{shorthand}).Types[0]
	out := "\x60" + leb(len(t.Params))
	for _, v := range t.Params {
		out += string(rune(v))
	}
	out += leb(len(t.Results))
	for _, v := range t.Results {
		out += string(rune(v))
	}
	return out
}

func types(shorthands ...string) string {
	all := make([]string, len(shorthands))
	for i, s := range shorthands {
		all[i] = fn(s)
	}
	return sec(1, vec(all...))
}

func imp(module, name string, typ int) string { return str(module) + str(name) + "\x00" + leb(typ) }

func exp(name string, kind Kind, index int) string {
	return str(name) + string(byte(kind)) + leb(index)
}

const (
	onePage   = "\x00\x01" // no maximum
	nop       = "\x02\x00\x0b"
	zero      = "\x04\x00\x41\x00\x0b" // i32.const 0
	memory    = "\x05\x03\x01" + onePage
	exportMem = "\x06memory\x02\x00"
)

// agent is the module of the specification, §1.2.
func agent() []byte {
	return mod(
		types(":i", "ii:"),
		sec(2, vec(imp("mentat", "read_input", 0), imp("mentat", "write_output", 1), imp("mentat", "log", 1))),
		sec(3, vec("\x00")),
		sec(5, vec("\x01\x01\x64")),
		sec(6, vec("\x7f\x00\x41\x01\x0b")),
		sec(7, vec(exp("memory", KindMemory, 0), exp("process", KindFunc, 3), exp("agent_version", KindGlobal, 0))),
		sec(10, vec(str("\x00\x10\x00\x1a\x41\x00\x41\xe4\x00\x10\x01\x41\x00\x0b"))),
		sec(0, str("name")+"\x00\x00"),
	)
}

func TestTheSpecificationsModuleIsAnAgent(t *testing.T) {
	data := agent()
	i, err := Inspect(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Check(); err != nil {
		t.Fatal(err)
	}
	if i.Entry != hostdoc.EntryProcess || i.Reactor || i.MemoryMinPages != 1 || i.MemoryMaxPages != 100 || i.Memories != 1 ||
		i.Functions != 1 || i.LargestBody != 14 || i.Size != int64(len(data)) || !reflect.DeepEqual(i.Globals, map[string]int64{"agent_version": 1}) {
		t.Errorf("%+v", i)
	}
	want := Import{Module: "mentat", Name: "log", Type: FuncType{Params: []ValType{I32, I32}, Results: []ValType{}}}
	if len(i.Imports) != 3 || !reflect.DeepEqual(i.Imports[2], want) {
		t.Errorf("%+v", i.Imports)
	}
	if len(i.Exports) != 3 || i.Exports[1].Name != "process" || i.Exports[1].Type.String() != "() -> (i32)" {
		t.Errorf("%+v", i.Exports)
	}
}

func TestEntryAndMetadataAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		data    []byte
		entry   string
		reactor bool
		globals map[string]int64
	}{
		"command": {mod(types(":"), sec(3, vec("\x00")), memory, sec(7, vec(exportMem, exp("_start", KindFunc, 0))), sec(10, vec(nop))), hostdoc.EntryCommand, false, nil},
		"reactor": {mod(types(":", ":i"), sec(3, vec("\x00", "\x01")), memory,
			sec(7, vec(exportMem, exp("_initialize", KindFunc, 0), exp("process", KindFunc, 1), exp("_start", KindFunc, 0))), sec(10, vec(nop, zero))), hostdoc.EntryProcess, true, nil},
		"globals": {mod(types(":i"), sec(3, vec("\x00")), memory, sec(6, vec(
			"\x7f\x00\x41\x7f\x0b", // -1
			"\x7e\x00\x42\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f\x0b", // the least i64
			"\x7f\x01\x41\x05\x0b",             // may change
			"\x7d\x00\x43\x00\x00\x80\x3f\x0b", // f32
			"\x7c\x00\x44\x00\x00\x00\x00\x00\x00\x00\x00\x0b",
			"\x7f\x00\x23\x00\x0b",                 // from another global
			"\x70\x00\xd0\x70\x0b",                 // ref.null
			"\x7f\x00\x41\x01\x41\x02\x6a\x0b",     // 1 + 2
			"\x7b\x00\xfd\x0c0123456789abcdef\x0b", // v128
		)), sec(7, vec(exportMem, exp("process", KindFunc, 0), exp("a", KindGlobal, 0), exp("b", KindGlobal, 1), exp("c", KindGlobal, 2), exp("d", KindGlobal, 3),
			exp("e", KindGlobal, 5), exp("f", KindGlobal, 7))), sec(10, vec(zero))), hostdoc.EntryProcess, false, map[string]int64{"a": -1, "b": -1 << 63}},
		"no maximum beside one": {mod(types(":i"), sec(3, vec("\x00")), memory, sec(7, vec(exportMem, exp("process", KindFunc, 0))), sec(10, vec(zero))), hostdoc.EntryProcess, false, nil},
		"every section": {mod(types(":i", ":"), sec(2, vec(imp("env", "seed", 0))), sec(3, vec("\x00")), sec(4, vec("\x70\x00\x01")), memory, sec(13, vec("\x00\x01")),
			sec(6, vec("\x7f\x00\x41\x01\x0b")), sec(7, vec(exportMem, exp("process", KindFunc, 1), exp("t", KindTable, 0), exp("e", KindTag, 0))), sec(8, "\x00"), sec(9, "\x00"), sec(12, "\x00"), sec(10, vec(zero)), sec(11, "\x00")),
			hostdoc.EntryProcess, false, nil},
	} {
		i, err := Inspect(c.data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.globals == nil {
			c.globals = map[string]int64{}
		}
		if i.Entry != c.entry || i.Reactor != c.reactor || !reflect.DeepEqual(i.Globals, c.globals) {
			t.Errorf("%s: %+v", name, i)
		}
	}
}

func TestInspectSaysWhatTheDataIsInstead(t *testing.T) {
	elf := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 60)
	for name, c := range map[string]struct{ data, want string }{
		"empty":            {"", "the module is empty"},
		"header cut":       {"\x00as", "truncated in its header"},
		"header cut later": {header[:6], "truncated in its header"},
		"header malformed": {"\x00asm\x02", "header is malformed"},
		"component":        {"\x00asm\x0d\x00\x01\x00", "a WebAssembly component, only core modules run (build for wasm32-wasip1"},
		"version 2":        {"\x00asm\x02\x00\x00\x00", "WebAssembly version 2, only version 1 runs"},
		"layer 2":          {"\x00asm\x01\x00\x02\x00", "WebAssembly version 131073"},
		"ELF":              {elf, "native code (ELF)"},
		"cwasm":            {elf + "\x00.wasmtime.engine\x00", "a module compiled by wasmtime (.cwasm); native code is never loaded"},
		"PE":               {"MZ\x90\x00", "a Windows program"},
		"Mach-O":           {"\xcf\xfa\xed\xfe\x07", "a macOS program"},
		"fat Mach-O":       {"\xca\xfe\xba\xbe\x00", "a macOS universal program or a Java class"},
		"gzip":             {"\x1f\x8b\x08", "gzip data"},
		"zstd":             {"\x28\xb5\x2f\xfd", "zstd data"},
		"zip":              {"PK\x03\x04", "a zip archive"},
		"tar":              {"agent.wasm" + strings.Repeat("\x00", 247) + "ustar\x0000", "a tar archive"},
		"static library":   {"!<arch>\nx", "a static library"},
		"bitcode":          {"BC\xc0\xde", "LLVM bitcode"},
		"wat":              {"(module)", "WebAssembly text"},
		"wat, commented":   {" ;; agent\n(; x ;)\n(module)", "WebAssembly text"},
		"component text":   {"(component)", "WebAssembly text"},
		"open comment":     {"(; (module)", "not a WebAssembly module but text"},
		"script":           {"#!/bin/sh\n", "a script"},
		"HTML":             {"<!DOCTYPE html>", "HTML or XML"},
		"JSON":             {"{}", "JSON"},
		"LFS":              {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"},
		"text":             {"hello", "but text"},
		"zeros":            {strings.Repeat("\x00", 99), "begins with zero bytes"},
		"noise":            {"\xff\xfe\x00\x01", "unknown data"},
	} {
		i, err := Inspect([]byte(c.data))
		if err == nil || i != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || fault.ReasonOf(err) != fault.ModuleInvalid || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInspectSaysWhereTheModuleBreaks(t *testing.T) {
	process := sec(7, vec(exportMem, exp("process", KindFunc, 0)))
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"section id alone":        {mod("\x01"), "type section: the module is truncated: unexpected end"},
		"section cut":             {mod("\x01\x05\x01"), "type section: the module is truncated: 4 bytes are missing"},
		"custom section cut":      {mod("\x00\x05\x01"), "custom section: the module is truncated"},
		"custom name cut":         {mod(sec(0, "\x05ab")), "custom section: the module is malformed at byte 11: unexpected end"},
		"unknown section":         {mod("\x0e\x00"), "unknown section 14 at byte 8"},
		"order":                   {mod(sec(3, vec()), sec(1, vec())), "type section: the section is out of order"},
		"twice":                   {mod(sec(1, vec()), sec(1, vec())), "type section: the section is out of order or there twice"},
		"too long":                {mod(sec(1, vec()+"x")), "type section: 1 bytes too many"},
		"size over-long":          {mod("\x01\x80\x80\x80\x80\x80\x00"), "over-long"},
		"size out of range":       {mod("\x01\xff\xff\xff\xff\x1f"), "out of range"},
		"huge count":              {mod(sec(1, "\xff\xff\x03")), "65535 types do not fit"},
		"count over the limit":    {mod(sec(1, "\xff\xff\xff\xff\x0f")), "4294967295 types, at most 100000"},
		"GC type":                 {mod(sec(1, vec("\x5f\x00"))), "type form 0x5f is not run"},
		"unknown value type":      {mod(sec(1, vec("\x60\x01\x01\x00"))), "value type 0x01 is not run"},
		"many parameters":         {mod(sec(1, vec("\x60"+leb(1001)+strings.Repeat("\x7f", 1001)+"\x00"))), "1001 parameters, at most 1000"},
		"import of no type":       {mod(sec(2, vec(imp("a", "b", 0)))), "import section: type 0 does not exist"},
		"import of no kind":       {mod(sec(2, vec("\x01a\x01b\x07"))), `import "a"."b" has the unknown kind 7`},
		"import name not UTF-8":   {mod(sec(2, vec("\x01\xff\x01b\x00\x00"))), "a name is not UTF-8"},
		"shared memory":           {mod(sec(5, vec("\x03\x01\x02"))), "a shared memory is not run"},
		"64-bit memory":           {mod(sec(5, vec("\x04\x01"))), "a 64-bit memory is not run"},
		"page size":               {mod(sec(5, vec("\x08\x01\x00"))), "page size of its own"},
		"memory flags":            {mod(sec(5, vec("\x10\x01"))), "memory flags 0x10 are unknown"},
		"maximum below minimum":   {mod(sec(5, vec("\x01\x02\x01"))), "maximum 1 is below its minimum 2"},
		"memory over 4 GiB":       {mod(sec(5, vec("\x00"+leb(65537)))), "a memory of over 65536 pages"},
		"large table":             {mod(sec(4, vec("\x70\x00"+leb(limits.TableElements+1)))), "a table of 1000001 elements"},
		"table of numbers":        {mod(sec(4, vec("\x7f\x00\x01"))), "a table of i32"},
		"table with initialiser":  {mod(sec(4, vec("\x40\x00\x70\x00\x01"))), "value type 0x40 is not run"},
		"tag attribute":           {mod(types(":"), sec(13, vec("\x01\x00"))), "tag attribute 1"},
		"global flags":            {mod(sec(6, vec("\x7f\x02\x41\x00\x0b"))), "global flags 0x02"},
		"global instruction":      {mod(sec(6, vec("\x7f\x00\x10\x00\x0b"))), "instruction 0x10 in a constant expression"},
		"global vector":           {mod(sec(6, vec("\x7b\x00\xfd\x0d"))), "vector instruction 13"},
		"global over-long":        {mod(sec(6, vec("\x7f\x00\x41\xff\xff\xff\xff\x4f\x0b"))), "over-long or out of range"},
		"global cut":              {mod(sec(6, vec("\x7f\x00\x41\x00"))), "global section: the module is malformed at byte 15: unexpected end"},
		"export twice":            {mod(memory, sec(7, vec(exportMem, exportMem))), `"memory" is exported twice`},
		"export of nothing":       {mod(sec(7, vec(exp("f", KindFunc, 0)))), `export "f" names function 0, which does not exist`},
		"export of no table":      {mod(sec(7, vec(exp("t", KindTable, 0)))), `export "t" names table 0`},
		"export of no kind":       {mod(sec(7, vec(exp("t", 9, 0)))), `export "t" has the unknown kind 9`},
		"no code":                 {mod(types(":i"), sec(3, vec("\x00")), memory, process), "code section: the module is truncated: 1 functions are declared, 0 have a body"},
		"code without a function": {mod(sec(10, vec(nop))), "0 functions are declared, 1 have a body"},
		"body cut":                {mod(types(":i"), sec(3, vec("\x00")), sec(10, "\x01\x04\x00\x41")), "truncated in function 0"},
		"body too large": {mod(types(":"), sec(3, vec("\x00")), sec(10, vec(str(strings.Repeat("\x00", limits.FunctionBodyBytes+1))))),
			"function 0 has 1048577 bytes, at most 1048576"},
		"many functions": {mod(types(":"), sec(3, leb(limits.ModuleFunctions+1)+strings.Repeat("\x00", limits.ModuleFunctions+1))), "200001 functions, at most 200000"},
	} {
		i, err := Inspect(c.data)
		if err == nil || i != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || fault.ReasonOf(err) != fault.ModuleInvalid || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Inspect(make([]byte, limits.ModuleBytes+1)); err == nil || !strings.Contains(err.Error(), "67108865 bytes, at most 67108864") {
		t.Errorf("%v", err)
	}
}

func TestEveryPrefixOfAModuleIsRefused(t *testing.T) {
	whole := mod(agentSections()...)
	for n := range whole {
		if i, err := Inspect(whole[:n]); err == nil {
			// A module may end after any section, unless bodies are missing.
			if !slices.Contains(sectionEnds(), n) {
				t.Errorf("%d of %d bytes are accepted: %+v", n, len(whole), i)
			} else if i.Check() == nil {
				t.Errorf("%d of %d bytes are an agent", n, len(whole))
			}
		}
	}
}

// agentSections is the agent without what may be left out.
func agentSections() []string {
	return []string{types(":i"), sec(3, vec("\x00")), memory, sec(7, vec(exportMem, exp("process", KindFunc, 0))), sec(10, vec(zero))}
}

func sectionEnds() []int {
	end := len(header)
	ends := []int{end}
	for _, s := range agentSections() {
		end += len(s)
		ends = append(ends, end)
	}
	return ends
}

func TestCheckNamesEverythingThatIsWrong(t *testing.T) {
	good := agentSections()
	with := func(id byte, section string) []byte {
		out := slices.Clone(good)
		for i, s := range out {
			if s[0] == id {
				out[i] = section
				return mod(out...)
			}
		}
		t.Fatalf("no section %d", id)
		return nil
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing wrong": {mod(good...), ""},
		"unknown imports": {mod(types(":i", "ii:"), sec(2, vec(imp("env", "fopen", 0), imp("mentat", "fly", 1), imp("env", "fopen", 0), imp("mentat", "read_input", 0), imp("a", "b", 0))), sec(3, vec("\x00")), memory,
			sec(7, vec(exportMem, exp("process", KindFunc, 5))), sec(10, vec(zero))),
			"the module imports what the host does not provide: a.b, env.fopen, mentat.fly (a function was declared but never linked, or lacks its import module)"},
		"other kinds": {mod(types(":i"), sec(2, vec("\x03env\x06memory\x02\x00\x01", "\x03env\x05table\x01\x70\x00\x01", "\x03env\x01g\x03\x7f\x00", "\x03env\x01t\x04\x00\x00")), sec(3, vec("\x00")),
			sec(7, vec(exportMem, exp("process", KindFunc, 0))), sec(10, vec(zero))),
			"the module imports what the host does not provide: env.g (a global), env.memory (a memory), env.t (a tag), env.table (a table)"},
		"import types": {mod(types(":i", "i:i", "I:"), sec(2, vec(imp("mentat", "log", 1), imp("wasi_snapshot_preview1", "proc_exit", 2))), sec(3, vec("\x00")), memory,
			sec(7, vec(exportMem, exp("process", KindFunc, 2))), sec(10, vec(zero))),
			"the module imports mentat.log as (i32) -> (i32), the host provides (i32, i32) -> () or (i32, i32, i32) -> (); it imports wasi_snapshot_preview1.proc_exit as (i64) -> (), the host provides (i32) -> ()"},
		"no entry":          {with(7, sec(7, vec(exportMem))), "the module exports neither process nor _start"},
		"entry mistyped":    {with(1, types("i:i")), "the module exports process as (i32) -> (i32), it must be () -> (i32)"},
		"entry is a memory": {with(7, sec(7, vec(exportMem, exp("process", KindMemory, 0)))), "the module exports neither process nor _start; it exports process as a memory, it must be a function"},
		"start mistyped":    {with(7, sec(7, vec(exportMem, exp("_start", KindFunc, 0)))), "the module exports _start as () -> (i32), it must be () -> ()"},
		"start not used":    {with(7, sec(7, vec(exportMem, exp("process", KindFunc, 0), exp("_start", KindFunc, 0)))), ""},
		"initialiser":       {with(7, sec(7, vec(exportMem, exp("process", KindFunc, 0), exp("_initialize", KindFunc, 0)))), "the module exports _initialize as () -> (i32), it must be () -> ()"},
		"allocator":         {with(7, sec(7, vec(exportMem, exp("process", KindFunc, 0), exp("mentat_alloc", KindFunc, 0)))), "the module exports mentat_alloc as () -> (i32), it must be (i32) -> (i32)"},
		"no memory":         {with(7, sec(7, vec(exp("process", KindFunc, 0)))), `the module exports no memory named "memory"`},
		"memory is a function": {with(7, sec(7, vec(exp("process", KindFunc, 0), exp("memory", KindFunc, 0)))),
			`the module exports "memory" as a function, it must be a memory`},
		"two memories":    {with(5, sec(5, vec(onePage, onePage))), "the module has 2 memories, one is allowed"},
		"an empty module": {mod(), `the module exports neither process nor _start; it exports no memory named "memory"`},
		"preview 0": {mod(types(":i"), sec(2, vec(imp("wasi_unstable", "sched_yield", 0))), sec(3, vec("\x00")), memory, sec(7, vec(exportMem, exp("process", KindFunc, 1))), sec(10, vec(zero))),
			"wasi_unstable.sched_yield (this is WASI preview 0, build for wasm32-wasip1)"},
	} {
		i, err := Inspect(c.data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		err = i.Check()
		switch {
		case c.want == "" && err != nil, c.want != "" && err == nil:
			t.Errorf("%s: %v", name, err)
		case err != nil && (!strings.HasSuffix(err.Error(), c.want) || fault.ReasonOf(err) != fault.ModuleInvalid):
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryFormOfAnImportIsAccepted(t *testing.T) {
	for _, f := range ABI {
		for _, typ := range f.Types {
			i := Info{Imports: []Import{{Module: f.Module, Name: f.Name, Type: typ}}}
			if err := i.Check(); strings.Contains(err.Error(), "imports") {
				t.Errorf("%s.%s: %v", f.Module, f.Name, err)
			}
		}
	}
}

// TestThePublishedABIDoesNotChange holds the table against a copy: rule 6 of
// the ABI.
func TestThePublishedABIDoesNotChange(t *testing.T) {
	var got []string
	count := map[string]int{}
	for _, f := range ABI {
		count[f.Module]++
		if f.Module != ModuleMentat {
			continue
		}
		line := f.Name
		for _, typ := range f.Types {
			line += " " + typ.String()
		}
		got = append(got, line)
	}
	want := []string{
		"abi_version () -> (i32)",
		"read_input () -> (i32)",
		"read (i32, i32, i32) -> (i32)",
		"size (i32) -> (i64)",
		"close (i32) -> (i32)",
		"write_output (i32, i32) -> () (i32, i32) -> (i32)",
		"set_error (i32, i32, i32) -> (i32)",
		"last_error () -> (i32)",
		"log (i32, i32) -> () (i32, i32, i32) -> ()",
		"start_stream (i32, i32) -> (i32)",
		"write_stream (i32, i32, i32) -> (i32)",
		"end_stream (i32, i32) -> (i32)",
		"download_media (i32, i32) -> (i32)",
		"upload_media (i32, i32, i32, i32) -> (i32)",
		"record_metric (i32, i32, i32, f64, i32, i32) -> (i32)",
		"request_capability (i32, i32, i32, i32) -> (i32)",
		"invoke_capability (i32, i32, i32, i32, i32) -> (i32)",
		"get_config (i32, i32) -> (i32)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	if !reflect.DeepEqual(count, map[string]int{ModuleMentat: 18, ModuleWASI: 46, ModuleEnv: 3}) || len(byName) != len(ABI) {
		t.Errorf("%v functions, %d names", count, len(byName))
	}
	if Lookup("mentat", "nothing") != nil || Lookup("", "") != nil || Lookup("env", "abort").Types[0].String() != "(i32, i32, i32, i32) -> ()" {
		t.Error("the table is looked up wrongly")
	}
}

func TestNumbersAreReadAsTheFormatSays(t *testing.T) {
	for _, c := range []struct {
		text string
		bits int
		want int64
		ok   bool
	}{
		{"\x00", 32, 0, true}, {"\x7f", 32, -1, true}, {"\x3f", 32, 63, true}, {"\x40", 32, -64, true}, {"\xc0\x00", 32, 64, true},
		{"\xff\xff\xff\xff\x07", 32, 1<<31 - 1, true}, {"\x80\x80\x80\x80\x78", 32, -1 << 31, true},
		{"\xff\xff\xff\xff\x0f", 32, 0, false}, {"\x80\x80\x80\x80\x70", 32, 0, false}, {"\x80\x80\x80\x80\x80\x00", 32, 0, false},
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00", 64, 1<<63 - 1, true}, {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f", 64, -1 << 63, true},
		{"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 64, 0, false}, {"\x80", 64, 0, false}, {"", 64, 0, false},
	} {
		r := reader{data: []byte(c.text)}
		if got, err := r.signed(c.bits); (err == nil) != c.ok || got != c.want {
			t.Errorf("%x in %d bits: %d, %v", c.text, c.bits, got, err)
		}
	}
}

// FuzzInspect checks that whatever is accepted holds together, that a cut
// module is not, and that Check answers for it.
func FuzzInspect(f *testing.F) {
	f.Add(agent())
	f.Add(mod(agentSections()...))
	f.Add([]byte("(module)"))
	f.Add([]byte("\x7fELF.wasmtime.engine"))
	f.Add([]byte("\x00asm\x0d\x00\x01\x00"))
	f.Add(mod(types(":", ":i"), sec(2, vec("\x03env\x06memory\x02\x00\x01", imp("env", "seed", 1))), sec(3, vec("\x00", "\x01")), sec(4, vec("\x70\x01\x01\x02")), sec(13, vec("\x00\x00")),
		sec(6, vec("\x7f\x00\x41\x7f\x0b", "\x7e\x00\x42\x01\x0b", "\x7b\x00\xfd\x0c0123456789abcdef\x0b")), sec(7, vec(exp("_initialize", KindFunc, 1), exp("v", KindGlobal, 1))), sec(10, vec(nop, zero))))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := Inspect(data)
		if err != nil {
			if i != nil || fault.ReasonOf(err) != fault.ModuleInvalid || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("%v, %q", i, err)
			}
			return
		}
		if i.Size != int64(len(data)) || i.Functions > len(data) || i.LargestBody > len(data) || len(i.Imports)+len(i.Exports) > len(data) {
			t.Fatalf("%d bytes hold %+v", len(data), i)
		}
		if i.Functions > 0 && i.LargestBody == 0 && !bytes.Contains(data, []byte{10}) {
			t.Fatal("functions without a code section")
		}
		for name := range i.Globals {
			if ex := i.export(name); ex == nil || ex.Kind != KindGlobal {
				t.Fatalf("%q is no exported global", name)
			}
		}
		if extended := append(slices.Clone(data), sec(0, str("x"))...); true {
			again, err := Inspect(extended)
			if err != nil || again.Functions != i.Functions || !reflect.DeepEqual(again.Globals, i.Globals) {
				t.Fatalf("a custom section changes what the module is: %v", err)
			}
		}
		if err := i.Check(); err == nil {
			if i.Entry == "" || i.Memories > 1 || i.export("memory") == nil {
				t.Fatalf("passes: %+v", i)
			}
			for _, im := range i.Imports {
				if f := Lookup(im.Module, im.Name); f == nil || !f.Accepts(im.Type) {
					t.Fatalf("passes with %+v", im)
				}
			}
		} else if fault.ReasonOf(err) != fault.ModuleInvalid {
			t.Fatal(err)
		}
	})
}

func ExampleInfo_Check() {
	i, err := Inspect(mod(types(":i"), sec(2, vec(imp("env", "system", 0)))))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(i.Check())
	// Output: the module imports what the host does not provide: env.system; it exports neither process nor _start; it exports no memory named "memory" (a function was declared but never linked, or lacks its import module)
}
