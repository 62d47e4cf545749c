package filesystem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// Dir is a directory that the run was granted.
type Dir struct {
	// Guest is its absolute path as the guest names it.
	Guest    string
	ReadOnly bool
	// File is the directory, open; it stays the caller's.
	File *os.File
}

// Backend serves filesystem:ACCESS:PATH.
type Backend struct{ dirs []Dir }

// New makes a backend of directories.
func New(dirs []Dir) *Backend {
	b := &Backend{slices.Clone(dirs)}
	// The innermost comes first.
	slices.SortStableFunc(b.dirs, func(x, y Dir) int { return len(y.Guest) - len(x.Guest) })
	return b
}

// Open gives access to what the grant names. It need not exist yet.
func (b *Backend) Open(_ context.Context, _ string, g backend.Grant) (backend.Capability, *backend.Refusal) {
	if refused := backend.NoArgs(g); refused != nil {
		return nil, refused
	}
	return &files{b, g}, nil
}

// Done drops nothing.
func (*Backend) Done(string) {}

// Close closes nothing.
func (*Backend) Close() error { return nil }

// files are what one capability gives access to.
type files struct {
	b     *Backend
	grant backend.Grant
}

// head is a request's head.
type head struct {
	Path   string `json:"path"`
	Offset *int64 `json:"offset"`
	Append bool   `json:"append"`
}

// Info is the head of an answer and, with a name, an entry of a list.
type Info struct {
	Name string `json:"name,omitempty"`
	Size int64  `json:"size"`
	// Mtime is in UTC. Mode is as `ls -l` writes it.
	Mtime time.Time `json:"mtime"`
	Mode  string    `json:"mode"`
}

func infoOf(name string, st fs.FileInfo) Info {
	return Info{name, st.Size(), st.ModTime().UTC(), st.Mode().String()}
}

// Invoke judges a call; the work is done when the answer is read.
func (f *files) Invoke(ctx context.Context, op string, raw json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	var h head
	if refused := backend.Strict(raw, &h); refused != nil {
		return nil, refused
	}
	if problem := h.problem(op, body); problem != "" {
		return nil, &backend.Refusal{Code: backend.Invalid, Reason: problem}
	}
	works := map[string]func(*answer) *backend.Refusal{"read": (*answer).read, "write": (*answer).write, "list": (*answer).list, "stat": (*answer).stat}
	work := works[op]
	if work == nil {
		return nil, backend.NoOperation(op, "read", "write", "list", "stat")
	}
	at := path.Clean(h.Path)
	dir, refused := f.allow(op, at)
	if refused != nil {
		return nil, refused
	}
	return &answer{ctx: ctx, f: f, dir: dir, at: at, head: h, body: body, work: work}, nil
}

func (h *head) problem(op string, body []byte) string {
	switch {
	case !strings.HasPrefix(h.Path, "/") || strings.ContainsRune(h.Path, 0) || slices.Contains(strings.Split(h.Path, "/"), ".."):
		return "the path must be absolute, without '..'"
	case h.Offset != nil && *h.Offset < 0:
		return "the offset is negative"
	case h.Offset != nil && op != "read" && op != "write":
		return "only read and write take an offset"
	case h.Append && op != "write":
		return "only write appends"
	case h.Append && h.Offset != nil:
		return "append and an offset exclude each other"
	case len(body) > 0 && op != "write":
		return "only write takes a body"
	}
	return ""
}

