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

// empty checks that nothing is held.
func empty(t *testing.T, q *Queue) {
	t.Helper()
	if q.held != 0 || q.used != 0 || q.running != 0 || len(q.waiting) != 0 {
		t.Errorf("left behind: %d calls, %d bytes, %d running, %d waiting", q.held, q.used, q.running, len(q.waiting))
	}
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
	empty(t, q)
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
	empty(t, q)
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
	if err := fourth.Wait(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	empty(t, q)
}

// Each runs until its answer is read: were a later call to run first, who reads in
// order would wait for ever.
func TestTurnsGoInTheOrderOfEntry(t *testing.T) {
	q := New(2, 20, 100)
	var places []*Place
	for range 20 {
		places = append(places, enter(t, q, 1))
	}
	// Those that entered last ask first.
	asked := make([]chan error, len(places))
	for i := len(places) - 1; i >= 0; i-- {
		asked[i] = make(chan error, 1)
		started := make(chan struct{})
		go func() {
			close(started)
			asked[i] <- places[i].Wait(t.Context())
		}()
		<-started
	}
	for i, p := range places {
		if err := <-asked[i]; err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		for later := i + 2; later < len(places); later++ {
			if places[later].state != waits {
				t.Fatalf("call %d runs before call %d ended", later, i)
			}
		}
		p.Leave()
	}
	empty(t, q)
}

func TestWhoLeavesTheMiddleOfTheQueueHoldsNobodyUp(t *testing.T) {
	q := New(1, 10, 100)
	first, second, third := enter(t, q, 0), enter(t, q, 0), enter(t, q, 0)
	second.Leave()
	first.Leave()
	if err := third.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	third.Leave()
	empty(t, q)
}
