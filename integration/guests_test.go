package integration

import (
	"fmt"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"
)

// marker is what a guest prints when it runs. A refusal proves itself by its
// absence.
const marker = "MARKER-the-guest-ran"

// Guests, by what they do.
const (
	// guestEcho copies its input to its output.
	guestEcho = `(module
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 2 4)
  (func (export "process") (result i32)
    (local $n i32)
    (drop (call $read_input))
    (block $end
      (loop $more
        (local.set $n (call $read (i32.const 0) (i32.const 1024) (i32.const 65536)))
        (br_if $end (i32.le_s (local.get $n) (i32.const 0)))
        (call $write_output (i32.const 1024) (local.get $n))
        (br $more)))
    (i32.const 0)))`

	// guestSpin prints the marker and never ends.
	guestSpin = `(module
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "` + marker + `\n")
  (func (export "process") (result i32)
    (call $write_output (i32.const 0) (i32.const 21))
    (loop $forever (br $forever))
    (i32.const 0)))`

	// guestTrap has a named function that traps.
	guestTrap = `(module
  (memory (export "memory") 1 1)
  (func $divide_by_nothing (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
  (func (export "process") (result i32) (call $divide_by_nothing (i32.const 0))))`

	// guestHog grows its memory until that fails and then traps.
	guestHog = `(module
  (memory (export "memory") 1)
  (func (export "process") (result i32)
    (loop $more
      (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (unreachable)))`

	// guestCommand is a WASI command that prints its arguments' sizes and the
	// marker, writes the marker to stderr too, and ends with status 7.
	guestCommand = `(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "\10\00\00\00\15\00\00\00")
  (data (i32.const 16) "` + marker + `\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $proc_exit (i32.const 7))))`
)

// guestMarker prints the marker and succeeds; the salt makes modules differ.
func guestMarker(salt int) string {
	return fmt.Sprintf(`(module
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "%s\n")
  (global (export "agent_version") i32 (i32.const %d))
  (func (export "process") (result i32)
    (call $write_output (i32.const 0) (i32.const 21))
    (i32.const 0)))`, marker, salt)
}

func assemble(t *testing.T, wat string) []byte {
	t.Helper()
	module, err := wasmtime.Wat2Wasm(wat)
	if err != nil {
		t.Fatalf("assemble: %v", err)
	}
	return module
}
