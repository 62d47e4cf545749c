package host

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// cpuPoll is the shortest wait between two looks at a guest's clock: a guest
// that waits near its limit must not keep the host awake.
const cpuPoll = 10 * time.Millisecond

// threadClock is the processor time of a guest's thread, of which some was spent
// before the guest came.
type threadClock struct {
	id     int32
	before time.Duration
}

// ownClock keeps the calling goroutine on its thread and returns that thread's
// clock.
func ownClock() threadClock {
	runtime.LockOSThread()
	// The kernel's number of a thread's own clock (linux/posix-timers.h).
	const perThread, scheduler = 4, 2
	c := threadClock{id: int32(^unix.Gettid()<<3 | perThread | scheduler)}
	c.before, _ = c.read()
	return c
}

func (c threadClock) read() (time.Duration, bool) {
	var t unix.Timespec
	err := unix.ClockGettime(c.id, &t)
	return time.Duration(t.Nano()), err == nil
}

// meter watches one clock: due fires when the limit may have been reached. No
// thread spends more than a second of its time in a second, so that nothing is
// looked at before.
type meter struct {
	limit time.Duration
	clock threadClock
	due   <-chan time.Time
}

func (m *meter) start(c threadClock) {
	m.clock, m.due = c, time.After(m.limit)
}

// spent tells whether the limit was reached, and waits on if not.
func (m *meter) spent() bool {
	now, ok := m.clock.read()
	if !ok { // the thread has ended, and the guest with it
		m.due = nil
		return false
	}
	left := m.limit - (now - m.clock.before)
	if left <= 0 {
		return true
	}
	m.due = time.After(max(left, cpuPoll))
	return false
}
