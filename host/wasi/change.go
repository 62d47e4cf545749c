package wasi

import (
	"golang.org/x/sys/unix"
)

// change works on the place that the path at parameter path names in the directory
// at parameter dir.
func (c *Call) change(dir, path int, dots Errno, do func(p *place) Errno) Errno {
	d, e := c.changeable(dir)
	if e != Success {
		return e
	}
	p, e := c.place(d, path, dots)
	if e != Success {
		return e
	}
	defer p.close()
	return do(&p)
}

func pathCreateDirectory(c *Call) Errno {
	return c.change(0, 1, Exist, func(p *place) Errno {
		return errnoOf(unix.Mkdirat(p.dir, p.name, 0o777))
	})
}

func pathRemoveDirectory(c *Call) Errno {
	return c.change(0, 1, Inval, func(p *place) Errno {
		return errnoOf(unix.Unlinkat(p.dir, p.name, unix.AT_REMOVEDIR))
	})
}

func pathUnlinkFile(c *Call) Errno {
	return c.change(0, 1, IsDir, func(p *place) Errno {
		if p.slash {
			if e := p.directory(); e != Success {
				return e
			}
			return IsDir
		}
		return errnoOf(unix.Unlinkat(p.dir, p.name, 0))
	})
}

// pathSymlink makes a link. Where it leads is judged when it is followed; but
// others may follow it, too, and an absolute path is no guest's to know.
func pathSymlink(c *Call) Errno {
	target, e := c.text(0)
	switch {
	case e != Success:
		return e
	case target != "" && target[0] == '/':
		return Perm
	}
	return c.change(2, 3, Exist, func(p *place) Errno {
		if e := p.fresh(); e != Success {
			return e
		}
		return errnoOf(unix.Symlinkat(target, p.dir, p.name))
	})
}

// pathLink makes a hard link. Both directories must be changeable: a second name
// in another one would lift what holds for the first.
func pathLink(c *Call) Errno {
	lookup, ok := c.flags(1, follow)
	if !ok || lookup&follow != 0 {
		return Inval
	}
	return c.change(0, 2, Perm, func(from *place) Errno {
		return c.change(4, 5, Exist, func(to *place) Errno {
			if from.slash {
				if e := from.directory(); e != Success {
					return e
				}
				return Perm
			}
			if e := to.fresh(); e != Success {
				return e
			}
			return errnoOf(unix.Linkat(from.dir, from.name, to.dir, to.name, 0))
		})
	})
}

func pathRename(c *Call) Errno {
	return c.change(0, 1, Busy, func(from *place) Errno {
		return c.change(3, 4, Busy, func(to *place) Errno {
			if from.slash || to.slash {
				if e := from.directory(); e != Success {
					return e
				}
			}
			return errnoOf(unix.Renameat(from.dir, from.name, to.dir, to.name))
		})
	})
}

// pathReadlink reads where a link leads, unless that is an absolute path: it would
// tell how the host's files lie.
func pathReadlink(c *Call) Errno {
	out := c.buffer(3)
	if out == nil {
		return traps
	}
	result := c.out(5, 4)
	if result == nil {
		return traps
	}
	fd, st, e := c.look(0, -1, 1)
	if e != Success {
		return e
	}
	defer func() { _ = unix.Close(fd) }() // only a handle
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return Inval
	}
	var target [4096]byte
	n, err := unix.Readlinkat(fd, "", target[:])
	switch {
	case err != nil:
		return errnoOf(err)
	case n > 0 && target[0] == '/':
		return Perm
	}
	n = copy(out, target[:n])
	le.PutUint32(result, uint32(n))
	return Success
}
