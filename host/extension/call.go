package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/queue"
	"github.com/mentatlab/mentat/internal/limits"
)

// Causes of a call's end.
var (
	errIdle     = errors.New("the extension says nothing")
	errFinished = errors.New("the call is finished")
)

// call is one call of an extension ([backend.Answer]).
type call struct {
	p      *program
	id     int64
	cancel context.CancelCauseFunc
	// wake says that there is something new for who waits.
	wake chan struct{}

	mu      sync.Mutex
	sent    bool             // the program knows of the call; guarded by mu
	timer   *time.Timer      // guarded by mu
	head    json.RawMessage  // guarded by mu
	data    []byte           // what was not read yet; guarded by mu
	read    int64            // what was read and not yet said; guarded by mu
	over    bool             // nothing more comes; guarded by mu
	refusal *backend.Refusal // why, unless that is the proper end; guarded by mu
}

// start waits for the call's turn and sends it.
func (c *call) start(ctx context.Context, place *queue.Place, r request) {
	if place.Wait(ctx) != nil {
		return // what ended the context ends the call
	}
	message, err := encode(&r)
	if err != nil {
		c.finish(&backend.Refusal{Code: backend.Invalid, Reason: "the call cannot be passed on"})
		return
	}
	c.mu.Lock()
	if !c.over {
		c.timer = time.AfterFunc(c.p.idle, func() { c.cancel(errIdle) })
	}
	c.mu.Unlock()
	select {
	case c.p.send <- message:
	case <-c.p.over:
		return
	case <-ctx.Done():
		return
	}
	c.mu.Lock()
	c.sent = true
	late := c.over
	c.mu.Unlock()
	if late {
		c.hangUp()
	}
}

// take takes a message of the program.
func (c *call) take(r *reply) {
	switch {
	case r.End:
		c.finish(nil)
		return
	case r.Error != nil:
		c.finish(r.Error.refusal(c.p.name))
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.timer == nil { // it was not sent yet: a guess
		return
	}
	c.timer.Reset(c.p.idle)
	switch {
	case len(r.Head) > 0 && c.head == nil:
		c.head = json.RawMessage(r.Head)
	case len(r.Head) > 0 || len(c.data)+len(r.Body) > limits.ExtensionUnreadBytes:
		// A second head is of no use; and who does not read must not make the host
		// keep everything.
		reason := fmt.Sprintf("over %d bytes of the answer were not read", limits.ExtensionUnreadBytes)
		if len(r.Head) > 0 {
			reason = "the extension " + c.p.name + " sends a second head"
		}
		c.finishLocked(&backend.Refusal{Code: backend.Limit, Rule: "extension " + c.p.name, Reason: reason})
		go c.hangUp()
	default:
		if c.head == nil {
			c.head = json.RawMessage("{}")
		}
		c.data = append(c.data, r.Body...)
	}
	c.notify()
}

func (c *call) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// finish ends the call from the program's side.
func (c *call) finish(refusal *backend.Refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishLocked(refusal)
}

func (c *call) finishLocked(refusal *backend.Refusal) {
	if c.over {
		return
	}
	c.over, c.refusal = true, refusal
	if c.head == nil && refusal == nil {
		c.head = json.RawMessage("{}")
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.p.mu.Lock()
	delete(c.p.calls, c.id)
	c.p.mu.Unlock()
	c.notify()
	c.cancel(errFinished)
}

// ended ends the call from the guest's side: it closed it, or its time is over.
func (c *call) ended(cause error) {
	refusal := &backend.Refusal{Code: backend.Canceled, Reason: "the call was ended"}
	switch {
	case errors.Is(cause, errIdle):
		refusal = &backend.Refusal{Code: backend.Deadline, Rule: "extension " + c.p.name, Reason: fmt.Sprintf("the extension %s said nothing for %v", c.p.name, c.p.idle)}
	case errors.Is(cause, context.DeadlineExceeded):
		refusal = &backend.Refusal{Code: backend.Deadline, Reason: "the run's time is over"}
	}
	c.mu.Lock()
	tell := c.sent && !c.over
	c.finishLocked(refusal)
	c.mu.Unlock()
	if tell {
		c.hangUp()
	}
}

// hangUp tells the program that nobody waits for the call any more.
func (c *call) hangUp() { c.say(&request{Cancel: c.id}) }

func (c *call) say(r *request) {
	message, err := encode(r)
	if err != nil {
		return
	}
	select {
	case c.p.send <- message:
	case <-c.p.over:
	case <-time.After(c.p.idle):
		// It takes no messages; the calls that wait for it tell.
	}
}

// Head waits for the answer's head.
func (c *call) Head() (json.RawMessage, *backend.Refusal) {
	for {
		c.mu.Lock()
		head, over, refusal := c.head, c.over, c.refusal
		c.mu.Unlock()
		switch {
		case head != nil:
			return head, nil
		case over:
			return nil, refusal
		}
		<-c.wake
	}
}

// Read reads the answer's body.
func (c *call) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		n := copy(p, c.data)
		c.data = c.data[n:]
		c.read += int64(n)
		over, refusal := c.over, c.refusal
		if said := c.read; said >= limits.ExtensionUnreadBytes/4 && !over {
			c.read = 0
			go c.say(&request{Read: c.id, Bytes: said})
		}
		c.mu.Unlock()
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case over && refusal != nil:
			return 0, refusal
		case over:
			return 0, io.EOF
		}
		<-c.wake
	}
}

// Close ends the call.
func (c *call) Close() error {
	c.cancel(context.Canceled)
	return nil
}
