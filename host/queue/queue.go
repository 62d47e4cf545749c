package queue

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mentatlab/mentat/host/backend"
)

// Queue bounds calls. It may be used from several goroutines.
type Queue struct {
	most  int // calls that run at once
	calls int
	bytes int64

	mu      sync.Mutex
	held    int      // calls that run or wait; guarded by mu
	used    int64    // their bytes; guarded by mu
	running int      // guarded by mu
	waiting []*Place // the first to enter first; guarded by mu
}

// New allows running calls at once, and as many that run or wait as calls,
// holding bytes together.
func New(running, calls int, bytes int64) *Queue {
	return &Queue{most: running, calls: max(calls, running), bytes: bytes}
}

// Place is one call's place. It must be left.
type Place struct {
	q     *Queue
	size  int64
	turn  chan struct{} // closed when the call may run
	left  chan struct{} // closed when the place was left
	state state         // guarded by q.mu
}

type state int

const (
	waits state = iota
	runs
	gone
)

// Enter takes a place for a call that holds size bytes. Turns go in the order of
// entry: a guest that reads its answers in the order of its calls never waits
// for one that it would read later.
func (q *Queue) Enter(size int64) (*Place, *backend.Refusal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.held >= q.calls:
		return nil, refuse("too many calls run or wait")
	case size > q.bytes-q.used && q.held > 0:
		return nil, refuse("the calls that run or wait hold too many bytes")
	}
	q.held++
	q.used += size
	p := &Place{q: q, size: size, turn: make(chan struct{}), left: make(chan struct{})}
	q.waiting = append(q.waiting, p)
	q.advance()
	return p, nil
}

// advance gives free turns to those that wait; q.mu is held.
func (q *Queue) advance() {
	for q.running < q.most && len(q.waiting) > 0 {
		p := q.waiting[0]
		q.waiting = slices.Delete(q.waiting, 0, 1)
		q.running++
		p.state = runs
		close(p.turn)
	}
}

func refuse(reason string) *backend.Refusal {
	return &backend.Refusal{
		Code: backend.Limit, Rule: "concurrent calls", Reason: reason,
		Hint: "read and close the answers of earlier calls", RetryAfter: time.Second,
	}
}

// Wait waits for the call's turn. Its error is the context's, or that the place
// was left.
func (p *Place) Wait(ctx context.Context) error {
	select {
	case <-p.turn:
	case <-p.left:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-p.left:
		return context.Canceled
	default:
		return nil
	}
}

// Leave gives the place back; leaving twice is no error.
func (p *Place) Leave() {
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	switch p.state {
	case gone:
		return
	case runs:
		p.q.running--
	case waits:
		i := slices.Index(p.q.waiting, p)
		p.q.waiting = slices.Delete(p.q.waiting, i, i+1)
	}
	p.state = gone
	close(p.left)
	p.q.held--
	p.q.used -= p.size
	p.q.advance()
}
