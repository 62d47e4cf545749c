package host

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"
)

// WASI's subscriptions and events, as preview 1 lays them out.
const (
	subscriptionBytes = 48
	eventBytes        = 32

	clockTag   = 0
	fdReadTag  = 1
	fdWriteTag = 2

	realtimeClock  = 0
	monotonicClock = 1
	absoluteTime   = 1
)

// WASI's error numbers.
const (
	errnoSuccess  = 0
	errnoFault    = 21
	errnoInvalid  = 28
	errnoNoMemory = 48
	errnoNotSup   = 58
)

// maxPolls bounds the subscriptions of one call.
const maxPolls = 4096

// pollOneoff is WASI's, for the runs of a process that goes on: it waits for
// clocks as long as the run lasts. Files are always ready, as they are everywhere;
// so are the standard streams, for stdin has an end and output waits by itself.
func pollOneoff(c *call) bool {
	in, out, n, count := c.values[0].U32(), c.values[1].U32(), c.values[2].U32(), c.values[3].U32()
	switch {
	case n == 0:
		return c.returns(errnoInvalid)
	case n > maxPolls:
		return c.returns(errnoNoMemory)
	}
	subscriptions := spanOf(c.memory, in, n, subscriptionBytes)
	events := spanOf(c.memory, out, n, eventBytes)
	result := view(c.memory, count, 4)
	if subscriptions == nil || events == nil || result == nil {
		return c.returns(errnoFault)
	}
	polls, code := c.s.polls(subscriptions)
	if code != errnoSuccess {
		return c.returns(code)
	}
	first := slices.MinFunc(polls, func(a, b poll) int { return cmp.Compare(a.left, b.left) }).left
	if first > 0 && !c.s.sleep(first) {
		return false // no code reaches the guest
	}
	ready := uint32(0)
	for _, one := range polls {
		if one.left <= first {
			one.event(events[ready*eventBytes:])
			ready++
		}
	}
	binary.LittleEndian.PutUint32(result, ready)
	return c.returns(errnoSuccess)
}

// spanOf returns the memory of n records, or nil when it is out of range.
func spanOf(memory []byte, ptr, n uint32, size uint64) []byte {
	end := uint64(ptr) + uint64(n)*size
	if end > uint64(len(memory)) {
		return nil
	}
	return memory[ptr:end:end]
}

// poll is a subscription.
type poll struct {
	mark  [8]byte // the guest's own
	tag   byte
	errno uint16
	left  time.Duration // 0 is now
}

// polls reads the subscriptions, which the events may lie over.
func (s *session) polls(subscriptions []byte) ([]poll, int32) {
	polls := make([]poll, 0, len(subscriptions)/subscriptionBytes)
	for sub := range slices.Chunk(subscriptions, subscriptionBytes) {
		one := poll{mark: [8]byte(sub), tag: sub[8]}
		switch one.tag {
		case clockTag:
			one.left, one.errno = s.timeLeft(sub)
		case fdReadTag, fdWriteTag:
		default:
			return nil, errnoInvalid
		}
		polls = append(polls, one)
	}
	return polls, errnoSuccess
}

func (p *poll) event(out []byte) {
	clear(out[:eventBytes])
	copy(out, p.mark[:])
	binary.LittleEndian.PutUint16(out[8:], p.errno)
	out[10] = p.tag
}

// timeLeft is how long a clock's subscription still waits.
func (s *session) timeLeft(sub []byte) (time.Duration, uint16) {
	timeout := binary.LittleEndian.Uint64(sub[24:])
	absolute := binary.LittleEndian.Uint16(sub[40:])&absoluteTime != 0
	var now uint64
	switch clock := binary.LittleEndian.Uint32(sub[16:]); {
	case clock != realtimeClock && clock != monotonicClock:
		return 0, errnoNotSup
	case !absolute:
	case clock == realtimeClock:
		now = uint64(time.Now().UnixNano())
	default:
		now = uint64(time.Since(s.clockStart))
	}
	if timeout <= now {
		return 0, errnoSuccess
	}
	const most = 1 << 62 // a century
	return time.Duration(min(timeout-now, most)), errnoSuccess
}

// sleep waits; false says that the run ended meanwhile.
func (s *session) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.over:
		return false
	}
}
