package wasi

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Types of files.
const (
	typeUnknown = iota
	typeBlock
	typeCharacter
	typeDirectory
	typeRegular
	typeDatagram
	typeSocket
	typeLink
)

// typeOf turns the type in a mode into WASI's, which has none for pipes.
func typeOf(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return typeBlock
	case unix.S_IFCHR:
		return typeCharacter
	case unix.S_IFDIR:
		return typeDirectory
	case unix.S_IFREG:
		return typeRegular
	case unix.S_IFSOCK:
		return typeSocket
	case unix.S_IFLNK:
		return typeLink
	}
	return typeUnknown
}

// streamType tells a terminal, as C libraries look for one.
func (d *descriptor) streamType() byte {
	if d.terminal {
		return typeCharacter
	}
	return typeUnknown
}

// Rights. Libraries read them to learn what a descriptor is good for; what holds
// is how a file was opened and whether its directory is read-only.
const (
	rightDatasync = 1 << iota
	rightRead
	rightSeek
	rightSetFlags
	rightSync
	rightTell
	rightWrite
	rightAdvise
	rightAllocate
	rightCreateDirectory
	rightCreateFile
	rightLinkSource
	rightLinkTarget
	rightOpen
	rightReaddir
	rightReadlink
	rightRenameSource
	rightRenameTarget
	rightPathFilestat
	_ // the size by a path: no function
	rightPathTimes
	rightFilestat
	rightSetSize
	rightSetTimes
	rightSymlink
	rightRemoveDirectory
	rightUnlink
	rightPoll

	rightsOfFile = rightDatasync | rightRead | rightSeek | rightSetFlags | rightSync | rightTell | rightWrite | rightAdvise |
		rightAllocate | rightFilestat | rightSetSize | rightSetTimes | rightPoll
	rightsOfDirectory = rightCreateDirectory | rightCreateFile | rightLinkSource | rightLinkTarget | rightOpen | rightReaddir |
		rightReadlink | rightRenameSource | rightRenameTarget | rightPathFilestat | rightPathTimes | rightFilestat | rightSetTimes |
		rightSymlink | rightRemoveDirectory | rightUnlink
)

// rights are those of the descriptor and those that what is opened in it may have.
func (d *descriptor) rights() (base, inheriting uint64) {
	switch d.kind {
	case stdin:
		return rightRead | rightPoll, 0
	case stdout, stderr:
		return rightWrite | rightPoll, 0
	case directory:
		return rightsOfDirectory, rightsOfDirectory | rightsOfFile
	}
	base = rightsOfFile
	if !d.read {
		base &^= rightRead
	}
	if !d.write {
		base &^= rightWrite | rightAllocate | rightSetSize
	}
	return base, 0
}

func fdFdstatGet(c *Call) Errno {
	out := c.out(1, 24)
	d, e := c.descriptor(0)
	switch {
	case out == nil:
		return traps
	case e != Success:
		return e
	}
	clear(out)
	switch d.kind {
	case regular:
		out[0] = typeRegular
	case directory:
		out[0] = typeDirectory
	default:
		out[0] = d.streamType()
	}
	le.PutUint16(out[2:], uint16(d.flags))
	base, inheriting := d.rights()
	le.PutUint64(out[8:], base)
	le.PutUint64(out[16:], inheriting)
	return Success
}

// putFilestat lays out what is known of a file.
func putFilestat(out []byte, st *unix.Stat_t) {
	clear(out)
	le.PutUint64(out, st.Dev)
	le.PutUint64(out[8:], st.Ino)
	out[16] = typeOf(st.Mode)
	le.PutUint64(out[24:], uint64(st.Nlink)) //nolint:unconvert // narrower elsewhere
	le.PutUint64(out[32:], uint64(st.Size))
	le.PutUint64(out[40:], timestamp(st.Atim))
	le.PutUint64(out[48:], timestamp(st.Mtim))
	le.PutUint64(out[56:], timestamp(st.Ctim))
}

const filestatBytes = 64

// timestamp is the nanoseconds since 1970; what is out of their range is at its
// border.
func timestamp(t unix.Timespec) uint64 {
	switch {
	case t.Sec < 0:
		return 0
	case uint64(t.Sec) >= math.MaxUint64/uint64(time.Second):
		return math.MaxUint64
	}
	return uint64(t.Sec)*uint64(time.Second) + uint64(t.Nsec)
}

func fdFilestatGet(c *Call) Errno {
	out := c.out(1, filestatBytes)
	d, e := c.descriptor(0)
	switch {
	case out == nil:
		return traps
	case e != Success:
		return e
	case d.stream():
		clear(out)
		out[16] = d.streamType()
		return Success
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return errnoOf(err)
	}
	putFilestat(out, &st)
	return Success
}

func pathFilestatGet(c *Call) Errno {
	out := c.out(4, filestatBytes)
	if out == nil {
		return traps
	}
	fd, st, e := c.look(0, 1, 2)
	if e != Success {
		return e
	}
	_ = unix.Close(fd) // only looked at
	putFilestat(out, &st)
	return Success
}

// Flags of times that are to be set.
const (
	setAtime = 1 << iota
	setAtimeNow
	setMtime
	setMtimeNow
)

// times reads the parameters from i on: access time, modification time, flags.
func (c *Call) times(i int) (t [2]unix.Timespec, e Errno) {
	flags, ok := c.flags(i+2, setAtime|setAtimeNow|setMtime|setMtimeNow)
	if !ok {
		return t, Inval
	}
	for j := range t {
		switch flags >> (2 * j) & (setAtime | setAtimeNow) {
		case 0:
			t[j].Nsec = unix.UTIME_OMIT
		case setAtime:
			ns := c.u64(i + j)
			t[j] = unix.Timespec{Sec: int64(ns / uint64(time.Second)), Nsec: int64(ns % uint64(time.Second))}
		case setAtimeNow:
			t[j].Nsec = unix.UTIME_NOW
		default:
			return t, Inval
		}
	}
	return t, Success
}

func setTimes(fd int, t [2]unix.Timespec) Errno {
	return errnoOf(unix.UtimesNanoAt(fd, "", t[:], unix.AT_EMPTY_PATH))
}

func fdFilestatSetTimes(c *Call) Errno {
	t, e := c.times(1)
	if e != Success {
		return e
	}
	d, e := c.descriptor(0)
	switch {
	case e != Success:
		return e
	case d.stream():
		return BadF
	case d.readOnly:
		return Perm
	}
	return setTimes(d.fd, t)
}

func pathFilestatSetTimes(c *Call) Errno {
	t, e := c.times(4)
	if e != Success {
		return e
	}
	if _, e := c.changeable(0); e != Success {
		return e
	}
	fd, _, e := c.look(0, 1, 2)
	if e != Success {
		return e
	}
	e = setTimes(fd, t)
	_ = unix.Close(fd) // only a handle
	return e
}
