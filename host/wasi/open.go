package wasi

import (
	"golang.org/x/sys/unix"
)

// Flags of path_open.
const (
	openCreate = 1 << iota
	openDirectory
	openExclusive
	openTruncate
)

// Flags of a descriptor.
const (
	flagAppend = 1 << iota
	flagDsync
	flagNonblock
	flagRsync
	flagSync

	flagsSync = flagDsync | flagRsync | flagSync
)

// opening is a call of path_open.
type opening struct {
	dir    *descriptor
	path   string
	follow bool
	oflags uint32
	// flags are the descriptor's to be.
	flags       uint32
	read, write bool
}

func pathOpen(c *Call) Errno {
	out := c.out(8, 4)
	if out == nil {
		return traps
	}
	o, e := c.opening()
	if e != Success {
		return e
	}
	n, free := c.g.table.free()
	if !free {
		return MFile
	}
	if !acquire() {
		return NFile
	}
	d, e := c.g.open(o)
	if e != Success {
		release()
		return e
	}
	c.g.table.put(n, d)
	c.g.serve(n, d)
	le.PutUint32(out, uint32(n))
	return Success
}

// opening reads the parameters and refuses what may not be.
func (c *Call) opening() (o opening, e Errno) {
	lookup, ok := c.flags(1, follow)
	oflags, ok2 := c.flags(4, openCreate|openDirectory|openExclusive|openTruncate)
	flags, ok3 := c.flags(7, flagAppend|flagNonblock|flagsSync)
	if !ok || !ok2 || !ok3 {
		return o, Inval
	}
	o = opening{follow: lookup&follow != 0, oflags: oflags, flags: flags}
	if o.dir, e = c.directory(0); e != Success {
		return o, e
	}
	if o.path, e = c.text(2); e != Success {
		return o, e
	}
	rights := c.u64(5)
	o.write = rights&rightWrite != 0
	o.read = rights&rightRead != 0 || !o.write
	switch {
	case o.dir.readOnly && (o.write || oflags&(openCreate|openTruncate) != 0):
		return o, Perm
	case oflags&openDirectory != 0 && oflags&(openCreate|openExclusive|openTruncate) != 0:
		return o, Inval
	}
	return o, Success
}

// system are the flags for the kernel. Nothing that is opened may wait.
func (o *opening) system() int {
	flags := unix.O_NONBLOCK | unix.O_NOCTTY
	switch {
	case o.read && o.write:
		flags |= unix.O_RDWR
	case o.write:
		flags |= unix.O_WRONLY
	}
	if !o.follow {
		flags |= unix.O_NOFOLLOW
	}
	for _, f := range []struct {
		set  bool
		flag int
	}{
		{o.oflags&openCreate != 0, unix.O_CREAT}, {o.oflags&openDirectory != 0, unix.O_DIRECTORY},
		{o.oflags&openExclusive != 0, unix.O_EXCL}, {o.oflags&openTruncate != 0, unix.O_TRUNC},
		{o.flags&flagAppend != 0, unix.O_APPEND}, {o.flags&flagDsync != 0, unix.O_DSYNC},
		{o.flags&(flagRsync|flagSync) != 0, unix.O_SYNC},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	return flags
}

// open opens a regular file or a directory. What else is there is not opened, for
// that alone may do something; should it come in between, it is closed again and
// nobody has waited.
func (g *Guest) open(o opening) (*descriptor, Errno) {
	const fresh = openCreate | openExclusive
	if o.oflags&fresh != fresh {
		if fd, st, e := g.lookAt(o.dir.fd, o.path, o.follow); e == Success {
			_ = unix.Close(fd) // it was only looked at
			if e := o.judge(&st); e != Success {
				return nil, e
			}
		}
	}
	mode := uint64(0)
	if o.oflags&openCreate != 0 {
		mode = 0o666
	}
	fd, err := g.beneath(o.dir.fd, o.path, o.system(), mode)
	if err != nil {
		return nil, errnoOf(err)
	}
	var st unix.Stat_t
	d := &descriptor{kind: regular, fd: fd, list: -1, readOnly: o.dir.readOnly, read: o.read, write: o.write, flags: o.flags}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd) // nothing was written
		return nil, errnoOf(err)
	}
	if e := o.judge(&st); e != Success {
		_ = unix.Close(fd) // not wanted
		return nil, e
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		d.kind, d.list, d.flags = directory, fd, 0
	}
	return d, Success
}

// judge says whether what is there may be opened.
func (o *opening) judge(st *unix.Stat_t) Errno {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Success
	case unix.S_IFLNK:
		return Loop
	case unix.S_IFREG:
		if o.oflags&openDirectory != 0 {
			return NotDir
		}
		return Success
	}
	return NXIO
}

func fdFdstatSetFlags(c *Call) Errno {
	flags, ok := c.flags(1, flagAppend|flagNonblock|flagsSync)
	d, e := c.regular(0)
	switch {
	case e != Success:
		return e
	case !ok || (flags^d.flags)&flagsSync != 0:
		return Inval
	}
	now, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	if err != nil {
		return errnoOf(err)
	}
	now &^= unix.O_APPEND
	if flags&flagAppend != 0 {
		now |= unix.O_APPEND
	}
	if _, err := unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, now); err != nil {
		return errnoOf(err)
	}
	d.flags = flags
	return Success
}

// fdFdstatSetRights changes nothing: how a file was opened does not change.
func fdFdstatSetRights(c *Call) Errno {
	d, e := c.descriptor(0)
	switch {
	case e != Success:
		return e
	case d.stream():
		return BadF
	}
	return NotSup
}
