package shim

import (
	"context"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shim"
)

// deliveryWait bounds how long a deletion waits for its event.
const deliveryWait = 2 * time.Second

// deliveries tells when a task's last event has reached containerd. The wrapped
// service publishes in the background and in order; containerd asks the shim to
// end right after a deletion, and what was not published by then would be lost.
type deliveries struct {
	shim.Publisher

	mu      sync.Mutex
	waiting map[string]chan struct{} // by container id, guarded by mu
}

func newDeliveries(p shim.Publisher) *deliveries {
	return &deliveries{Publisher: p, waiting: map[string]chan struct{}{}}
}

// Publish passes an event on and notes a task's last one.
func (d *deliveries) Publish(ctx context.Context, topic string, event events.Event) error {
	err := d.Publisher.Publish(ctx, topic, event)
	if last, ok := event.(*eventstypes.TaskDelete); ok {
		d.mu.Lock()
		if c, ok := d.waiting[last.ContainerID]; ok {
			close(c)
			delete(d.waiting, last.ContainerID)
		}
		d.mu.Unlock()
	}
	return err
}

// expect is called before a deletion; wait, after it, returns once the task's
// last event was passed on.
func (d *deliveries) expect(id string) (wait func(deleted bool)) {
	c := make(chan struct{})
	d.mu.Lock()
	d.waiting[id] = c
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
		if d.waiting[id] == c {
			delete(d.waiting, id)
		}
		d.mu.Unlock()
	}
}
