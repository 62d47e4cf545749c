package aot

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/owndir"
)

const (
	// format is part of every key: a change of what is stored changes it.
	format = "mentat aot cache 1"

	keyName  = "key"
	lockName = "lock"
	// Suffixes of an entry, of its code and of a failure that waiters share.
	moduleSuffix = ".cwasm"
	macSuffix    = ".mac"
	failSuffix   = ".failed"
	tempPrefix   = owndir.TempPrefix
	jailPrefix   = "jail-"

	// maxCompiled is far more than code ever is: six times the module.
	maxCompiled = 16 * limits.ModuleBytes
)

// Cache is an open cache. It may be used by many goroutines, and its directory
// by many processes.
type Cache struct {
	opts     Options
	secret   []byte
	features string
	// maxCompiled and maxMemory bound what a child may return and use.
	maxCompiled, maxMemory int64
}

// Open opens the cache and makes what is missing of it.
func Open(opts Options) (*Cache, error) {
	if opts.Dir == "" || opts.HostBinary == "" {
		return nil, fault.New(fault.Internal, "", "the cache of compiled modules needs a directory and mentat-host")
	}
	if opts.CompileWall <= 0 {
		opts.CompileWall = limits.CompileWall
	}
	if opts.Start == nil {
		opts.Start = func(cmd *exec.Cmd) (func() error, error) { return cmd.Wait, cmd.Start() }
	}
	if opts.Report == nil {
		opts.Report = func(string) {}
	}
	for _, dir := range []string{opts.Dir, opts.Memory} {
		if dir == "" {
			continue
		}
		if err := owndir.Make(dir); err != nil {
			return nil, diskError(err, dir, "cannot use the directory")
		}
	}
	if err := checkExec(opts.Dir); err != nil {
		return nil, err
	}
	features, err := cpuFeatures()
	if err != nil {
		return nil, err
	}
	secret, err := nodeKey(opts.Dir)
	if err != nil {
		return nil, err
	}
	return &Cache{opts: opts, secret: secret, features: features, maxCompiled: maxCompiled, maxMemory: limits.CompileMemory}, nil
}

// checkExec refuses a directory whose files cannot be mapped executable, which
// would only show as a failure of the engine, inside the container.
func checkExec(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return diskError(err, dir, "cannot use the directory")
	}
	return execError(dir, st.Flags)
}

func execError(dir string, flags int64) error {
	if flags&unix.ST_NOEXEC == 0 {
		return nil
	}
	return fault.New(fault.Unsupported, dir, "the file system is mounted noexec, compiled modules cannot be run from it").
		WithHint("set cache.dir in the configuration to a directory on a file system mounted exec")
}

// cpuFeatures identifies the processor as far as a code generator cares. The
// first processor's block is enough, and short: on a large machine the whole
// file takes milliseconds.
func cpuFeatures() (string, error) {
	const path = "/proc/cpuinfo"
	f, err := os.Open(path)
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, path, "cannot tell what the processor can do")
	}
	defer f.Close()
	buf := make([]byte, 16*limits.KiB)
	n, err := io.ReadAtLeast(f, buf, 1)
	for err == nil && n < len(buf) && !strings.Contains(string(buf[:n]), "\n\n") {
		var more int
		more, err = f.Read(buf[n:])
		n += more
	}
	for line := range strings.Lines(string(buf[:n])) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "flags", "Features":
			return strings.TrimSpace(value), nil
		}
	}
	return "", fault.New(fault.Unsupported, path, "does not name the processor's features")
}

// nodeKey reads the key that authenticates entries, made at first use. It is
// linked into place complete, so that of several processes one wins and none
// reads a part.
func nodeKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, keyName)
	secret, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	f, err := tempFile(dir, "")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	secret = make([]byte, sha256.Size)
	rand.Read(secret) // never fails: crypto/rand ends the process instead
	_, err = f.Write(secret)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, diskError(err, path, "cannot write the key")
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, diskError(err, path, "cannot write the key")
	}
	return readKey(path)
}

func readKey(path string) ([]byte, error) {
	data, info, err := owndir.Read(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, fault.Wrap(err, fault.Internal, path, "cannot read the key of the cache")
	}
	if len(data) != sha256.Size || info.Mode().Perm() != 0o600 || !owndir.Mine(info) {
		return nil, fault.New(fault.Internal, path, "the key of the cache is damaged").
			WithHint("remove the file: every module is then compiled again")
	}
	return data, nil
}

