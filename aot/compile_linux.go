package aot

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// compileVerb is mentat-host's command: module on stdin, code on descriptor 3.
	compileVerb = "compile"
	// maxStderr bounds what is kept of the child's messages.
	maxStderr = 8 * limits.KiB
	// linger is how long the result may stay open after the child has ended,
	// before whoever holds it is given up on.
	linger = 5 * time.Second
	// addressSpace is what the engine reserves without using it.
	addressSpace = 6 << 30
)

// exitInvalid is the child's exit code for a module that is none.
var exitInvalid = fault.RowOf(fault.ModuleInvalid).CLI

// compile runs the child and stores what it makes. The caller holds the lock.
func (c *Cache) compile(ctx context.Context, key string, d digest.Digest, host *hostBinary, open func() (io.ReadCloser, error)) (Entry, error) {
	module, err := open()
	if err != nil {
		return Entry{}, fault.Wrap(err, fault.ReasonOf(err), d.String(), "cannot read the module")
	}
	defer module.Close()
	if err := c.clear(key); err != nil {
		c.opts.Report(fault.OneLine(fmt.Sprintf("cannot remove what a killed compilation of %s left: %v", d, err)))
	}
	out, err := tempFile(c.opts.Dir, key)
	if err != nil {
		return Entry{}, err
	}
	// After a rename there is nothing of that name, which is no harm.
	defer os.Remove(out.Name())

	start := time.Now()
	mac := c.newMAC("entry", key)
	size, err := c.runCompiler(ctx, key, d, host, module, io.MultiWriter(diskWriter{out, c.opts.Dir}, mac))
	if err != nil {
		return Entry{}, errors.Join(err, out.Close())
	}
	took := time.Since(start)
	if err := c.store(key, out, mac.Sum(nil)); err != nil {
		return Entry{}, diskError(err, c.opts.Dir, "cannot store the compiled module")
	}
	return Entry{Path: c.path(key), Size: size, CompileTime: took}, nil
}

// diskWriter names the directory in its errors.
type diskWriter struct {
	w   io.Writer
	dir string
}

func (d diskWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if err != nil {
		err = diskError(err, d.dir, "cannot store the compiled module")
	}
	return n, err
}

// pipes are the child's ends and ours. close is safe at any time.
type pipes struct {
	childIn, childErr, childOut *os.File
	in, messages, out           *os.File
}

func newPipes() (*pipes, error) {
	p := new(pipes)
	var errs [3]error
	p.childIn, p.in, errs[0] = os.Pipe()
	p.messages, p.childErr, errs[1] = os.Pipe()
	p.out, p.childOut, errs[2] = os.Pipe()
	if err := errors.Join(errs[:]...); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pipes) closeChild() { closeAll(p.childIn, p.childErr, p.childOut) }

func (p *pipes) close() {
	p.closeChild()
	closeAll(p.in, p.messages, p.out)
}

// closeAll closes pipes, where an error means that they were closed before.
func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// runCompiler lets the child compile module and copies the result to out. It
// returns the number of bytes, and an error unless the module had the digest d
// and the child succeeded.
func (c *Cache) runCompiler(ctx context.Context, key string, d digest.Digest, host *hostBinary, module io.Reader, out io.Writer) (int64, error) {
	p, err := newPipes()
	if err != nil {
		return 0, fault.Wrap(err, fault.CompileFailed, d.String(), "cannot start the compiler")
	}
	defer p.close()

	// The death signal is sent when the thread that forked ends, so this one
	// must stay ours until the child is gone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := c.launch(p, host, key)
	if err != nil {
		return 0, fault.Wrap(err, fault.CompileFailed, d.String(), "cannot start the compiler %s", c.opts.HostBinary)
	}
	defer child.group.close()
	p.closeChild()

	type result struct {
		size int64
		err  error
	}
	fed, copied, said := make(chan error, 1), make(chan result, 1), make(chan string, 1)
	stop, cancel := context.WithTimeoutCause(ctx, c.opts.CompileWall, errWall)
	defer cancel()
	defer context.AfterFunc(stop, child.kill)()
	fail := func(err error) error {
		if err != nil {
			child.kill()
		}
		return err
	}
	go func() { fed <- fail(feed(p.in, module, d)) }()
	go func() {
		n, err := io.Copy(out, io.LimitReader(p.out, c.maxCompiled+1))
		if err == nil && n > c.maxCompiled {
			err = fault.New(fault.CompileFailed, d.String(), "the compiled module is over %d MiB", c.maxCompiled/limits.MiB)
		}
		copied <- result{n, fail(err)}
	}()
	go func() { said <- messages(p.messages) }()

	exit := child.wait()
	stopped := context.Cause(stop)
	// What the child may have left behind goes too, or holds nothing up.
	child.killRest()
	limit := time.Now().Add(linger)
	for _, f := range []*os.File{p.out, p.messages} {
		_ = f.SetReadDeadline(limit)
	}
	_ = p.in.SetWriteDeadline(limit)
	feedErr, res, line := <-fed, <-copied, <-said

	switch {
	case feedErr != nil:
		return 0, feedErr
	case ctx.Err() != nil && exit != nil:
		return 0, fault.Wrap(ctx.Err(), fault.Canceled, d.String(), "the compilation was given up")
	case errors.Is(stopped, errWall) && exit != nil:
		return 0, fault.New(fault.CompileFailed, d.String(), "compiling took longer than %v and was stopped", c.opts.CompileWall)
	case res.err != nil && fault.ReasonOf(res.err) != fault.Internal:
		return 0, res.err
	case exit != nil:
		return 0, c.childError(d, exit, line, child.group.outOfMemory())
	case res.err != nil:
		return 0, fault.Wrap(res.err, fault.CompileFailed, d.String(), "cannot take over the compiled module")
	case res.size == 0:
		return 0, fault.New(fault.CompileFailed, d.String(), "the compiler returned nothing")
	}
	return res.size, nil
}

