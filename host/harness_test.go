package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// mentatImports declares the whole ABI, so that a test's guest is only its code.
const mentatImports = `
  (import "mentat" "abi_version" (func $abi_version (result i32)))
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "size" (func $size (param i32) (result i64)))
  (import "mentat" "close" (func $close (param i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output_void (param i32 i32)))
  (import "mentat" "set_error" (func $set_error (param i32 i32 i32) (result i32)))
  (import "mentat" "last_error" (func $last_error (result i32)))
  (import "mentat" "log" (func $log (param i32 i32)))
  (import "mentat" "log" (func $log_level (param i32 i32 i32)))
  (import "mentat" "start_stream" (func $start_stream (param i32 i32) (result i32)))
  (import "mentat" "write_stream" (func $write_stream (param i32 i32 i32) (result i32)))
  (import "mentat" "end_stream" (func $end_stream (param i32 i32) (result i32)))
  (import "mentat" "download_media" (func $download_media (param i32 i32) (result i32)))
  (import "mentat" "upload_media" (func $upload_media (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "record_metric" (func $record_metric (param i32 i32 i32 f64 i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request_capability (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "invoke_capability" (func $invoke_capability (param i32 i32 i32 i32 i32) (result i32)))
  (import "mentat" "get_config" (func $get_config (param i32 i32) (result i32)))
`

// agent wraps the code of process. $n and $h are locals for it; $drain copies a
// handle to the output.
func agent(body string, more ...string) string {
	return `(module` + mentatImports + `
  (memory (export "memory") 1 64)
  (func $drain (param $h i32) (local $n i32)
    (loop $again
      (local.set $n (call $read (local.get $h) (i32.const 32768) (i32.const 4096)))
      (if (i32.gt_s (local.get $n) (i32.const 0)) (then
        (call $write_output_void (i32.const 32768) (local.get $n))
        (br $again)))))
  ` + strings.Join(more, "\n") + `
  (func (export "process") (result i32) (local $n i32) (local $h i32)
` + body + `))`
}

func wat(t testing.TB, text string) []byte {
	t.Helper()
	wasm, err := wasmtime.Wat2Wasm(text)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

var compiledOnce sync.Map

// compiled compiles a text module into a file.
func compiled(t testing.TB, text string) string {
	t.Helper()
	if path, ok := compiledOnce.Load(text); ok {
		return path.(string)
	}
	code, err := Compile(wat(t, text))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(scratch, "*.cwasm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(code); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	compiledOnce.Store(text, f.Name())
	return f.Name()
}

// scratch holds compiled modules for the whole test binary.
var scratch string

func TestMain(m *testing.M) {
	var err error
	scratch, err = os.MkdirTemp("", "mentat-host-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

// outcome is everything that a run leaves.
type outcome struct {
	exit           hostdoc.Exit
	err            error
	stdout, stderr string
}

// setup is one run; the zero values are usable.
type setup struct {
	wat    string
	stdin  io.Reader
	stdout io.Writer
	cause  error // cancelled with it from the start
	edit   func(*hostdoc.Document)
	o      Options
}

func (u setup) run(t testing.TB) outcome {
	t.Helper()
	doc := document(t, u.wat)
	if u.edit != nil {
		u.edit(doc)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	if u.cause != nil {
		cancel(u.cause)
	}
	var out, errs bytes.Buffer
	stdout := u.stdout
	if stdout == nil {
		stdout = &out
	}
	exit, err := Once(ctx, doc, u.o, Streams{Stdin: u.stdin, Stdout: stdout, Stderr: &errs})
	return outcome{exit, err, out.String(), errs.String()}
}

func runWAT(t testing.TB, text string) outcome {
	t.Helper()
	return setup{wat: text}.run(t)
}

// wants checks status and reason; a fault must be told by the error as well.
func (o outcome) wants(t testing.TB, status int, reason fault.Reason) outcome {
	t.Helper()
	if o.exit.Status != status || o.exit.Reason != string(reason) {
		t.Errorf("ended with status %d, reason %q, message %q; want %d, %q\nstderr: %s", o.exit.Status, o.exit.Reason, o.exit.Message, status, reason, o.stderr)
	}
	if got := fault.ReasonOf(o.err); got != reason {
		t.Errorf("the error's reason is %q, want %q", got, reason)
	}
	return o
}

func (o outcome) says(t testing.TB, part string) outcome {
	t.Helper()
	if !strings.Contains(o.exit.Message, part) {
		t.Errorf("message %q lacks %q", o.exit.Message, part)
	}
	if strings.Count(o.stderr, "\n") == 0 || !strings.Contains(o.stderr, part) {
		t.Errorf("stderr %q lacks %q", o.stderr, part)
	}
	return o
}

func (o outcome) output(t testing.TB, want string) outcome {
	t.Helper()
	if o.stdout != want {
		t.Errorf("output %q, want %q", o.stdout, want)
	}
	return o
}

func readTestdata(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// blocked is a stdin that never says anything.
func blocked(t testing.TB) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	return r
}

var errBroken = errors.New("broken")

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }

type brokenReader struct{ first string }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.first == "" {
		return 0, errBroken
	}
	n := copy(p, b.first)
	b.first = b.first[n:]
	return n, nil
}
