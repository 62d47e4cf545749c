package shim

import (
	"context"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
)

// slowPublisher publishes only when it is let.
type slowPublisher struct {
	let chan struct{}
}

func (p slowPublisher) Publish(context.Context, string, events.Event) error {
	<-p.let
	return nil
}

func (slowPublisher) Close() error { return nil }

func TestADeletionWaitsForItsEvent(t *testing.T) {
	p := slowPublisher{let: make(chan struct{})}
	d := newDeliveries(p)
	wait := d.expect("a")
	published := make(chan struct{})
	go func() {
		defer close(published)
		for _, e := range []events.Event{&eventstypes.TaskExit{ContainerID: "a"}, &eventstypes.TaskDelete{ContainerID: "b"}, &eventstypes.TaskDelete{ContainerID: "a"}} {
			if err := d.Publish(t.Context(), "", e); err != nil {
				t.Error(err)
			}
		}
	}()
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		wait(true)
	}()
	for range 2 {
		p.let <- struct{}{}
		select {
		case <-waited:
			t.Fatal("it did not wait for its own last event")
		default:
		}
	}
	p.let <- struct{}{}
	<-published
	select {
	case <-waited:
	case <-time.After(deliveryWait + 10*time.Second):
		t.Fatal("it waits for ever")
	}
	if len(d.waiting) != 0 {
		t.Errorf("left behind: %v", d.waiting)
	}
}

func TestAFailedDeletionWaitsForNothing(t *testing.T) {
	d := newDeliveries(slowPublisher{})
	d.expect("a")(false)
	if len(d.waiting) != 0 {
		t.Errorf("left behind: %v", d.waiting)
	}
}
