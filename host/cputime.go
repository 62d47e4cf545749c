package host

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
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

// meter ends the run when its thread, which is the caller's, has spent so much
// of its time. No thread spends more than a second of it in a second, so that
// nothing is looked at before. The guest is over when release is called.
func (s *session) meter(limit time.Duration) (release func()) {
	clock := ownClock()
	var mu sync.Mutex // between a look and the release
	var timer *time.Timer
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if timer == nil {
			return
		}
		left := clock.left(limit)
		if left <= 0 {
			s.stop(endOf(fault.CPUTime, fmt.Sprintf("the run's processor time of %d ms is used up", limit.Milliseconds())))
			return
		}
		timer.Reset(max(left, cpuPoll))
	}
	mu.Lock()
	timer = time.AfterFunc(limit, look)
	mu.Unlock()
	return func() {
		mu.Lock()
		timer.Stop()
		timer = nil
		mu.Unlock()
		runtime.UnlockOSThread()
	}
}

// left is what the clock leaves of a limit; where it cannot be read nothing is.
func (c threadClock) left(limit time.Duration) time.Duration {
	now, ok := c.read()
	if !ok {
		return 0
	}
	return limit - (now - c.before)
}
