package host

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

func TestAGuestWhoseClientLeftIsNotAskedToEndButEnded(t *testing.T) {
	// Asked to end, it would go on and write.
	const patient = `
    (call $write_output_void (i32.const 0) (i32.const 1))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1)))
    (call $write_output_void (i32.const 0) (i32.const 1))
    (i32.const 0)`
	p := load1(t, document(t, agent(patient)), Options{})
	for name, c := range map[string]struct {
		cause  error
		output int
		status int
	}{
		"its client left": {output.ErrGone, 1, 141},
		"a signal came":   {Signal(15), 2, 0},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		var got bytes.Buffer
		began := make(chan struct{})
		sink := output.NewRaw(tellingWriter(func(data []byte) (int, error) {
			if got.Len() == 0 {
				close(began)
			}
			return got.Write(data)
		}))
		go func() {
			<-began
			cancel(c.cause)
		}()
		exit, _ := p.Run(ctx, IO{Input: blocked(t), Sink: sink})
		if exit.Status != c.status || got.Len() != c.output {
			t.Errorf("%s: %+v, %d bytes of output", name, exit, got.Len())
		}
	}
}

type tellingWriter func([]byte) (int, error)

func (f tellingWriter) Write(p []byte) (int, error) { return f(p) }

func TestARunIsFreedBeforeItReturns(t *testing.T) {
	p := load1(t, document(t, agent(`(drop (memory.grow (i32.const 10))) (i32.const 0)`)), Options{})
	before := MemoryInUse()
	for range 3 {
		freed := 0
		exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{}), Freed: func() {
			freed++
			if got := MemoryInUse(); got != before {
				t.Errorf("%d bytes are in use, before the run %d", got, before)
			}
		}})
		if err != nil || exit.Status != 0 || freed != 1 {
			t.Errorf("%+v, %v, freed %d times", exit, err, freed)
		}
	}
}

// stuck is a WASI command whose output nobody takes.
const stuck = `(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "\64\00\00\00\04\00\00\00")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))`

func TestAGuestThatIsLeftBehindIsFreedWhenItComesBack(t *testing.T) {
	doc := document(t, stuck)
	doc.Entry, doc.Limits.DeadlineMillis = hostdoc.EntryCommand, 100
	doc.Preopens = []hostdoc.Preopen{{Host: t.TempDir(), Guest: "/data"}}
	p := load1(t, doc, Options{})
	before := MemoryInUse()
	freed, release := make(chan int64, 2), make(chan struct{})
	sink := output.NewRaw(tellingWriter(func(data []byte) (int, error) {
		<-release
		return len(data), nil
	}))
	exit, _ := p.Run(t.Context(), IO{Sink: sink, Freed: func() { freed <- MemoryInUse() }})
	if exit.Reason != string(fault.Deadline) {
		t.Errorf("%+v", exit)
	}
	if len(freed) > 0 {
		t.Error("it counts as freed while it waits")
	}
	close(release)
	select {
	case got := <-freed:
		if got != before {
			t.Errorf("%d bytes are in use, before the run %d", got, before)
		}
	case <-time.After(time.Minute):
		t.Fatal("it never counts as freed")
	}
}

// tenant writes a file that must not exist yet, a directory with a link out of
// it, and fails with the number of the step that did not work.
const tenant = `(module
  (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request_capability (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "invoke_capability" (func $invoke_capability (param i32 i32 i32 i32 i32) (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 100) "mine")
  (data (i32.const 110) "dir")
  (data (i32.const 120) "../../keep")
  (data (i32.const 140) "dir/link")
  (data (i32.const 200) "filesystem:read:/tmp")
  (data (i32.const 300) "stat")
  (data (i32.const 400) "\14\00\00\00{\22path\22:\22/tmp/mine\22}")
  (func (export "process") (result i32)
    (if (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 5) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 0)) (then (return (i32.const 1))))
    (if (call $mkdir (i32.const 3) (i32.const 110) (i32.const 3)) (then (return (i32.const 2))))
    (if (call $symlink (i32.const 120) (i32.const 10) (i32.const 3) (i32.const 140) (i32.const 8)) (then (return (i32.const 3))))
    (if (i32.le_s (call $read (call $invoke_capability
      (call $request_capability (i32.const 200) (i32.const 20) (i32.const 0) (i32.const 0))
      (i32.const 300) (i32.const 4) (i32.const 400) (i32.const 24)) (i32.const 1000) (i32.const 1000)) (i32.const 0)) (then (return (i32.const 4))))
    (i32.const 0)))`

func TestARunsOwnDirectoryIsNewAndGoesWithIt(t *testing.T) {
	shared := t.TempDir()
	keep := filepath.Join(shared, "keep")
	if err := os.WriteFile(keep, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	doc := document(t, tenant)
	doc.Preopens = []hostdoc.Preopen{{Host: shared, Guest: "/tmp", Fresh: true}}
	doc.Grants = []hostdoc.Grant{{Capability: "filesystem:read-write:/tmp", Rule: "test"}}
	var errs bytes.Buffer
	p := load1(t, doc, Options{Stderr: &errs})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				if exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); err != nil || exit.Status != 0 {
					t.Errorf("%+v, %v", exit, err)
				}
			}
		})
	}
	all.Wait()
	left, err := os.ReadDir(shared)
	if err != nil || len(left) != 1 || errs.Len() > 0 {
		t.Errorf("left are %v, %v; logged %s", left, err, errs.String())
	}
	if data, err := os.ReadFile(keep); err != nil || string(data) != "another's" {
		t.Errorf("what is not the run's: %q, %v", data, err)
	}

	// Shared, the second run finds the first one's file.
	doc = document(t, tenant)
	doc.Preopens = []hostdoc.Preopen{{Host: shared, Guest: "/tmp"}}
	doc.Grants = []hostdoc.Grant{{Capability: "filesystem:read-write:/tmp", Rule: "test"}}
	p = load1(t, doc, Options{})
	for _, want := range []int{0, 1} {
		if exit, _ := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != want {
			t.Errorf("%+v, want %d", exit, want)
		}
	}
}

func TestARunWhoseDirectoryCannotBeMadeDoesNotBegin(t *testing.T) {
	shared := t.TempDir()
	doc := document(t, agent(`(call $write_output_void (i32.const 0) (i32.const 1)) (i32.const 0)`))
	doc.Preopens = []hostdoc.Preopen{{Host: shared, Guest: "/tmp", Fresh: true}}
	p := load1(t, doc, Options{})
	if err := os.Remove(shared); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	freed := 0
	exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(&got), Freed: func() { freed++ }})
	if exit.Status != fault.ExitHostFailure || fault.ReasonOf(err) != fault.Internal || got.Len() > 0 || freed != 1 {
		t.Errorf("%+v, %v, output %q, freed %d times", exit, err, got.String(), freed)
	}
}