// allow finds the directory of a path that the capability covers.
func (f *files) allow(op, at string) (*Dir, *backend.Refusal) {
	access := manifest.AccessRead
	if op == "write" {
		access = manifest.AccessWrite
	}
	want := manifest.Capability{Kind: manifest.KindFilesystem, Access: access, Path: at}
	if !f.grant.Capability.Allows(want) {
		return nil, &backend.Refusal{Code: backend.Denied, Rule: f.grant.Rule, Reason: "the capability does not cover it",
			Hint: fmt.Sprintf("request_capability with %q, which a line under wasm.capabilities in manifest.yaml asks for", want)}
	}
	i := slices.IndexFunc(f.b.dirs, func(d Dir) bool { return beneath(d.Guest, at) })
	switch {
	case i < 0:
		return nil, &backend.Refusal{Code: backend.NotFound, Reason: "granted, but this run was given no directory there", Hint: "whoever runs the agent mounts it"}
	case access == manifest.AccessWrite && f.b.dirs[i].ReadOnly:
		return nil, &backend.Refusal{Code: backend.Denied, Rule: "container", Reason: "the directory was given for reading only"}
	}
	return &f.b.dirs[i], nil
}

func beneath(dir, file string) bool {
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

// answer is one call.
type answer struct {
	ctx  context.Context //nolint:containedctx // the call's own
	f    *files
	dir  *Dir
	at   string
	head head
	body []byte
	work func(*answer) *backend.Refusal

	info Info
	out  io.Reader
	file *os.File
}

// Head does the work.
func (a *answer) Head() (json.RawMessage, *backend.Refusal) {
	if refused := a.work(a); refused != nil {
		return nil, refused
	}
	data, err := json.Marshal(a.info)
	if err != nil {
		return nil, &backend.Refusal{Code: backend.Internal, Reason: "the answer cannot be encoded"}
	}
	return data, nil
}

func (a *answer) Read(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, &backend.Refusal{Code: backend.Canceled, Reason: "the call was closed"}
	}
	if a.out == nil {
		return 0, io.EOF
	}
	return a.out.Read(p)
}

func (a *answer) Close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

func (a *answer) read() *backend.Refusal {
	if refused := a.open(unix.O_RDONLY); refused != nil {
		return refused
	}
	st, refused := a.regular()
	if refused != nil {
		return refused
	}
	var from int64
	if a.head.Offset != nil {
		from = *a.head.Offset
	}
	a.out = io.NewSectionReader(a.file, from, max(st.Size()-from, 0))
	return nil
}

func (a *answer) write() *backend.Refusal {
	flags := unix.O_WRONLY | unix.O_CREAT
	if a.head.Append {
		flags |= unix.O_APPEND
	}
	if refused := a.open(flags); refused != nil {
		return refused
	}
	// Only now is it known that it is a file.
	if _, refused := a.regular(); refused != nil {
		return refused
	}
	var err error
	switch {
	case a.head.Offset != nil:
		_, err = a.file.WriteAt(a.body, *a.head.Offset)
	case a.head.Append:
		_, err = a.file.Write(a.body)
	default:
		if err = a.file.Truncate(0); err == nil {
			_, err = a.file.Write(a.body)
		}
	}
	if err != nil {
		return refusal(err)
	}
	_, refused := a.regular()
	return refused
}

func (a *answer) stat() *backend.Refusal {
	if refused := a.open(unix.O_PATH); refused != nil {
		return refused
	}
	st, err := a.file.Stat()
	if err != nil {
		return refusal(err)
	}
	a.info = infoOf("", st)
	return nil
}

func (a *answer) list() *backend.Refusal {
	if refused := a.open(unix.O_RDONLY | unix.O_DIRECTORY); refused != nil {
		return refused
	}
	st, err := a.file.Stat()
	if err != nil {
		return refusal(err)
	}
	a.info = infoOf("", st)
	names, err := a.file.Readdirnames(limits.ListEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return refusal(err)
	}
	if len(names) > limits.ListEntries {
		return &backend.Refusal{Code: backend.Limit, Reason: fmt.Sprintf("the directory has over %d entries", limits.ListEntries)}
	}
	list := []Info{}
	for _, name := range names {
		// One that is gone meanwhile is not there.
		if st, err := entry(a.file, name); err == nil {
			list = append(list, infoOf(name, st))
		}
	}
	slices.SortFunc(list, func(x, y Info) int { return strings.Compare(x.Name, y.Name) })
	data, err := json.Marshal(list)
	if err != nil {
		return &backend.Refusal{Code: backend.Internal, Reason: "the list cannot be encoded"}
	}
	a.out = strings.NewReader(string(data))
	return nil
}

