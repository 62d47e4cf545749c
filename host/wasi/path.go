package wasi

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// follow is the flag of a lookup that follows a link in the last place.
const follow = 1

// tries bounds how often a path is resolved anew. The kernel asks for that when
// something on the way was renamed.
const tries = 256

// resolve keeps what a path leads to beneath the directory.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// beneath opens a path beneath a directory, wherever its links lead.
func (g *Guest) beneath(dir int, path string, flags int, mode uint64) (int, error) {
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: mode, Resolve: resolve,
	}
	for i := 0; ; i++ {
		fd, err := unix.Openat2(dir, path, &how)
		switch {
		case errors.Is(err, unix.EXDEV):
			return -1, unix.EPERM // it leads outside
		case i < tries && !g.host.Over() && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)):
		default:
			return fd, err
		}
	}
}

// look opens what a path names without opening what it is: good for looking at it
// and for naming it. The parameters are those of a directory, of the lookup's
// flags, -1 for no link followed, and of the path.
func (c *Call) look(dir, flags, path int) (fd int, st unix.Stat_t, e Errno) {
	d, e := c.directory(dir)
	if e != Success {
		return -1, st, e
	}
	followed := false
	if flags >= 0 {
		how, ok := c.flags(flags, follow)
		if !ok {
			return -1, st, Inval
		}
		followed = how&follow != 0
	}
	name, e := c.text(path)
	if e != Success {
		return -1, st, e
	}
	return c.g.lookAt(d.fd, name, followed)
}

func (g *Guest) lookAt(dir int, path string, follow bool) (fd int, st unix.Stat_t, e Errno) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := g.beneath(dir, path, flags, 0)
	if err != nil {
		return -1, st, errnoOf(err)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd) // it was only looked at
		return -1, st, errnoOf(err)
	}
	return fd, st, Success
}

// place is the last component of a path, in the directory that holds it.
type place struct {
	dir  int
	own  bool // dir is to be closed
	name string
	// slash says that slashes follow the name: it is to be a directory.
	slash bool
}

// place finds the place that the path at parameter i names in a directory. dots is
// the answer to a path that ends in "." or "..", which names none.
func (c *Call) place(d *descriptor, i int, dots Errno) (p place, e Errno) {
	path, e := c.text(i)
	if e != Success {
		return p, e
	}
	switch {
	case path == "":
		return p, NoEnt
	case path[0] == '/':
		return p, Perm
	}
	parent, name := "", strings.TrimRight(path, "/")
	p.slash = name != path
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		parent, name = name[:i], name[i+1:]
	}
	if name == "." || name == ".." {
		fd, _, e := c.g.lookAt(d.fd, path, true)
		if e != Success {
			return p, e
		}
		_ = unix.Close(fd) // only looked at
		return p, dots
	}
	p.dir, p.name = d.fd, name
	if parent != "" {
		fd, err := c.g.beneath(d.fd, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return p, errnoOf(err)
		}
		p.dir, p.own = fd, true
	}
	return p, Success
}

func (p *place) close() {
	if p.own {
		_ = unix.Close(p.dir) // only a handle
	}
}

// directory is the answer to a call that needs a directory in the place.
func (p *place) directory() Errno {
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return errnoOf(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return NotDir
	}
	return Success
}

// fresh is the answer to a call that is to make something that is no directory.
func (p *place) fresh() Errno {
	if !p.slash {
		return Success
	}
	e := p.directory()
	if e == Success || e == NotDir {
		return Exist
	}
	return e
}
