package serve

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// admission bounds how many requests run and how many wait, in the order in
// which they came.
type admission struct {
	slots   chan struct{}
	queue   int64
	waiting atomic.Int64
	// pace is how long a run took lately, in nanoseconds.
	pace atomic.Int64
}

func newAdmission(concurrent, queue int) *admission {
	return &admission{slots: make(chan struct{}, concurrent), queue: int64(queue)}
}

// full tells whether a request that came now would be refused.
func (a *admission) full() bool {
	return len(a.slots) == cap(a.slots) && a.waiting.Load() >= a.queue
}

// enter waits for an instance; who entered must leave.
func (a *admission) enter(ctx context.Context) error {
	// A slot that becomes free goes to who waits longest, so nobody overtakes here.
	select {
	case a.slots <- struct{}{}:
		return nil
	default:
	}
	if a.waiting.Add(1) > a.queue {
		a.waiting.Add(-1)
		return a.overloaded()
	}
	defer a.waiting.Add(-1)
	patience := time.NewTimer(limits.ServeQueueTime)
	defer patience.Stop()
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-patience.C:
		return a.overloaded()
	case <-ctx.Done():
		return fault.Wrap(context.Cause(ctx), fault.Canceled, "", "the request was given up while it waited")
	}
}

// leave makes room for the next one after a run that took that long.
func (a *admission) leave(took time.Duration) {
	// Of two at once one may be lost: it is an estimate.
	a.pace.Store((7*a.pace.Load() + int64(took)) / 8)
	<-a.slots
}

func (a *admission) overloaded() error {
	return fault.New(fault.Unavailable, "", "%d requests run and %d wait, which is all that is taken", cap(a.slots), a.queue).
		WithHint("try again later")
}

// Bounds on what a client is told to wait.
const (
	minRetry = 1 * time.Second
	maxRetry = 30 * time.Second
)

// retry is when a refused request may find room: once those that wait have run.
func (a *admission) retry() time.Duration {
	wait := time.Duration(a.pace.Load() * (a.waiting.Load() + 1) / int64(cap(a.slots)))
	return min(max(wait.Round(time.Second), minRetry), maxRetry)
}