// entry describes an entry of an open directory, a link as itself.
func entry(dir *os.File, name string) (fs.FileInfo, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	st, err := f.Stat()
	return st, errors.Join(err, f.Close())
}

// regular says of the open file what it is, unless it is none.
func (a *answer) regular() (fs.FileInfo, *backend.Refusal) {
	st, err := a.file.Stat()
	switch {
	case err != nil:
		return nil, refusal(err)
	case !st.Mode().IsRegular():
		return nil, &backend.Refusal{Code: backend.Invalid, Reason: "it is no regular file"}
	}
	a.info = infoOf("", st)
	return st, nil
}

// open opens the path. On the way to what the capability names no link is
// followed; beneath that, links count as long as they stay beneath it.
func (a *answer) open(flags int) *backend.Refusal {
	flags |= unix.O_CLOEXEC
	if flags&unix.O_PATH == 0 {
		// A pipe must not hold the call up.
		flags |= unix.O_NONBLOCK
	}
	mode := uint64(0)
	if flags&unix.O_CREAT != 0 {
		mode = 0o644
	}
	bound := a.f.grant.Capability.Path
	if !beneath(a.dir.Guest, bound) {
		bound = a.dir.Guest
	}
	base := int(a.dir.File.Fd())
	strict := uint64(unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS)
	rest := relative(bound, a.at)
	if rest == "." && bound != a.dir.Guest {
		return a.openat(base, relative(a.dir.Guest, bound), flags, mode, strict)
	}
	if bound != a.dir.Guest {
		fd, err := unix.Openat2(base, relative(a.dir.Guest, bound), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: strict})
		if err != nil {
			return refusal(err)
		}
		defer func() { _ = unix.Close(fd) }() // only a handle
		base = fd
	}
	return a.openat(base, rest, flags, mode, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
}

func (a *answer) openat(base int, name string, flags int, mode, resolve uint64) *backend.Refusal {
	how := &unix.OpenHow{Flags: uint64(flags), Mode: mode, Resolve: resolve}
	fd, err := unix.Openat2(base, name, how)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && a.ctx.Err() == nil {
		// Something was renamed meanwhile: the kernel asks to try again.
		fd, err = unix.Openat2(base, name, how)
	}
	if err != nil {
		return refusal(err)
	}
	a.file = os.NewFile(uintptr(fd), path.Base(a.at))
	return nil
}

// relative is file as seen from dir, which holds it.
func relative(dir, file string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(file, strings.TrimSuffix(dir, "/")), "/")
	if rest == "" {
		return "."
	}
	return rest
}

var refusals = []struct {
	err    error
	code   backend.Code
	reason string
}{
	{fs.ErrNotExist, backend.NotFound, "there is no such file"},
	{unix.EXDEV, backend.Denied, "the path leads outside of what the capability names"},
	{unix.ELOOP, backend.Denied, "the path leads through a link that is not followed"},
	{fs.ErrPermission, backend.Denied, "the file's own permissions do not allow it"},
	{unix.EROFS, backend.Denied, "the file system is read-only"},
	{unix.EISDIR, backend.Invalid, "it is a directory"},
	{unix.ENOTDIR, backend.Invalid, "it is no directory"},
	{unix.ENXIO, backend.Invalid, "it is no regular file"},
	{unix.ENAMETOOLONG, backend.Invalid, "the name is too long"},
	{unix.EINVAL, backend.Invalid, "the file system does not take that"},
	{unix.ENOSPC, backend.Limit, "the file system is full"},
	{unix.EDQUOT, backend.Limit, "the quota is used up"},
	{unix.EFBIG, backend.Limit, "the file would be too large"},
}

// refusal tells the guest why, without a path of the host's.
func refusal(err error) *backend.Refusal {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return &backend.Refusal{Code: r.code, Reason: r.reason}
		}
	}
	return &backend.Refusal{Code: backend.Unavailable, Reason: "the file system failed"}
}