// Module returns the compiled form of the module with digest d; open is called
// only if it must be compiled. Errors: module-invalid and compile-failed are
// the module's, digest-mismatch is the content's, resource-limit means that the
// disk is full.
func (c *Cache) Module(ctx context.Context, d digest.Digest, open func() (io.ReadCloser, error)) (Entry, error) {
	if err := d.Validate(); err != nil {
		return Entry{}, fault.Wrap(err, fault.Internal, d.String(), "not a digest")
	}
	host, err := c.openHost()
	if err != nil {
		return Entry{}, err
	}
	defer host.file.Close()
	key := c.key(d, host.digest)

	// Without the lock first: hits must not wait for a compilation.
	if e, err := c.lookup(key); err == nil {
		return e, nil
	}
	arrived := time.Now()
	unlock, err := c.lock(ctx, key)
	if err != nil {
		return Entry{}, err
	}
	defer unlock()
	e, err := c.lookup(key)
	if err == nil {
		return e, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		c.opts.Report(fault.OneLine(fmt.Sprintf("compiled module of %s removed, it is compiled again: %v", d, err)))
		if err := c.remove(key); err != nil {
			return Entry{}, diskError(err, c.path(key), "cannot remove a damaged entry")
		}
	}
	// Whoever waited while another compiled in vain shares its failure: else
	// every replica of a broken module would burn the full time in turn.
	if err := c.failedSince(key, arrived); err != nil {
		return Entry{}, err
	}
	e, err = c.compile(ctx, key, d, host, open)
	if err != nil {
		c.rememberFailure(key, err)
		return Entry{}, err
	}
	if c.opts.MaxBytes > 0 {
		if err := c.Prune(); err != nil {
			c.opts.Report(fault.OneLine(fmt.Sprintf("cannot make room in the cache of compiled modules: %v", err)))
		}
	}
	return e, nil
}

// key names an entry. The host binary's digest stands for engine, version and
// configuration: they are all linked into it.
func (c *Cache) key(module digest.Digest, host string) string {
	h := sha256.New()
	for _, part := range []string{format, module.String(), host, c.features} {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (c *Cache) path(key string) string { return filepath.Join(c.opts.Dir, key+moduleSuffix) }

func (c *Cache) macPath(key string) string { return filepath.Join(c.opts.Dir, key+macSuffix) }

// newMAC authenticates bytes as belonging to a key, for one purpose.
func (c *Cache) newMAC(purpose, key string) hash.Hash {
	m := hmac.New(sha256.New, c.secret)
	fmt.Fprintf(m, "%s\x00%s\x00", purpose, key)
	return m
}

// lookup returns an entry that is what its code says: [fs.ErrNotExist] if there
// is none, another error if it is not to be trusted.
func (c *Cache) lookup(key string) (Entry, error) {
	path := c.path(key)
	f, err := owndir.Open(path)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Entry{}, err
	}
	if !info.Mode().IsRegular() || !owndir.Mine(info) || info.Mode().Perm()&0o222 != 0 {
		return Entry{}, fmt.Errorf("it is %s, not a read-only file of this user", info.Mode())
	}
	e := Entry{Path: path, Size: info.Size(), Hit: true}
	if value, ok := c.recall(key, info); ok && value == "checked" {
		return e, nil
	}
	want, _, err := owndir.Read(c.macPath(key))
	if err != nil {
		// Not [fs.ErrNotExist]: an entry without its code must go.
		return Entry{}, errors.New("its authentication code cannot be read: " + err.Error())
	}
	mac := c.newMAC("entry", key)
	if _, err := io.Copy(mac, f); err != nil {
		return Entry{}, err
	}
	if !hmac.Equal(mac.Sum(nil), want) {
		return Entry{}, errors.New("its authentication code does not fit")
	}
	c.remember(key, info, "checked")
	return e, nil
}

// store puts a finished temporary file into the cache.
func (c *Cache) store(key string, f *os.File, mac []byte) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	code, err := tempFile(c.opts.Dir, key)
	if err != nil {
		return err
	}
	defer os.Remove(code.Name())
	_, err = code.Write(mac)
	if err = errors.Join(err, code.Sync(), code.Close()); err != nil {
		return err
	}
	// The code first: a crash between the two leaves no entry, rather than one
	// that looks forged.
	if err := os.Rename(code.Name(), c.macPath(key)); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), c.path(key)); err != nil {
		return err
	}
	if info, err := f.Stat(); err == nil {
		c.remember(key, info, "checked")
	}
	return syncDir(c.opts.Dir)
}

