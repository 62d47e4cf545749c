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

func TestADeletionWaitsForItsEvents(t *testing.T) {
	exit := func(id, process string) events.Event { return &eventstypes.TaskExit{ContainerID: id, ID: process} }
	deletion := func(id string) events.Event { return &eventstypes.TaskDelete{ContainerID: id} }
	for name, c := range map[string]struct {
		started bool
		events  []events.Event // the last one is what it waits for
	}{
		"in order":              {true, []events.Event{exit("a", "a"), deletion("b"), deletion("a")}},
		"the exit comes last":   {true, []events.Event{deletion("a"), exit("b", "b"), exit("a", "other"), exit("a", "a")}},
		"it was never started":  {false, []events.Event{exit("b", "b"), deletion("a")}},
		"another task's events": {true, []events.Event{exit("b", "b"), deletion("b"), deletion("a"), exit("a", "a")}},
	} {
		t.Run(name, func(t *testing.T) {
			p := slowPublisher{let: make(chan struct{})}
			d := newDeliveries(p)
			if c.started {
				d.started("a")
			}
			wait := d.expect("a")
			published := make(chan struct{})
			go func() {
				defer close(published)
				for _, e := range c.events {
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
			for range len(c.events) - 1 {
				p.let <- struct{}{}
				select {
				case <-waited:
					t.Fatal("it did not wait for all its events")
				default:
				}
			}
			p.let <- struct{}{}
			<-published
			select {
			case <-waited:
			case <-time.After(deliveryWait + 30*time.Second):
				t.Fatal("it waits for ever")
			}
			if d.tasks["a"] != nil {
				t.Errorf("left behind: %+v", d.tasks["a"])
			}
		})
	}
}

func TestAFailedDeletionWaitsForNothing(t *testing.T) {
	d := newDeliveries(slowPublisher{})
	d.started("a")
	d.expect("a")(false)
	if task := d.tasks["a"]; task == nil || !task.started || task.waiting != nil {
		t.Errorf("left behind: %+v", task)
	}
}
