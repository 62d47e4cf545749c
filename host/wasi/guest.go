package wasi

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Config is what a guest is given.
type Config struct {
	Args []string
	// Env is KEY=VALUE.
	Env      []string
	Preopens []Preopen
	// Terminals says which of the standard streams are terminals.
	Terminals [3]bool
}

// Preopen is a directory that the guest may use.
type Preopen struct {
	// Dir is the directory, open with O_PATH; it stays the caller's.
	Dir *os.File
	// Guest is the guest's name for it.
	Guest    string
	ReadOnly bool
}

// Check refuses what no guest can be given.
func (c *Config) Check() error {
	texts := func(what string, list []string) error {
		for _, s := range list {
			if strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
				return fault.New(fault.Internal, "", "%s holds a NUL byte or is not UTF-8", what)
			}
		}
		return nil
	}
	if n, most := len(c.Preopens), limits.GuestFiles/2; n > most {
		return fault.New(fault.ResourceLimit, "", "%d directories are granted, a guest can use %d", n, most)
	}
	if err := texts("an argument", c.Args); err != nil {
		return err
	}
	if err := texts("an environment variable", c.Env); err != nil || len(c.Preopens) == 0 {
		return err
	}
	return c.Preopens[0].resolves()
}

// resolves says whether the kernel can resolve paths as this package needs it.
func (p *Preopen) resolves() error {
	fd, err := unix.Openat2(int(p.Dir.Fd()), ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	switch {
	case err == nil:
		_ = unix.Close(fd) // only looked at
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM):
		return fault.Wrap(err, fault.Unsupported, p.Guest, "the host cannot keep paths beneath a directory").
			WithHint("openat2(2) needs Linux 5.6, and the container's seccomp profile must let it through")
	}
	return nil
}

// Host is what surrounds a guest. It is called on the goroutine that runs the
// guest.
type Host interface {
	// Read takes from stdin, 0 bytes at its end. If wait is false it takes only
	// what is there.
	Read(p []byte, wait bool) (int, Errno)
	// Write takes what goes to stdout (1) or stderr (2), whole or not at all.
	Write(fd int, p []byte) Errno
	// Wait returns when d has passed, if it is not negative, or, if stdin is asked
	// for, when a read of it would not wait; ready says that. The run may be over
	// then.
	Wait(d time.Duration, stdin bool) (ready bool)
	// Over says that the run is over.
	Over() bool
}

// Files serves reads and writes of regular files without this package, by the
// guest's number for them.
type Files interface {
	ServeFile(number, fd int, read, write bool)
	ForgetFile(number int)
	// RefusedBy is the system's answer to what could not be served, 0 if the call is
	// not for a file that is.
	RefusedBy() syscall.Errno
}

// Guest is one guest's WASI. All of it belongs to the goroutine that runs the
// guest.
type Guest struct {
	c     Config
	host  Host
	files Files
	began time.Time
	table table
	call  Call
}

// New makes what a guest begins with: the standard streams and the preopens.
func New(c Config, h Host, f Files) *Guest {
	g := &Guest{c: c, host: h, files: f, began: time.Now()}
	for i := range c.Terminals {
		g.table = append(g.table, &descriptor{kind: kind(i), fd: -1, list: -1, terminal: c.Terminals[i]})
	}
	for i := range c.Preopens {
		p := &c.Preopens[i]
		g.table = append(g.table, &descriptor{kind: directory, fd: int(p.Dir.Fd()), list: -1, readOnly: p.ReadOnly, preopen: p})
	}
	return g
}

// Close closes what the guest has open.
func (g *Guest) Close() {
	for i, d := range g.table {
		if d != nil {
			_ = d.close() // the guest does not ask any more
			g.table[i] = nil
		}
	}
}

// Function serves a function of preview 1.
type Function func(*Call) Errno

// Serve serves one call: the result is the guest's, or, if it is not nil, outside
// is what it named of a memory that it does not have.
func (g *Guest) Serve(f Function, c Call) (result Errno, outside *Span) {
	g.call = c
	g.call.g = g
	if result = f(&g.call); result == traps {
		return 0, &g.call.outside
	}
	return result, nil
}

// Functions are all of preview 1 but proc_exit.
var Functions = map[string]Function{
	"args_get":                argsGet,
	"args_sizes_get":          argsSizesGet,
	"clock_res_get":           clockResGet,
	"clock_time_get":          clockTimeGet,
	"environ_get":             environGet,
	"environ_sizes_get":       environSizesGet,
	"fd_advise":               fdAdvise,
	"fd_allocate":             fdAllocate,
	"fd_close":                fdClose,
	"fd_datasync":             fdDatasync,
	"fd_fdstat_get":           fdFdstatGet,
	"fd_fdstat_set_flags":     fdFdstatSetFlags,
	"fd_fdstat_set_rights":    fdFdstatSetRights,
	"fd_filestat_get":         fdFilestatGet,
	"fd_filestat_set_size":    fdFilestatSetSize,
	"fd_filestat_set_times":   fdFilestatSetTimes,
	"fd_pread":                fdPread,
	"fd_prestat_dir_name":     fdPrestatDirName,
	"fd_prestat_get":          fdPrestatGet,
	"fd_pwrite":               fdPwrite,
	"fd_read":                 fdRead,
	"fd_readdir":              fdReaddir,
	"fd_renumber":             fdRenumber,
	"fd_seek":                 fdSeek,
	"fd_sync":                 fdSync,
	"fd_tell":                 fdTell,
	"fd_write":                fdWrite,
	"path_create_directory":   pathCreateDirectory,
	"path_filestat_get":       pathFilestatGet,
	"path_filestat_set_times": pathFilestatSetTimes,
	"path_link":               pathLink,
	"path_open":               pathOpen,
	"path_readlink":           pathReadlink,
	"path_remove_directory":   pathRemoveDirectory,
	"path_rename":             pathRename,
	"path_symlink":            pathSymlink,
	"path_unlink_file":        pathUnlinkFile,
	"poll_oneoff":             pollOneoff,
	"proc_raise":              procRaise,
	"random_get":              randomGet,
	"sched_yield":             schedYield,
	"sock_accept":             sock,
	"sock_recv":               sock,
	"sock_send":               sock,
	"sock_shutdown":           sock,
}
