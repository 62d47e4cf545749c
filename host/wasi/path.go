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

// beneath opens a path beneath a directory, wherever its links lead.
func (g *Guest) beneath(dir int, path string, flags int, mode uint64) (int, error) {
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
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
	how, ok := uint32(0), true
	if flags >= 0 {
		if how, ok = c.flags(flags, follow); !ok {
			return -1, st, Inval
		}
	}
	name, e := c.text(path)
	if e != Success {
		return -1, st, e
	}
	return c.g.lookAt(d.fd, name, how&follow != 0)
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

// place finds the place that a path names, with the parameters of a directory and
// of the path. dots is the answer to a path that ends in "." or "..", which name no
// place.
func (c *Call) place(d *descriptor, path int, dots Errno) (p place, e Errno) {
	text, e := c.text(path)
	if e != Success {
		return p, e
	}
	trimmed := strings.TrimRight(text, "/")
	switch {
	case text == "":
		return p, NoEnt
	case text[0] == '/':
		return p, Perm
	}
	parent, name := "", trimmed
	if i := strings.LastIndexByte(trimmed, '/'); i >= 0 {
		parent, name = trimmed[:i], trimmed[i+1:]
	}
	p = place{dir: d.fd, name: name, slash: trimmed != text}
	if parent != "" {
		fd, err := c.g.beneath(d.fd, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return p, errnoOf(err)
		}
		p.dir, p.own = fd, true
	}
	if name == "." || name == ".." {
		p.close()
		return p, dots
	}
	return p, Success
}

func (p *place) close() {
	if p.own {
		_ = unix.Close(p.dir) // only a handle
	}
}

// directory says whether there is a directory in the place; what is there else, or
// that nothing is, is an error.
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

// fresh checks a place in which something is to be made that is no directory.
func (p *place) fresh() Errno {
	if !p.slash {
		return Success
	}
	if e := p.directory(); e != Success {
		return e
	}
	return Exist
}