var errWall = errors.New("wall limit")

// feed writes the module to the child while it hashes it. The child starts to
// compile at the end of its input, which comes only if the digest is right.
func feed(to *os.File, module io.Reader, d digest.Digest) error {
	verifier := d.Verifier()
	// A child that went away early has an exit status that says why; what it did
	// not read is still hashed, since bad content is the better answer.
	sink := &quietWriter{w: to}
	n, err := io.Copy(io.MultiWriter(verifier, sink), io.LimitReader(module, limits.ModuleBytes+1))
	switch {
	case err != nil:
		return fault.Wrap(err, fault.ReasonOf(err), d.String(), "cannot read the module")
	case n > limits.ModuleBytes:
		return fault.New(fault.ModuleInvalid, d.String(), "the module is over %d MiB", limits.ModuleBytes/limits.MiB)
	case !verifier.Verified():
		return fault.New(fault.DigestMismatch, d.String(), "the module's bytes (%d) have another digest", n)
	}
	_ = to.Close()
	return nil
}

type quietWriter struct {
	w    io.Writer
	gone bool
}

func (q *quietWriter) Write(p []byte) (int, error) {
	if !q.gone {
		_, err := q.w.Write(p)
		q.gone = err != nil
	}
	return len(p), nil
}

// messages returns the first line of what the child said, and reads the rest
// away so that it never blocks.
func messages(r io.Reader) string {
	head, _ := io.ReadAll(io.LimitReader(r, maxStderr))
	_, _ = io.Copy(io.Discard, r)
	line, _, _ := strings.Cut(string(bytes.TrimSpace(head)), "\n")
	return strings.TrimSpace(line)
}

func (c *Cache) childError(d digest.Digest, exit error, said string, oom bool) error {
	code := -1
	var coder interface{ ExitCode() int }
	if errors.As(exit, &coder) {
		code = coder.ExitCode()
	}
	if code == exitInvalid && said != "" {
		return fault.New(fault.ModuleInvalid, d.String(), "%s", said)
	}
	// A signal's death looks like this after [exec.Cmd.Wait] or to a reaper.
	if oom && (code == -1 || code == 128+int(unix.SIGKILL)) {
		return fault.New(fault.CompileFailed, d.String(), "compiling needs more than %d MiB of memory", c.maxMemory/limits.MiB)
	}
	e := fault.New(fault.CompileFailed, d.String(), "the compiler failed (%v)", exit)
	if said != "" {
		e.Msg += ": " + said
	}
	return e
}

// child is a running compiler that has read nothing yet.
type child struct {
	pid   int
	wait  func() error
	group *group
}

// kill ends the child and its process group. It must not be called after wait.
func (ch *child) kill() { _ = unix.Kill(-ch.pid, unix.SIGKILL) }

// killRest ends what a child left behind that ended: the number of its process
// group is not given to another while one is in it.
func (ch *child) killRest() {
	ch.group.kill()
	if ch.group == nil {
		ch.kill()
	}
}

