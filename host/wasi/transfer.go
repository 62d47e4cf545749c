package wasi

import (
	"math"

	"golang.org/x/sys/unix"
)

// refused answers a call for a regular file that could not be served without this
// package: with what the system said, or with what is wrong with the call. One
// that nothing is wrong with came too late.
func (c *Call) refused(d *descriptor, may bool, vectors int) Errno {
	if err := c.g.files.RefusedBy(); err != 0 {
		return errnoOf(err)
	}
	switch {
	case d.kind == directory || d.kind == regular && !may:
		return BadF
	case vectors >= 0:
		if _, e := c.vectors(vectors); e != Success {
			return e
		}
	}
	return Inval
}

func fdRead(c *Call) Errno {
	result := c.out(3, 4)
	d, e := c.descriptor(0)
	switch {
	case result == nil:
		return traps
	case e != Success:
		return e
	case d.kind != stdin && d.stream():
		return BadF
	case d.kind != stdin:
		return c.refused(d, d.read, 1)
	}
	n, e := c.readStream()
	if e != Success {
		return e
	}
	le.PutUint32(result, uint32(n))
	return Success
}

// readStream waits for the first byte of stdin only.
func (c *Call) readStream() (int, Errno) {
	v, e := c.vectors(1)
	if e != Success {
		return 0, e
	}
	total := 0
	for _, b := range v {
		n, e := c.g.host.Read(b[:min(len(b), math.MaxInt32-total)], total == 0)
		if total += n; e != Success || n < len(b) {
			return total, e
		}
	}
	return total, Success
}

func fdWrite(c *Call) Errno {
	result := c.out(3, 4)
	d, e := c.descriptor(0)
	switch {
	case result == nil:
		return traps
	case e != Success:
		return e
	case d.kind == stdin:
		return BadF
	case !d.stream():
		return c.refused(d, d.write, 1)
	}
	v, e := c.vectors(1)
	if e != Success {
		return e
	}
	total := 0
	for _, b := range v {
		b = b[:min(len(b), math.MaxInt32-total)]
		if e := c.g.host.Write(int(d.kind), b); e != Success {
			return e
		}
		total += len(b)
	}
	le.PutUint32(result, uint32(total))
	return Success
}

func fdPread(c *Call) Errno {
	result := c.out(4, 4)
	d, e := c.descriptor(0)
	switch {
	case result == nil:
		return traps
	case e != Success:
		return e
	case d.kind == stdin:
		return SPipe
	case d.stream():
		return BadF
	}
	return c.refused(d, d.read, 1)
}

func fdPwrite(c *Call) Errno {
	result := c.out(4, 4)
	d, e := c.descriptor(0)
	switch {
	case result == nil:
		return traps
	case e != Success:
		return e
	case d.kind == stdin:
		return BadF
	case d.stream():
		return SPipe
	}
	return c.refused(d, d.write, 1)
}

func fdSeek(c *Call) Errno { return c.position(3) }

func fdTell(c *Call) Errno { return c.position(1) }

func (c *Call) position(result int) Errno {
	out := c.out(result, 8)
	d, e := c.descriptor(0)
	switch {
	case out == nil:
		return traps
	case e != Success:
		return e
	case d.stream():
		return SPipe
	}
	return c.refused(d, true, -1)
}

func fdAdvise(c *Call) Errno {
	d, e := c.regular(0)
	offset, n, advice := c.u64(1), c.u64(2), c.u32(3)
	advices := []int{unix.FADV_NORMAL, unix.FADV_SEQUENTIAL, unix.FADV_RANDOM, unix.FADV_WILLNEED, unix.FADV_DONTNEED, unix.FADV_NOREUSE}
	switch {
	case e != Success:
		return e
	case advice >= uint32(len(advices)) || offset > math.MaxInt64 || n > math.MaxInt64:
		return Inval
	}
	return errnoOf(unix.Fadvise(d.fd, int64(offset), int64(n), advices[advice]))
}

// fdAllocate is not supported: a guest could fill a disk in no time.
func fdAllocate(c *Call) Errno {
	d, e := c.regular(0)
	switch {
	case e != Success:
		return e
	case d.readOnly:
		return Perm
	}
	return NotSup
}

func fdDatasync(c *Call) Errno {
	d, e := c.regular(0)
	if e != Success {
		return e
	}
	return errnoOf(unix.Fdatasync(d.fd))
}

func fdSync(c *Call) Errno {
	d, e := c.regular(0)
	if e != Success {
		return e
	}
	return errnoOf(unix.Fsync(d.fd))
}

func fdFilestatSetSize(c *Call) Errno {
	d, e := c.regular(0)
	size := c.u64(1)
	switch {
	case e != Success:
		return e
	case d.readOnly:
		return Perm
	case size > math.MaxInt64:
		return Inval
	}
	return errnoOf(unix.Ftruncate(d.fd, int64(size)))
}
