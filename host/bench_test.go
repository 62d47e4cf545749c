package host

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// many is a guest that makes a call so many times.
func many(calls int, call string) string {
	return agent(fmt.Sprintf(`
    (local.set $h (call $get_config (i32.const 0) (i32.const 0)))
    (local.set $n (i32.const %d))
    (loop $again
      (drop %s)
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (i32.const 0)`, calls, call))
}

// A host call: from the guest's code into the host and back.
func BenchmarkHostCall(b *testing.B) {
	const calls = 100_000
	for _, c := range []struct{ name, call string }{
		{"abi_version", `(call $abi_version)`},
		{"size", `(call $size (local.get $h))`},
		{"read", `(call $read (i32.const 0) (i32.const 0) (i32.const 8))`},
		{"read blob", `(call $read (local.get $h) (i32.const 0) (i32.const 8))`},
		{"write_output", `(call $write_output (i32.const 0) (i32.const 8))`},
		{"close", `(call $close (i32.const 1))`},
		{"record_metric", `(call $record_metric (i32.const 65535) (i32.const 0) (i32.const 0) (f64.const 1) (i32.const 0) (i32.const 0))`},
	} {
		b.Run(c.name, func(b *testing.B) {
			doc := document(b, many(calls, c.call))
			doc.Limits.OutputBytes = limits.OutputBytes
			doc.Config = map[string]string{"": string(bytes.Repeat([]byte("x"), 8*calls))}
			in := bytes.Repeat([]byte("x"), 8*calls)
			p := load1(b, doc, Options{})
			b.ResetTimer()
			for b.Loop() {
				if exit, err := p.Run(b.Context(), IO{Input: bytes.NewReader(in), Sink: output.NewRaw(discard{})}); err != nil {
					b.Fatal(exit, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/calls, "ns/call")
		})
	}
}

// An input of 1 MiB, from the caller's memory into the guest's.
func BenchmarkInput1MiB(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789abcdef"), limits.MiB/16)
	for name, code := range map[string]string{
		"read": `
    (drop (memory.grow (i32.const 17)))
    (loop $again
      (local.set $h (call $read (i32.const 0) (i32.add (i32.const 65536) (local.get $n)) (i32.sub (i32.const 1048576) (local.get $n))))
      (local.set $n (i32.add (local.get $n) (local.get $h)))
      (br_if $again (i32.gt_s (local.get $h) (i32.const 0))))
    (i32.ne (local.get $n) (i32.const 1048576))`,
		"read_input": `
    (drop (memory.grow (i32.const 17)))
    (drop (call $read_input))
    (i32.ne (call $read (i32.const 0) (i32.const 65536) (i32.const 1048576)) (i32.const 1048576))`,
		"nothing": `(drop (memory.grow (i32.const 17))) (i32.const 0)`,
		// What the memory itself takes: the guest touches its pages.
		"fill": `
    (drop (memory.grow (i32.const 17)))
    (memory.fill (i32.const 65536) (i32.const 1) (i32.const 1048576)) (i32.const 0)`,
	} {
		b.Run(name, func(b *testing.B) {
			p := load1(b, document(b, agent(code)), Options{})
			b.SetBytes(limits.MiB)
			b.ResetTimer()
			for b.Loop() {
				if exit, err := p.Run(b.Context(), IO{Input: bytes.NewReader(data), Sink: output.NewRaw(discard{})}); err != nil || exit.Status != 0 {
					b.Fatal(exit, err)
				}
			}
		})
	}
	b.Run("memcpy", func(b *testing.B) {
		b.SetBytes(limits.MiB)
		dst := make([]byte, len(data))
		for b.Loop() {
			copy(dst, data)
		}
	})
}

// A run: a new instance, its guest and its end.
func BenchmarkRun(b *testing.B) {
	for name, guest := range map[string]struct{ text, entry string }{
		"process": {agent(`(i32.const 0)`), hostdoc.EntryProcess},
		"command": {command(``), hostdoc.EntryCommand},
		// As compilers lay programs out: a stack of 1 MiB, of which little is used, and
		// data above it.
		"17 pages": {`(module
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 17)
  (data (i32.const 1048576) "` + strings.Repeat("0123456789abcdef", 1024) + `")
  (func (export "process") (result i32)
    (drop (call $read_input))
    (drop (call $read (i32.const 0) (i32.const 1040000) (i32.const 8192)))
    (memory.fill (i32.const 1030000) (i32.const 1) (i32.const 16384))
    (call $write (i32.const 1048576) (i32.const 100))
    (i32.const 0)))`, hostdoc.EntryProcess},
	} {
		b.Run(name, func(b *testing.B) {
			doc := document(b, guest.text)
			doc.Entry = guest.entry
			p := load1(b, doc, Options{})
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				if exit, err := p.Run(b.Context(), IO{Sink: output.NewRaw(discard{})}); err != nil {
					b.Fatal(exit, err)
				}
			}
		})
	}
}
