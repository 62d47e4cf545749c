package serve

import (
	"sync"
	"time"
)

// lease is a place among the instances. It is given back once two things hold
// no memory any more: the instance and the answer.
type lease struct {
	s     *Server
	began time.Time

	mu sync.Mutex
	// took is set when the run has ended.
	took                time.Duration
	free, over, settled bool
}

// freed says that the instance's memory was given back; it may be said twice.
func (l *lease) freed() { l.set(&l.free) }

// answered says that nothing of the answer is held any more.
func (l *lease) answered() { l.set(&l.settled) }

// ended says that the run has ended. An instance that is not free by now holds
// its place, and is counted.
func (l *lease) ended() {
	l.mu.Lock()
	l.took = time.Since(l.began)
	l.mu.Unlock()
	l.s.metrics.ran(l.took)
	l.set(&l.over)
}

func (l *lease) set(state *bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if *state {
		return
	}
	*state = true
	switch {
	case state == &l.over && !l.free:
		l.s.stuck.Add(1)
	case state == &l.free && l.over:
		l.s.stuck.Add(-1)
	}
	if l.free && l.settled && state != &l.over {
		l.s.admission.leave(l.took)
	}
}
