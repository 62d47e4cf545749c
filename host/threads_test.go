package host

import (
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Left to itself the engine has a dozen threads after as many thousand calls, and
// a container's host must do with fewer for all it does.
func TestTheEnginesThreadsAreBounded(t *testing.T) {
	tr := makeTree(t)
	// Each call may block, and so goes to another thread.
	doc := document(t, command(`
    (loop $again
      (if (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))
        (then (call $proc_exit (i32.const 9))))
      (if (call $close (i32.load (i32.const 8))) (then (call $proc_exit (i32.const 8))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 3000))))
    (call $proc_exit (i32.const 7))`, `(data (i32.const 1024) "file")`))
	doc.Entry, doc.Preopens = hostdoc.EntryCommand, []hostdoc.Preopen{{Host: tr.granted, Guest: "/data", ReadOnly: true}}
	p := load1(t, doc, Options{})
	// Those of other tests that are idle end after ten seconds.
	for deadline := time.Now().Add(time.Minute); engine.Threads() > limits.EngineThreads; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads before anything was done", engine.Threads())
		}
	}
	var all sync.WaitGroup
	done := make(chan struct{})
	for range 6 {
		all.Go(func() {
			if exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != 7 || err != nil {
				t.Errorf("%+v, %v", exit, err)
			}
		})
	}
	go func() {
		all.Wait()
		close(done)
	}()
	most := 0
	for {
		select {
		case <-done:
			if most == 0 || most > limits.EngineThreads {
				t.Errorf("up to %d threads, want 1 to %d", most, limits.EngineThreads)
			}
			return
		case <-time.After(time.Millisecond):
			most = max(most, engine.Threads())
		}
	}
}