// launch starts the compiler with as few rights as this process can give, and
// limits it before it gets a byte of the module: until then it is only our own
// code.
func (c *Cache) launch(p *pipes, host *hostBinary, key string) (*child, error) {
	try := func(attr *syscall.SysProcAttr, path string) (*child, error) {
		attr.Setpgid = true
		attr.Pdeathsig = syscall.SIGKILL
		cmd := &exec.Cmd{
			Path: path, Args: []string{"mentat-host", compileVerb},
			Env: []string{}, Dir: "/",
			Stdin: p.childIn, Stderr: p.childErr, ExtraFiles: []*os.File{p.childOut},
			SysProcAttr: attr,
		}
		wait, err := c.opts.Start(cmd)
		if err != nil {
			return nil, err
		}
		ch := &child{pid: cmd.Process.Pid, wait: wait}
		if ch.group, err = c.confine(ch.pid, key); err != nil {
			ch.kill()
			_ = wait()
			return nil, err
		}
		return ch, nil
	}
	if os.Geteuid() != 0 {
		return try(&syscall.SysProcAttr{}, c.opts.HostBinary)
	}

	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID,
		Credential: compilerUser(),
	}
	path := c.opts.HostBinary
	static, err := isStatic(host.file)
	if err != nil {
		return nil, err
	}
	if static {
		jail, err := c.jail(host, key)
		if err != nil {
			return nil, err
		}
		attr.Chroot, path = jail, "/"+jailBinary
	} else {
		c.opts.Report(c.opts.HostBinary + " is not a static build: its compiler can read the file system")
	}
	ch, err := try(attr, path)
	// A root that lives in a container of its own may lack these rights. The
	// limits still hold, and the module still gets nothing but descriptors.
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) {
		c.opts.Report(fault.OneLine(fmt.Sprintf("the compiler runs without its own namespaces and user: %v", err)))
		return try(&syscall.SysProcAttr{}, c.opts.HostBinary)
	}
	return ch, err
}

// compilerUser is a user that owns no file and no other process: the range
// belongs to nobody by convention (systemd, UIDS-GIDS). It is another one each
// time, so that one compiler cannot trace the next.
func compilerUser() *syscall.Credential {
	const first, span = 0x70000000, 1 << 16
	id := uint32(first + (uint64(os.Getpid())+uint64(time.Now().UnixNano()))%span)
	return &syscall.Credential{Uid: id, Gid: id}
}

// jailBinary is the one file in the compiler's root directory.
const jailBinary = "mentat-host"

// jail returns a directory with nothing in it but a copy of mentat-host. A
// link would change the original's ctime, and with it what is remembered.
func (c *Cache) jail(host *hostBinary, key string) (string, error) {
	jail := filepath.Join(c.opts.Dir, jailPrefix+host.digest[:32])
	if _, err := os.Lstat(filepath.Join(jail, jailBinary)); err == nil {
		return jail, nil
	}
	temp, err := os.MkdirTemp(c.opts.Dir, tempPrefix+key+"-*")
	if err != nil {
		return "", diskError(err, c.opts.Dir, "cannot prepare the compiler")
	}
	defer os.RemoveAll(temp)
	err = copyBinary(filepath.Join(temp, jailBinary), host)
	// The compiler's user must get in, and only in: the cache above it is closed.
	if err = errors.Join(err, os.Chmod(temp, 0o555)); err != nil {
		return "", diskError(err, c.opts.Dir, "cannot prepare the compiler")
	}
	// Another process may have been first; its copy is as good.
	if err := os.Rename(temp, jail); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return "", diskError(err, c.opts.Dir, "cannot prepare the compiler")
	}
	return jail, nil
}

func copyBinary(path string, host *hostBinary) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// In one piece from the start, whatever was read of it before.
	if _, err := io.Copy(f, io.NewSectionReader(host.file, 0, host.info.Size())); err != nil {
		return err
	}
	return f.Chmod(0o555)
}

// isStatic tells whether a program runs without any other file.
func isStatic(f *os.File) (bool, error) {
	e, err := elf.NewFile(f)
	if err != nil {
		return false, fmt.Errorf("not a program: %w", err)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}

// confine limits a child. The group is nil where none can be made.
func (c *Cache) confine(pid int, key string) (*group, error) {
	bounds := map[int]uint64{
		unix.RLIMIT_CPU:   uint64(limits.CompileCPU / time.Second),
		unix.RLIMIT_CORE:  0,
		unix.RLIMIT_FSIZE: 0,
	}
	g, err := newGroup(c.groupName(key), pid, c.maxMemory)
	if err != nil {
		if os.Geteuid() == 0 {
			c.opts.Report(fault.OneLine(fmt.Sprintf("no cgroup for the compiler, its address space is limited instead: %v", err)))
		}
		bounds[unix.RLIMIT_DATA] = uint64(c.maxMemory)
		bounds[unix.RLIMIT_AS] = uint64(c.maxMemory) + addressSpace
	}
	for resource, bound := range bounds {
		err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: bound, Max: bound}, nil)
		switch {
		case err != nil && g == nil:
			return nil, fmt.Errorf("cannot limit it: %w", err)
		case err != nil:
			// Another user's limits take CAP_SYS_RESOURCE. The group's hold.
			c.opts.Report(fault.OneLine(fmt.Sprintf("the compiler has only the limits of its cgroup: %v", err)))
			return g, nil
		}
	}
	return g, nil
}
