package queue

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
)

func enter(t *testing.T, q *Queue, size int64) *Place {
	t.Helper()
	p, r := q.Enter(size)
	if r != nil {
		t.Fatal(r)
	}
	return p
}

func TestOnlySoManyRunAtOnce(t *testing.T) {
	q := New(3, 100, 1000)
	var running, most atomic.Int32
	var wg sync.WaitGroup
	for range 100 {
		p := enter(t, q, 10)
		wg.Go(func() {
			defer p.Leave()
			if err := p.Wait(t.Context()); err != nil {
				t.Error(err)
				return
			}
			n := running.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			running.Add(-1)
		})
	}
	wg.Wait()
	if most.Load() > 3 {
		t.Errorf("%d ran at once", most.Load())
	}
	if q.held != 0 || q.used != 0 || len(q.turns) != 0 {
		t.Errorf("left behind: %d calls, %d bytes, %d turns", q.held, q.used, len(q.turns))
	}
}

func TestWhatIsOverABoundIsRefusedAtOnce(t *testing.T) {
	q := New(1, 2, 100)
	a := enter(t, q, 60)
	if _, r := q.Enter(41); r == nil || r.Code != backend.Limit || r.RetryAfter <= 0 {
		t.Errorf("bytes: %v", r)
	}
	b := enter(t, q, 40)
	if _, r := q.Enter(0); r == nil || r.Code != backend.Limit {
		t.Errorf("calls: %v", r)
	}
	a.Leave()
	a.Leave()
	b.Leave()
	// A call that is larger than the bound has it for itself.
	enter(t, q, 500).Leave()
	if q.held != 0 || q.used != 0 {
		t.Errorf("%d calls, %d bytes", q.held, q.used)
	}
}

func TestWhoWaitsGivesUpWithItsContext(t *testing.T) {
	q := New(1, 10, 100)
	first := enter(t, q, 0)
	if err := first.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	second := enter(t, q, 0)
	done := make(chan error)
	go func() { done <- second.Wait(ctx) }()
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	second.Leave()
	first.Leave()
	third := enter(t, q, 0)
	if err := third.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	third.Leave()
	// Left while it waited: the turn goes on to others.
	fourth := enter(t, q, 0)
	fourth.Leave()
	if err := fourth.Wait(t.Context()); !errors.Is(err, context.Canceled) || len(q.turns) != 0 {
		t.Errorf("%v, %d turns", err, len(q.turns))
	}
}
