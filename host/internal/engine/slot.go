package engine

import (
	"sync"
	"sync/atomic"
)

// slot is how C names a run: a place in a table that is read without a lock, for
// every call of a guest passes through it.
type slot uintptr

const (
	tablePages = 1 << 10
	pageSlots  = 1 << 8
)

type page [pageSlots]atomic.Pointer[Run]

var table [tablePages]atomic.Pointer[page]

var slots struct {
	sync.Mutex
	free []slot
	used slot // slots that were ever used
}

// enter puts a run into the table. A process cannot have as many threads as there
// are places.
func enter(r *Run) slot {
	slots.Lock()
	defer slots.Unlock()
	var s slot
	if n := len(slots.free); n > 0 {
		s, slots.free = slots.free[n-1], slots.free[:n-1]
	} else {
		s = slots.used
		slots.used++
		if s%pageSlots == 0 {
			table[s/pageSlots].Store(new(page))
		}
	}
	table[s/pageSlots].Load()[s%pageSlots].Store(r)
	return s
}

// leave takes the run out again.
func (s slot) leave() {
	table[s/pageSlots].Load()[s%pageSlots].Store(nil)
	slots.Lock()
	defer slots.Unlock()
	slots.free = append(slots.free, s)
}

func (s slot) run() *Run { return table[s/pageSlots].Load()[s%pageSlots].Load() }
