package wasi

import (
	"bytes"
	"math"

	"golang.org/x/sys/unix"
)

const (
	// direntBytes is the size of an entry of WASI's without its name.
	direntBytes = 24
	// systemBytes is that of the system's, listBytes how much is read at once.
	systemBytes = 19
	listBytes   = 16 << 10
)

// fdReaddir lists a directory from a cookie on, which is the system's own: the
// guest keeps the place, the host nothing.
func fdReaddir(c *Call) Errno {
	out := c.buffer(1)
	if out == nil {
		return traps
	}
	result := c.out(4, 4)
	if result == nil {
		return traps
	}
	d, e := c.directory(0)
	if e != Success {
		return e
	}
	cookie := c.u64(3)
	if cookie > math.MaxInt64 {
		return Inval
	}
	if e := c.g.openList(d); e != Success {
		return e
	}
	if _, err := unix.Seek(d.list, int64(cookie), unix.SEEK_SET); err != nil {
		return errnoOf(err)
	}
	n, e := c.g.list(d, out)
	if e != Success {
		return e
	}
	le.PutUint32(result, uint32(n))
	return Success
}

// openList opens a place in a preopen, which has none: it is everybody's.
func (g *Guest) openList(d *descriptor) Errno {
	if d.list >= 0 {
		return Success
	}
	if !acquire() {
		return NFile
	}
	fd, err := g.beneath(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		release()
		return errnoOf(err)
	}
	d.list = fd
	return Success
}

// list fills out with entries and returns how much of it is used; all of it says
// that there are more.
func (g *Guest) list(d *descriptor, out []byte) (used int, e Errno) {
	var self unix.Stat_t
	if err := unix.Fstat(d.list, &self); err != nil {
		return 0, errnoOf(err)
	}
	var buf [listBytes]byte
	// What does not fit into out is not read: an entry of the system's is hardly
	// longer than one of WASI's.
	room := min(max(len(out), 1024), len(buf))
	for used < len(out) && !g.host.Over() {
		n, err := unix.Getdents(d.list, buf[:room])
		if err != nil {
			return 0, errnoOf(err)
		}
		if n == 0 {
			break
		}
		for entries := buf[:n]; len(entries) > systemBytes && used < len(out); {
			size := int(le.Uint16(entries[16:]))
			if size < systemBytes || size > len(entries) {
				return 0, IO
			}
			used += putDirent(out[used:], entries[:size], d.list, self.Ino)
			entries = entries[size:]
		}
	}
	return used, Success
}

// putDirent turns an entry of the system's into one of WASI's, as much of it as
// fits.
func putDirent(out, entry []byte, dir int, self uint64) int {
	name := entry[systemBytes:]
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	ino, how := le.Uint64(entry), typeOf(uint32(entry[18])<<12)
	switch {
	case string(name) == "..":
		// What is above is not the guest's to know.
		ino = self
	case entry[18] == unix.DT_UNKNOWN:
		var st unix.Stat_t
		if unix.Fstatat(dir, string(name), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			how = typeOf(st.Mode)
		}
	}
	var head [direntBytes]byte
	copy(head[:8], entry[8:16]) // the next one's cookie
	le.PutUint64(head[8:], ino)
	le.PutUint32(head[16:], uint32(len(name)))
	head[20] = how
	n := copy(out, head[:])
	return n + copy(out[n:], name)
}
