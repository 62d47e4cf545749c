package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// document describes a run of the module.
func document(t testing.TB, text string) *hostdoc.Document {
	t.Helper()
	return &hostdoc.Document{
		Version:   hostdoc.Version,
		Agent:     hostdoc.Agent{ID: "test.agent", Version: "1.0.0"},
		Instance:  "i1",
		Entry:     hostdoc.EntryProcess,
		Module:    compiled(t, text),
		Input:     hostdoc.Input{Kind: hostdoc.InputStdin},
		Limits:    hostdoc.Limits{MemoryBytes: 8 * limits.MiB, InputBytes: 1 * limits.MiB, OutputBytes: 1 * limits.MiB},
		LogFormat: "text",
	}
}

func load1(t testing.TB, doc *hostdoc.Document, o Options) *Program {
	t.Helper()
	p, err := Load(doc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// counting keeps a global and a word of memory across what it takes for runs.
const counting = `
  (global $runs (mut i32) (i32.const 0))`

func TestRunsOfOneProgramShareNothing(t *testing.T) {
	p := load1(t, document(t, agent(`
    (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
    (i32.store (i32.const 100) (i32.add (i32.load (i32.const 100)) (i32.const 1)))
    (drop (memory.grow (i32.const 1)))
    (call $drain (i32.const 0))
    (i32.add (i32.mul (i32.const 10) (global.get $runs)) (i32.add (i32.load (i32.const 100)) (i32.mul (i32.const 50) (i32.sub (memory.size) (i32.const 2)))))`, counting)), Options{})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 25 {
				var got bytes.Buffer
				in := fmt.Sprintf("input %d of %d", j, i)
				exit, err := p.Run(t.Context(), IO{ID: in, Input: strings.NewReader(in), Sink: output.NewRaw(&got)})
				if err != nil || exit.Status != 11 || got.String() != in {
					t.Errorf("%s: %+v, %v, output %q", in, exit, err, got.String())
				}
			}
		})
	}
	all.Wait()
}

func TestOneRunsEndIsNoOthers(t *testing.T) {
	doc := document(t, agent(`
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1)))
    (if (i32.eq (i32.load8_u (i32.const 0)) (i32.const 116)) (then unreachable)) ;; t
    (if (i32.eq (i32.load8_u (i32.const 0)) (i32.const 108)) (then (loop $again (br $again)))) ;; l
    (i32.const 5)`))
	doc.Limits.DeadlineMillis = 1000
	p := load1(t, doc, Options{})
	var all sync.WaitGroup
	for range 4 {
		for in, want := range map[string]int{"t": fault.ExitTrap, "l": fault.ExitDeadline, "o": 5, "": 5} {
			all.Go(func() {
				if exit, _ := p.Run(t.Context(), IO{Input: strings.NewReader(in), Sink: output.NewRaw(discard{})}); exit.Status != want {
					t.Errorf("%q: %+v, want %d", in, exit, want)
				}
			})
		}
	}
	all.Wait()
}

func TestLogLinesNameAgentInstanceAndRun(t *testing.T) {
	var errs bytes.Buffer
	doc := document(t, agent(`(call $log_level (i32.const 3) (i32.const 0) (i32.const 2)) (call $culprit) (i32.const 0)`, `(func $culprit unreachable) (data (i32.const 0) "hi")`))
	doc.LogFormat = "json"
	p := load1(t, doc, Options{Stderr: &errs})
	for _, id := range []string{"r1", "r2"} {
		errs.Reset()
		if exit, _ := p.Run(t.Context(), IO{ID: id, Sink: output.NewRaw(discard{})}); exit.Status != fault.ExitTrap {
			t.Errorf("%+v", exit)
		}
		want := []logLine{
			{Level: "warn", Source: fromAgent, Agent: "test.agent", Instance: "i1", Run: id, Message: "hi"},
			{Level: "error", Source: fromHost, Agent: "test.agent", Instance: "i1", Run: id, Message: "trap: unreachable code reached in culprit"},
		}
		lines := strings.Split(strings.TrimSuffix(errs.String(), "\n"), "\n")
		if len(lines) != len(want) {
			t.Fatalf("logged %q", lines)
		}
		for i, text := range lines {
			var line logLine
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				t.Fatal(err)
			}
			if line.Time.IsZero() {
				t.Error("no time")
			}
			line.Time = want[i].Time
			if fmt.Sprint(line) != fmt.Sprint(want[i]) {
				t.Errorf("logged %+v, want %+v", line, want[i])
			}
		}
	}
}

