package shim

import (
	"context"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shim"
)

// deliveryWait bounds how long a deletion waits for its events.
const deliveryWait = 2 * time.Second

// deliveries tells when a task's last events have reached containerd. The wrapped
// service publishes in the background; containerd asks the shim to end right after
// a deletion, and what was not published by then would be lost. The event of an
// exit can come after that of the deletion: who waited for the exit is told before
// the event is put into the line.
type deliveries struct {
	shim.Publisher

	mu    sync.Mutex
	tasks map[string]*delivery // by container id, guarded by mu
}

// delivery is what has been published of one task. A task that was never started
// has no exit.
type delivery struct {
	started, exited, deleted bool
	waiting                  chan struct{} // nil unless a deletion waits
}

func newDeliveries(p shim.Publisher) *deliveries {
	return &deliveries{Publisher: p, tasks: map[string]*delivery{}}
}

// of finds a task's state; mu is held.
func (d *deliveries) of(id string) *delivery {
	t := d.tasks[id]
	if t == nil {
		t = &delivery{}
		d.tasks[id] = t
	}
	return t
}

// started notes that a task will have an exit.
func (d *deliveries) started(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.of(id).started = true
}

// Publish passes an event on and notes a task's last ones.
func (d *deliveries) Publish(ctx context.Context, topic string, event events.Event) error {
	err := d.Publisher.Publish(ctx, topic, event)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e := event.(type) {
	case *eventstypes.TaskExit:
		if e.ID == e.ContainerID { // else it is an additional process's
			d.of(e.ContainerID).exited = true
			d.check(e.ContainerID)
		}
	case *eventstypes.TaskDelete:
		if t := d.tasks[e.ContainerID]; t != nil {
			t.deleted = true
			d.check(e.ContainerID)
		}
	}
	return err
}

// check lets a deletion go on whose events have all been published; mu is held.
func (d *deliveries) check(id string) {
	t := d.tasks[id]
	if t.waiting != nil && t.deleted && (t.exited || !t.started) {
		close(t.waiting)
		t.waiting = nil
	}
}

// expect is called before a deletion; wait, after it, returns once the task's
// last events were passed on.
func (d *deliveries) expect(id string) (wait func(deleted bool)) {
	c := make(chan struct{})
	d.mu.Lock()
	d.of(id).waiting = c
	d.mu.Unlock()
	return func(deleted bool) {
		if deleted {
			timer := time.NewTimer(deliveryWait)
			defer timer.Stop()
			select {
			case <-c:
			case <-timer.C:
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if t := d.tasks[id]; t != nil && deleted {
			delete(d.tasks, id)
		} else if t != nil {
			t.waiting = nil
		}
	}
}