func (c *Cache) remove(key string) error {
	var errs []error
	for _, path := range []string{c.path(key), c.macPath(key)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if c.opts.Memory != "" {
		_ = os.Remove(filepath.Join(c.opts.Memory, key)) // it no longer fits any file
	}
	return errors.Join(errs...)
}

// recall returns what was remembered about a file, if it is still that file.
func (c *Cache) recall(name string, info fs.FileInfo) (string, bool) {
	if c.opts.Memory == "" {
		return "", false
	}
	path := filepath.Join(c.opts.Memory, name)
	data, _, err := owndir.Read(path)
	if err != nil || len(data) < sha256.Size {
		return "", false
	}
	value := data[sha256.Size:]
	if !hmac.Equal(c.memoMAC(name, info, string(value)), data[:sha256.Size]) {
		return "", false
	}
	// Its time is when the entry was last used, which is what Prune goes by.
	now := time.Now()
	_ = os.Chtimes(path, now, now)
	return string(value), true
}

// remember is a help only: a failure costs time, never correctness.
func (c *Cache) remember(name string, info fs.FileInfo, value string) {
	if c.opts.Memory == "" {
		return
	}
	_ = owndir.Write(filepath.Join(c.opts.Memory, name), append(c.memoMAC(name, info, value), value...))
}

func (c *Cache) memoMAC(name string, info fs.FileInfo, value string) []byte {
	m := c.newMAC("memory", name)
	fmt.Fprintf(m, "%s\x00%s", owndir.Identity(info), value)
	return m.Sum(nil)
}

// failedSince returns the failure that another holder of the lock left after t.
func (c *Cache) failedSince(key string, t time.Time) error {
	data, info, err := owndir.Read(filepath.Join(c.opts.Dir, key+failSuffix))
	if err != nil || len(data) < sha256.Size || info.ModTime().Before(t) {
		return nil //nolint:nilerr // no failure can be read, so none is shared
	}
	m := c.newMAC("failure", key)
	m.Write(data[sha256.Size:])
	if !hmac.Equal(m.Sum(nil), data[:sha256.Size]) {
		return nil
	}
	reason, message, _ := strings.Cut(string(data[sha256.Size:]), "\n")
	return fault.New(fault.Reason(reason), "", "%s", message)
}

func (c *Cache) rememberFailure(key string, failure error) {
	reason := fault.ReasonOf(failure)
	if reason != fault.ModuleInvalid && reason != fault.CompileFailed {
		return
	}
	f, err := tempFile(c.opts.Dir, key)
	if err != nil {
		return
	}
	defer os.Remove(f.Name())
	text := string(reason) + "\n" + failure.Error()
	m := c.newMAC("failure", key)
	m.Write([]byte(text)) // a hash takes everything
	_, err = f.Write(append(m.Sum(nil), text...))
	if errors.Join(err, f.Close()) == nil {
		_ = os.Rename(f.Name(), filepath.Join(c.opts.Dir, key+failSuffix))
	}
}

// lock takes the lock of one key, across goroutines and processes. It is a
// range of one file, so that there is nothing to clean up, and belongs to the
// open file, so that the kernel drops it with the process.
func (c *Cache) lock(ctx context.Context, key string) (unlock func(), err error) {
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		unlock, err := c.tryLock(key)
		if err != nil || unlock != nil {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(ctx.Err(), fault.Canceled, "", "gave up waiting for the compilation of the same module")
		case <-time.After(delay):
		}
	}
}

// tryLock returns nil, nil if another has the lock.
func (c *Cache) tryLock(key string) (unlock func(), err error) {
	path := filepath.Join(c.opts.Dir, lockName)
	sum, err := hex.DecodeString(key)
	if err != nil || len(sum) != sha256.Size {
		return nil, fault.New(fault.Internal, key, "not a key of the cache")
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, diskError(err, path, "cannot lock the cache")
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(binary.BigEndian.Uint64(sum) >> 2), Len: 1}
	switch err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return nil, f.Close()
	case err != nil:
		return nil, errors.Join(diskError(err, path, "cannot lock the cache"), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// hostBinary is mentat-host, opened, with the digest of its content.
type hostBinary struct {
	file   *os.File
	info   fs.FileInfo
	digest string
}

func (c *Cache) openHost() (*hostBinary, error) {
	path := c.opts.HostBinary
	f, err := os.Open(path)
	if err != nil {
		reason := fault.Internal
		if errors.Is(err, fs.ErrNotExist) {
			reason = fault.NotFound
		}
		return nil, fault.Wrap(err, reason, path, "cannot open mentat-host")
	}
	h := &hostBinary{file: f}
	if h.info, err = f.Stat(); err == nil {
		name := "host-" + hex.EncodeToString(sum(path))[:32]
		var known bool
		if h.digest, known = c.recall(name, h.info); !known {
			hasher := sha256.New()
			if _, err = io.Copy(hasher, f); err == nil {
				h.digest = hex.EncodeToString(hasher.Sum(nil))
				c.remember(name, h.info, h.digest)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, fault.Internal, path, "cannot read mentat-host"), f.Close())
	}
	return h, nil
}

func sum(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// tempFile makes a file of mode 0600 that nobody looks for. It is made under
// the lock of key, if there is one.
func tempFile(dir, key string) (*os.File, error) {
	f, err := os.CreateTemp(dir, tempPrefix+key+"-*")
	if err != nil {
		return nil, diskError(err, dir, "cannot write to the cache")
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// diskError tells a full disk from other failures.
func diskError(err error, on, what string) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if errors.Is(err, full) {
			return fault.Wrap(err, fault.ResourceLimit, on, "%s, the disk is full", what).
				WithHint("free space there, or set cache.dir to another file system")
		}
	}
	return fault.Wrap(err, fault.Internal, on, "%s", what)
}
