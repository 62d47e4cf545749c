package wasi

import (
	"crypto/rand"
	"time"
)

func argsGet(c *Call) Errno { return c.strings(c.g.c.Args) }

func argsSizesGet(c *Call) Errno { return c.sizes(c.g.c.Args) }

func environGet(c *Call) Errno { return c.strings(c.g.c.Env) }

func environSizesGet(c *Call) Errno { return c.sizes(c.g.c.Env) }

// bytesOf is what strings take with the zero behind each.
func bytesOf(list []string) uint64 {
	n := uint64(len(list))
	for _, s := range list {
		n += uint64(len(s))
	}
	return n
}

func (c *Call) sizes(list []string) Errno {
	count := c.out(0, 4)
	if count == nil {
		return traps
	}
	total := c.out(1, 4)
	if total == nil {
		return traps
	}
	le.PutUint32(count, uint32(len(list)))
	le.PutUint32(total, uint32(bytesOf(list)))
	return Success
}

// strings writes a list of pointers and the texts that they point to.
func (c *Call) strings(list []string) Errno {
	pointers := c.out(0, 4*uint64(len(list)))
	if pointers == nil {
		return traps
	}
	texts := c.out(1, bytesOf(list))
	if texts == nil {
		return traps
	}
	at := c.u32(1)
	for i, s := range list {
		le.PutUint32(pointers[4*i:], at)
		n := copy(texts, s)
		texts[n] = 0
		texts = texts[n+1:]
		at += uint32(n) + 1
	}
	return Success
}

// Clocks.
const (
	realtime  = 0
	monotonic = 1
)

func clockResGet(c *Call) Errno {
	out := c.out(1, 8)
	switch {
	case out == nil:
		return traps
	case c.u32(0) != realtime && c.u32(0) != monotonic:
		return Inval
	}
	le.PutUint64(out, 1)
	return Success
}

func clockTimeGet(c *Call) Errno {
	out := c.out(2, 8)
	if out == nil {
		return traps
	}
	now, ok := c.g.now(c.u32(0))
	if !ok {
		return Inval
	}
	le.PutUint64(out, now)
	return Success
}

// now is the time of a clock in nanoseconds. The monotonic one began with the
// guest.
func (g *Guest) now(clock uint32) (uint64, bool) {
	switch clock {
	case realtime:
		return uint64(time.Now().UnixNano()), true
	case monotonic:
		return uint64(time.Since(g.began)), true
	}
	return 0, false
}

// randomStep is how much is made between two looks at the run's end.
const randomStep = 1 << 20

func randomGet(c *Call) Errno {
	out := c.buffer(0)
	if out == nil {
		return traps
	}
	for len(out) > 0 && !c.g.host.Over() {
		n := min(len(out), randomStep)
		// Never fails: the runtime aborts instead.
		_, _ = rand.Read(out[:n])
		out = out[n:]
	}
	return Success
}

// schedYield has nobody to leave the processor to.
func schedYield(*Call) Errno { return Success }

func procRaise(*Call) Errno { return NotSup }

// sock answers for all that sockets can do: there are none.
func sock(c *Call) Errno {
	if _, e := c.descriptor(0); e != Success {
		return e
	}
	return NotSock
}
