package aot

import (
	"os/exec"
	"time"
)

// Options says where the cache is and how it compiles.
type Options struct {
	// Dir holds the entries. It is made with mode 0700; one that others can
	// enter is refused, as is a file system mounted noexec.
	Dir string
	// Memory is a directory that remembers which entries were checked, so that a
	// warm hit reads no entry; it should be lost at reboot (a tmpfs). Empty:
	// every hit is checked in full.
	Memory string
	// HostBinary is mentat-host. Its content is part of every entry's key.
	HostBinary string
	// MaxBytes bounds the entries together; what was used longest ago goes
	// first. 0 is no bound.
	MaxBytes int64
	// CompileWall bounds one compilation; 0 is [limits.CompileWall].
	CompileWall time.Duration
	// Start starts the compiler child and returns how to wait for it. A process
	// that reaps its children itself must set it. The error of wait must have an
	// ExitCode method if the child ran and failed, like [*exec.ExitError]. Nil:
	// cmd.Start and cmd.Wait.
	Start func(cmd *exec.Cmd) (wait func() error, err error)
	// Report is told, in one line each, what a node's owner should know: an entry
	// that was not what it should be, a child that could be confined less than
	// intended. Nil: nobody is told.
	Report func(line string)
}

// Entry is a compiled module, ready to be mapped.
type Entry struct {
	// Path is the compiled module, readable by everyone who can reach it.
	Path string
	// Size is its size in bytes.
	Size int64
	// Hit tells that it was there already.
	Hit bool
	// CompileTime is how long the child ran; 0 for a hit.
	CompileTime time.Duration
}