func TestTheLockIsTakenOnceBeforeTheGuestRuns(t *testing.T) {
	var out bytes.Buffer
	locks := 0
	text := agent(`(i32.const 0)`, `(func $s (drop (call $write_output (i32.const 0) (i32.const 2)))) (start $s) (data (i32.const 0) "hi")`)
	p := load1(t, document(t, text), Options{Locked: func() error {
		if locks++; out.Len() > 0 {
			t.Error("the guest ran before")
		}
		return nil
	}})
	for range 2 {
		if _, err := p.Run(t.Context(), IO{Sink: output.NewRaw(&out)}); err != nil {
			t.Error(err)
		}
	}
	if locks != 1 || out.String() != "hihi" {
		t.Errorf("locked %d times, output %q", locks, out.String())
	}
	// What cannot be locked does not run.
	if _, err := Load(document(t, text), Options{Locked: func() error { return errBroken }}); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	out.Reset()
	exit, err := Once(t.Context(), document(t, text), Options{Locked: func() error { return errBroken }}, Streams{Stdout: &out})
	if exit.Status != fault.ExitHostFailure || !errors.Is(err, errBroken) || out.Len() > 0 {
		t.Errorf("%+v, %v, output %q", exit, err, out.String())
	}
}

type closing struct {
	backend.Backend
	closed atomic.Int32
	err    error
}

func (c *closing) Done(string) {}

func (c *closing) Close() error {
	c.closed.Add(1)
	return c.err
}

func TestClosingAProgramClosesItsBackends(t *testing.T) {
	good, bad := &closing{}, &closing{err: errBroken}
	p, err := Load(document(t, agent(`(i32.const 0)`)), Options{Backends: map[string]backend.Backend{"network": good, "llm": bad, "media": nil}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); !errors.Is(err, errBroken) || good.closed.Load() != 1 || bad.closed.Load() != 1 {
		t.Errorf("%v, closed %d and %d times", err, good.closed.Load(), bad.closed.Load())
	}
}

func TestACancelledRunOfAProgramEndsWithItsContextsCause(t *testing.T) {
	p := load1(t, document(t, agent(`(i32.sub (i32.const 0) (call $read (i32.const 0) (i32.const 0) (i32.const 1)))`)), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if exit, err := p.Run(ctx, IO{Input: blocked(t), Sink: output.NewRaw(discard{})}); exit.Status != -codeCanceled || err != nil {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestFramedOutputOfARun(t *testing.T) {
	o := setup{wat: agent(`
    (call $write_output_void (i32.const 0) (i32.const 2))
    (call $log_level (i32.const 3) (i32.const 2) (i32.const 5))
    (call $set_error (i32.const 7) (i32.const 0) (i32.const 2))`, `(data (i32.const 0) "hi\0a\ff\22x\e2")`),
		edit: func(d *hostdoc.Document) { d.Framing = hostdoc.FramingNDJSON }}.run(t)
	o.wants(t, 1, "").output(t, `{"event":"output","data":"hi"}
{"event":"log","level":"warn","message":"\n�\"x�"}
{"event":"error","code":7,"message":"hi"}
{"event":"exit","status":1,"message":"hi (code 7)"}
`)
	if o.stderr != "error mentat: hi (code 7)\n" {
		t.Errorf("logged %q", o.stderr)
	}
}
