package wasi

import (
	"math"
	"slices"
	"time"
)

// Subscriptions and events, as preview 1 lays them out.
const (
	subscriptionBytes = 48
	eventBytes        = 32

	onClock = 0
	onRead  = 1
	onWrite = 2

	absoluteTime = 1
)

// maxPolls bounds the subscriptions of one call.
const maxPolls = 4096

// never is longer than any run.
const never = time.Duration(math.MaxInt64)

// poll is a subscription.
type poll struct {
	mark  [8]byte // the guest's own
	tag   byte
	errno Errno
	stdin bool          // it waits for stdin
	left  time.Duration // else it waits for time; 0 is now
}

// pollOneoff waits for time and for stdin, as long as the run lasts. Files are
// always ready, as they are everywhere; so is output, which waits by itself.
func pollOneoff(c *Call) Errno {
	n := c.u32(2)
	switch {
	case n == 0:
		return Inval
	case n > maxPolls:
		return NoMem
	}
	subscriptions := c.out(0, uint64(n)*subscriptionBytes)
	if subscriptions == nil {
		return traps
	}
	events := c.out(1, uint64(n)*eventBytes)
	if events == nil {
		return traps
	}
	result := c.out(3, 4)
	if result == nil {
		return traps
	}
	polls, e := c.g.polls(subscriptions)
	if e != Success {
		return e
	}
	left, ready := c.g.await(polls)
	count := uint32(0)
	for i := range polls {
		if p := &polls[i]; p.stdin && ready || !p.stdin && p.left <= left {
			p.event(events[count*eventBytes:])
			count++
		}
	}
	le.PutUint32(result, count)
	return Success
}

// await waits until a subscription is there. It returns how much time has passed
// and whether stdin is ready.
func (g *Guest) await(polls []poll) (passed time.Duration, ready bool) {
	passed, input := never, false
	for i := range polls {
		if polls[i].stdin {
			input = true
		} else {
			passed = min(passed, polls[i].left)
		}
	}
	wait := passed
	if passed == never {
		wait = -1
	}
	if ready = g.host.Wait(wait, input); ready && passed > 0 {
		passed = 0
	}
	return passed, ready
}

// polls reads the subscriptions, which the events may lie over.
func (g *Guest) polls(subscriptions []byte) ([]poll, Errno) {
	polls := make([]poll, 0, len(subscriptions)/subscriptionBytes)
	for sub := range slices.Chunk(subscriptions, subscriptionBytes) {
		p := poll{mark: [8]byte(sub), tag: sub[8]}
		switch p.tag {
		case onClock:
			p.left, p.errno = g.timeLeft(sub)
		case onRead, onWrite:
			p.stdin, p.errno = g.canMove(le.Uint32(sub[16:]), p.tag)
		default:
			return nil, Inval
		}
		polls = append(polls, p)
	}
	return polls, Success
}

// canMove judges a subscription to a descriptor; waits says that it is for stdin.
func (g *Guest) canMove(number uint32, tag byte) (waits bool, e Errno) {
	d, e := g.table.get(number)
	switch {
	case e != Success:
		return false, e
	case d.kind == regular:
		return false, Success
	case tag == onRead && d.kind == stdin:
		return true, Success
	case tag == onWrite && (d.kind == stdout || d.kind == stderr):
		return false, Success
	}
	return false, BadF
}

func (p *poll) event(out []byte) {
	clear(out[:eventBytes])
	copy(out, p.mark[:])
	le.PutUint16(out[8:], uint16(p.errno))
	out[10] = p.tag
	if p.tag != onClock && p.errno == Success {
		le.PutUint64(out[16:], 1) // at least
	}
}

// timeLeft is how long a clock's subscription still waits.
func (g *Guest) timeLeft(sub []byte) (time.Duration, Errno) {
	timeout := le.Uint64(sub[24:])
	now, ok := g.now(le.Uint32(sub[16:]))
	switch {
	case !ok:
		return 0, NotSup
	case le.Uint16(sub[40:])&absoluteTime == 0:
		now = 0
	}
	if timeout <= now {
		return 0, Success
	}
	const most = 1 << 62 // a century
	return time.Duration(min(timeout-now, most)), Success
}
