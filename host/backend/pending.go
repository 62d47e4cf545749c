package backend

import (
	"encoding/json"
	"errors"
	"io"
	"sync"
)

// Pending is an [Answer] that is still to come: who reads it waits until one of
// Answer and Refuse is called, which must happen once.
type Pending struct {
	explain func(error) *Refusal
	end     func()

	// ready is closed when head, body and refusal are set.
	ready   chan struct{}
	head    json.RawMessage
	body    io.Reader
	refusal *Refusal

	mu   sync.Mutex
	last error // what the body ended with; guarded by mu
}

// NewPending makes one. explain says what an error of the body means; end ends
// the call and frees what it holds: it may be called often, and waits for nothing.
func NewPending(explain func(error) *Refusal, end func()) *Pending {
	return &Pending{explain: explain, end: end, ready: make(chan struct{})}
}

// Answer gives the answer. A body that holds something is closed by the call's end.
func (p *Pending) Answer(head json.RawMessage, body io.Reader) {
	p.head, p.body = head, body
	close(p.ready)
}

// Refuse refuses the call, which ends it.
func (p *Pending) Refuse(r *Refusal) {
	p.refusal = r
	p.end()
	close(p.ready)
}

// Head waits for the answer's head.
func (p *Pending) Head() (json.RawMessage, *Refusal) {
	<-p.ready
	return p.head, p.refusal
}

// Read reads the answer's body; its end ends the call.
func (p *Pending) Read(b []byte) (int, error) {
	<-p.ready
	if p.refusal != nil {
		return 0, p.refusal
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil {
		return 0, p.last
	}
	n, err := p.body.Read(b)
	if err == nil {
		return n, nil
	}
	if p.last = err; !errors.Is(err, io.EOF) {
		p.last = p.explain(err)
	}
	p.end()
	return n, p.last
}

// Close ends the call. It waits for nothing that another reader holds.
func (p *Pending) Close() error {
	p.end()
	return nil
}
