package host

import (
	"bytes"
	"context"
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

// sleeper is a WASI command that sleeps for two seconds, which nothing ends
// early.
const sleeper = `(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 2000000000))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))`

func TestAGuestThatIsLeftBehindIsFreedWhenItComesBack(t *testing.T) {
	doc := document(t, sleeper)
	doc.Entry, doc.Limits.DeadlineMillis = hostdoc.EntryCommand, 100
	p := load1(t, doc, Options{})
	before := MemoryInUse()
	freed := make(chan int64, 2)
	exit, _ := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{}), Freed: func() { freed <- MemoryInUse() }})
	if exit.Reason != string(fault.Deadline) {
		t.Errorf("%+v", exit)
	}
	if len(freed) > 0 {
		t.Error("it counts as freed while it sleeps")
	}
	select {
	case got := <-freed:
		if got != before {
			t.Errorf("%d bytes are in use, before the run %d", got, before)
		}
	case <-time.After(time.Minute):
		t.Fatal("it never counts as freed")
	}
}
