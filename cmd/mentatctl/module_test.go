package main

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mentatlab/mentat/internal/testimage"
	"github.com/mentatlab/mentat/oci"
)

// The guests of the transcripts, written as binary by hand so that no compiler
// is needed.
var guests = map[string][]byte{
	"ok":      module(nil, []byte{0x41, 0x00, 0x0b}),                                     // process returns 0
	"seven":   module(nil, []byte{0x41, 0x07, 0x0b}),                                     // process returns 7
	"trap":    module(nil, []byte{0x00, 0x0b}),                                           // process traps
	"forever": module(nil, []byte{0x03, 0x40, 0x0c, 0x00, 0x0b, 0x00, 0x0b}),             // process never returns
	"greedy":  module(nil, []byte{0x41, 0xc0, 0x00, 0x40, 0x00, 0x41, 0x7f, 0x46, 0x0b}), // process returns whether 4 MiB more are refused
	"alien":   module([]string{"wasi_nn", "load", "env", "fork"}, []byte{0x41, 0x00, 0x0b}),
	"asks":    typed("request_capability", 4),
	"media":   typed("download_media", 2),
	"script":  append(typed("request_capability", 4), custom("[native code] Async-from-Sync Iterator QuickJS")...),
	"native":  append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 64)...),
	"short":   module(nil, []byte{0x41, 0x00, 0x0b})[:20],
	"empty":   {},
	"echo":    echo,
}

// echo writes as output what one read of its input gives:
// (call $write_output (i32.const 0) (call $read (i32.const 0) (i32.const 0) (i32.const 65536)))
var echo = []byte("\x00asm\x01\x00\x00\x00" +
	"\x01\x11\x03`\x03\x7f\x7f\x7f\x01\x7f`\x02\x7f\x7f\x00`\x00\x01\x7f" + // types
	"\x02%\x02\x06mentat\x04read\x00\x00\x06mentat\x0cwrite_output\x00\x01" + // imports
	"\x03\x02\x01\x02\x05\x03\x01\x00\x02" + // a function, a memory of two pages
	"\x07\x14\x02\x06memory\x02\x00\x07process\x00\x02" + // exports
	"\x0a\x14\x01\x12\x00A\x00A\x00A\x00A\x80\x80\x04\x10\x00\x10\x01A\x00\x0b") // code

// module is a WASM module with one memory and a function process of type
// () -> i32, which its imports have too; names are pairs of module and name.
func module(names []string, body []byte) []byte {
	section := func(id byte, content ...byte) []byte {
		return append([]byte{id, byte(len(content))}, content...)
	}
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, 1, 0x60, 0, 1, 0x7f)...)
	if len(names) > 0 {
		content := []byte{byte(len(names) / 2)}
		for pair := range slices.Chunk(names, 2) {
			content = append(content, name(pair[0])...)
			content = append(content, name(pair[1])...)
			content = append(content, 0, 0)
		}
		m = append(m, section(2, content...)...)
	}
	m = append(m, section(3, 1, 0)...)
	m = append(m, section(5, 1, 0, 1)...)
	exports := append([]byte{2}, name("memory")...)
	exports = append(exports, 2, 0)
	exports = append(exports, name("process")...)
	exports = append(exports, 0, byte(len(names)/2))
	m = append(m, section(7, exports...)...)
	code := append([]byte{0}, body...)
	m = append(m, section(10, append([]byte{1, byte(len(code))}, code...)...)...)
	return m
}

// typed is a module whose process returns 0 and that imports a function of our
// own, which takes that many integers and returns one.
func typed(function string, params byte) []byte {
	section := func(id byte, content ...byte) []byte {
		return append([]byte{id, byte(len(content))}, content...)
	}
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	types := []byte{2, 0x60, 0, 1, 0x7f, 0x60, params}
	for range params {
		types = append(types, 0x7f)
	}
	types = append(types, 1, 0x7f)
	imports := slices.Concat([]byte{1}, name("mentat"), name(function), []byte{0, 1})
	exports := slices.Concat([]byte{2}, name("memory"), []byte{2, 0}, name("process"), []byte{0, 1})
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"), section(1, types...), section(2, imports...), section(3, 1, 0),
		section(5, 1, 0, 1), section(7, exports...), section(10, 1, 4, 0, 0x41, 0, 0x0b))
}

// custom is a section that says nothing to an engine.
func custom(text string) []byte {
	content := append([]byte{1, 'x'}, text...)
	return append([]byte{0, byte(len(content))}, content...)
}

// writeModule is `wasm GUEST FILE`.
func writeModule(ts *testscript.TestScript, _ bool, args []string) {
	guest, ok := guests[args[0]]
	if !ok {
		ts.Fatalf("there is no guest %q", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), guest, 0o600))
}

// writeAgent is `agent DIR [IMAGE]`: an agent whose module is there already.
func writeAgent(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	text := "id: example." + filepath.Base(dir) + "\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"
	if len(args) > 1 {
		text += "image: " + args[1] + "\n"
	}
	ts.Check(os.WriteFile(filepath.Join(dir, "manifest.yaml"), []byte(text), 0o600))
	ts.Check(os.WriteFile(filepath.Join(dir, "agent.wasm"), guests["ok"], 0o600))
}

// writeImage is `image DIR`: an OCI layout with a container image.
func writeImage(ts *testscript.TestScript, _ bool, args []string) {
	program := ts.MkAbs("program")
	ts.Check(os.WriteFile(program, []byte("not really one"), 0o600))
	layout, err := oci.CreateLayout(ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = testimage.Busybox(program, testimage.Config{Entrypoint: []string{"/bin/true"}}, layout)
	ts.Check(err)
}
