package wasi

import (
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/limits"
)

// kind is what a descriptor is of. The first three are also their numbers at the
// beginning.
type kind int

const (
	stdin kind = iota
	stdout
	stderr
	regular
	directory
)

// descriptor is one of a guest's.
type descriptor struct {
	kind kind
	// fd is the system's, -1 for a standard stream. It is the descriptor's own
	// unless that is a preopen.
	fd      int
	preopen *Preopen
	// list is a directory's own place for reading its entries, -1 before that was
	// asked for.
	list int
	// readOnly says that nothing of it or below may change, read and write what a
	// regular file was opened for.
	readOnly, read, write bool
	// flags are WASI's, of a regular file.
	flags    uint32
	terminal bool
}

func (d *descriptor) stream() bool { return d.kind <= stderr }

// close closes what is the descriptor's own.
func (d *descriptor) close() error {
	if d.list >= 0 && d.list != d.fd {
		_ = unix.Close(d.list) // only read
		release()
	}
	if d.preopen != nil || d.fd < 0 {
		return nil
	}
	release()
	return unix.Close(d.fd)
}

// Guests leave half of the descriptors that the process may have to the host: it
// opens files when they do not expect it, and others' guests are here, too.
var (
	held     atomic.Int64
	mostHeld = sync.OnceValue(func() int64 {
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return limits.GuestFiles
		}
		return int64(min(l.Cur/2, math.MaxInt32))
	})
)

// acquire counts a descriptor of the process's; false says that there is none
// left for guests.
func acquire() bool {
	if held.Add(1) <= mostHeld() {
		return true
	}
	held.Add(-1)
	return false
}

func release() { held.Add(-1) }

// table is a guest's descriptors by their numbers.
type table []*descriptor

// free is the lowest number that is free.
func (t *table) free() (int, bool) {
	for i, d := range *t {
		if d == nil {
			return i, true
		}
	}
	return len(*t), len(*t) < limits.GuestFiles
}

// put takes a number that was free.
func (t *table) put(n int, d *descriptor) {
	if n == len(*t) {
		*t = append(*t, nil)
	}
	(*t)[n] = d
}

func (t *table) get(n uint32) (*descriptor, Errno) {
	if uint64(n) >= uint64(len(*t)) || (*t)[n] == nil {
		return nil, BadF
	}
	return (*t)[n], Success
}

// descriptor finds the descriptor that parameter i names.
func (c *Call) descriptor(i int) (*descriptor, Errno) { return c.g.table.get(c.u32(i)) }

// regular finds a regular file.
func (c *Call) regular(i int) (*descriptor, Errno) {
	d, e := c.descriptor(i)
	if e == Success && d.kind != regular {
		return nil, BadF
	}
	return d, e
}

// directory finds a directory.
func (c *Call) directory(i int) (*descriptor, Errno) {
	d, e := c.descriptor(i)
	switch {
	case e != Success:
		return nil, e
	case d.kind == regular:
		return nil, NotDir
	case d.kind != directory:
		return nil, BadF
	}
	return d, Success
}

// changeable finds a directory that may change.
func (c *Call) changeable(i int) (*descriptor, Errno) {
	d, e := c.directory(i)
	if e == Success && d.readOnly {
		return nil, Perm
	}
	return d, e
}

func fdClose(c *Call) Errno {
	d, e := c.descriptor(0)
	if e != Success {
		return e
	}
	n := c.u32(0)
	c.g.files.ForgetFile(int(n))
	c.g.table[n] = nil
	return errnoOf(d.close())
}

// fdRenumber moves a descriptor to the number of another, which is closed.
func fdRenumber(c *Call) Errno {
	from, e := c.descriptor(0)
	if e != Success {
		return e
	}
	to, e := c.descriptor(1)
	if e != Success || from == to {
		return e
	}
	g, i, j := c.g, int(c.u32(0)), int(c.u32(1))
	g.files.ForgetFile(i)
	g.files.ForgetFile(j)
	_ = to.close() // as dup2 does
	g.table[i], g.table[j] = nil, from
	g.serve(j, from)
	return Success
}

// serve lets a regular file be read and written without this package.
func (g *Guest) serve(number int, d *descriptor) {
	if d.kind == regular {
		g.files.ServeFile(number, d.fd, d.read, d.write)
	}
}

func fdPrestatGet(c *Call) Errno {
	out := c.out(1, 8)
	d, e := c.descriptor(0)
	switch {
	case out == nil:
		return traps
	case e != Success:
		return e
	case d.preopen == nil:
		return BadF
	}
	le.PutUint32(out, 0) // a directory
	le.PutUint32(out[4:], uint32(len(d.preopen.Guest)))
	return Success
}

func fdPrestatDirName(c *Call) Errno {
	out := c.buffer(1)
	d, e := c.descriptor(0)
	switch {
	case out == nil:
		return traps
	case e != Success:
		return e
	case d.preopen == nil:
		return NotDir
	case len(out) < len(d.preopen.Guest):
		return NameTooLong
	}
	copy(out, d.preopen.Guest)
	return Success
}
