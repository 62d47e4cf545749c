package queue

import (
	"context"
	"sync"
	"time"

	"github.com/mentatlab/mentat/host/backend"
)

// Queue bounds calls. It may be used from several goroutines.
type Queue struct {
	turns chan struct{}
	calls int
	bytes int64

	mu   sync.Mutex
	held int   // calls that run or wait; guarded by mu
	used int64 // their bytes; guarded by mu
}

// New allows running calls at once, and as many that run or wait as calls,
// holding bytes together.
func New(running, calls int, bytes int64) *Queue {
	return &Queue{turns: make(chan struct{}, running), calls: max(calls, running), bytes: bytes}
}

// Place is one call's place. It must be left.
type Place struct {
	q    *Queue
	size int64
	turn bool // guarded by q.mu
	left bool // guarded by q.mu
}

// Enter takes a place for a call that holds size bytes.
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
	return &Place{q: q, size: size}, nil
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
	case p.q.turns <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	if p.left {
		<-p.q.turns
		return context.Canceled
	}
	p.turn = true
	return nil
}

// Leave gives the place back; leaving twice is no error.
func (p *Place) Leave() {
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	if p.left {
		return
	}
	p.left = true
	p.q.held--
	p.q.used -= p.size
	if p.turn {
		<-p.q.turns
	}
}
