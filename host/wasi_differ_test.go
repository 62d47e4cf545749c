package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/limits"
)

// The places of a directory to grant, and of a canary beside it that nobody is to
// touch: files with what they hold, directories, and links with where they lead.
var (
	yardFiles = map[string]string{"granted/file": "content", "granted/empty": "", "granted/dir/inner": "inner", "canary/secret": "secret"}
	yardDirs  = []string{"granted/dir/deep", "granted/emptydir", "canary/room"}
	yardLinks = map[string]string{
		"link": "file", "dirlink": "dir", "slashlink": "dir/", "fileslash": "file/", "dangling": "nothing", "danglingslash": "nothing/", "loop": "loop",
		"dots": "dir/../file", "dir/up": "../file", "chain": "dirlink/up", "self": ".",
		"up": "..", "out": "../canary/secret", "outdir": "../canary", "outslash": "../canary/", "outnew": "../canary/new", "dir/out": "../../canary/secret",
		"abs": "/etc/passwd", "absdir": "/etc/", "proc": "/proc/self/root",
	}
)

// yard makes the places below a new directory.
func yard(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	var errs []error
	for _, d := range append([]string{"granted/dir", "canary"}, yardDirs...) {
		errs = append(errs, os.MkdirAll(filepath.Join(root, d), 0o700))
	}
	for name, text := range yardFiles {
		errs = append(errs, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	for name, to := range yardLinks {
		errs = append(errs, os.Symlink(to, filepath.Join(root, "granted", name)))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return root
}

// listing tells everything that there is below a directory.
func listing(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		what := ""
		switch d.Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = fmt.Sprintf("%q", data)
		case fs.ModeSymlink:
			if what, err = os.Readlink(path); err != nil {
				return err
			}
		}
		fmt.Fprintf(&b, "%s %v %s\n", name, d.Type(), what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// names are paths that a guest may think of, in that directory.
func trickyPaths() []string {
	paths := []string{
		"file", "file/", "file//", "./file", ".//.//file", "dir/../file", "file/.", "file/..", "file/../file", "empty",
		"", ".", "./", "..", "../", "../canary/secret", "../granted/file", "dir/..", "dir/../", "dir/../..", "dir/../../canary/secret", "/", "/file", "//file", "/etc/passwd",
		"dir", "dir/", "dir//", "dir/.", "dir/./", "dir/inner", "dir/inner/", "dir/inner/x", "dir/deep", "dir/deep/", "dir/deep/../inner", "dir/new", "emptydir", "emptydir/", "emptydir/new",
		"nothing", "nothing/", "nothing/.", "nothing/..", "nothing/x", "new", "new/",
		"link/", "dirlink/", "dirlink/inner", "dirlink/..", "dirlink/../file", "slashlink/", "slashlink/inner", "slashlink/new", "fileslash/", "dangling/", "danglingslash/", "loop/", "loop/x",
		"self/", "self/file", "up/", "up/canary/secret", "out/", "outdir/", "outdir/secret", "outdir/new", "outslash/", "outslash/secret", "outslash/new", "outnew/", "abs/", "absdir/", "absdir/passwd", "proc/", "proc/etc/passwd",
		"a\x00b", "file\x00", strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("./", 2047) + "f", strings.Repeat("./", 2100) + "file", "bad\xffutf8",
	}
	for name := range yardLinks {
		paths = append(paths, name)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// Rights and flags of path_open.
const (
	canRead  = 2
	canWrite = 64

	create    = 1
	dirOnly   = 2
	exclusive = 4
	truncate  = 8

	followLink = 1
)

// operation is one call about a path; the descriptor 3 is the directory.
type operation struct {
	name string
	add  func(s *calls, path string)
	// native does the same to an open directory, nil where the kernel is not asked.
	native func(dir int, path string) error
}

func operations() []operation {
	var ops []operation
	add := func(name string, f func(s *calls, path string), native func(dir int, path string) error) {
		ops = append(ops, operation{name, f, native})
	}
	for _, lookup := range []int{0, followLink} {
		for _, oflags := range []int{0, dirOnly, create, create | exclusive, truncate, create | truncate, create | dirOnly} {
			rights := []uint64{canRead, canWrite, canRead | canWrite}
			if oflags != 0 && oflags != create|truncate {
				rights = []uint64{canRead | uint64(canWrite*lookup)} // the one or the other: every script is a run
			}
			for _, rights := range rights {
				add(fmt.Sprintf("open lookup %d, flags %d, rights %d", lookup, oflags, rights), func(s *calls, path string) {
					s.open(3, lookup, path, oflags, rights, 0)
				}, nil)
			}
		}
		add(fmt.Sprintf("stat %d", lookup), func(s *calls, path string) { s.call("path_filestat_get", 3, lookup, path, s.room(64)) }, nil)
		add(fmt.Sprintf("set times %d", lookup), func(s *calls, path string) {
			s.call("path_filestat_set_times", 3, lookup, path, uint64(1e18), uint64(1e18), 5)
		}, nil)
	}
	add("link, followed", func(s *calls, path string) { s.call("path_link", 3, followLink, path, 3, "new") }, nil)
	add("symlink out", func(s *calls, path string) { s.call("path_symlink", "/etc", 3, path) }, nil)
	add("mkdir", func(s *calls, path string) { s.call("path_create_directory", 3, path) },
		func(dir int, path string) error { return unix.Mkdirat(dir, path, 0o777) })
	add("rmdir", func(s *calls, path string) { s.call("path_remove_directory", 3, path) },
		func(dir int, path string) error { return unix.Unlinkat(dir, path, unix.AT_REMOVEDIR) })
	add("unlink", func(s *calls, path string) { s.call("path_unlink_file", 3, path) },
		func(dir int, path string) error { return unix.Unlinkat(dir, path, 0) })
	add("readlink", func(s *calls, path string) { s.call("path_readlink", 3, path, s.room(64), 64, s.room(4)) },
		func(dir int, path string) error {
			_, err := unix.Readlinkat(dir, path, make([]byte, 64))
			return err
		})
	add("symlink", func(s *calls, path string) { s.call("path_symlink", "target", 3, path) },
		func(dir int, path string) error { return unix.Symlinkat("target", dir, path) })
	add("link", func(s *calls, path string) { s.call("path_link", 3, 0, path, 3, "new") },
		func(dir int, path string) error { return unix.Linkat(dir, path, dir, "new", 0) })
	add("link to it", func(s *calls, path string) { s.call("path_link", 3, 0, "file", 3, path) },
		func(dir int, path string) error { return unix.Linkat(dir, "file", dir, path, 0) })
	add("rename", func(s *calls, path string) { s.call("path_rename", 3, path, 3, "new") },
		func(dir int, path string) error { return unix.Renameat(dir, path, dir, "new") })
	add("rename a file to it", func(s *calls, path string) { s.call("path_rename", 3, "file", 3, path) },
		func(dir int, path string) error { return unix.Renameat(dir, "file", dir, path) })
	add("rename a directory to it", func(s *calls, path string) { s.call("path_rename", 3, "dir", 3, path) },
		func(dir int, path string) error { return unix.Renameat(dir, "dir", dir, path) })
	return ops
}

// pair is two yards that are alike, as long as the same happens in both.
type pair struct {
	ours, theirs, listing string
}

// renew makes new ones if anything has changed, and says what is in both then.
func (p *pair) renew(t *testing.T) (ours, theirs string) {
	t.Helper()
	if p.ours != "" {
		ours, theirs = listing(t, p.ours), listing(t, p.theirs)
	}
	if p.ours == "" || ours != p.listing || theirs != p.listing {
		p.ours, p.theirs = yard(t), yard(t)
		p.listing = listing(t, p.ours)
	}
	return ours, theirs
}

// some are the paths of a test that has little time.
func some(paths []string) []string {
	if !testing.Short() {
		return paths
	}
	var few []string
	for i := 0; i < len(paths); i += 8 {
		few = append(few, paths[i])
	}
	return few
}

func slashed(path string) bool { return strings.HasSuffix(path, "/") || strings.HasSuffix(path, "/.") }

// The engine's own WASI is what guests know: what it answers is answered here too,
// and what it leaves in the directory is left. Where a path ends in slashes the
// engine takes for a file what is none; there the kernel is followed.
func TestPathsAreAnsweredAsTheEngineAnswersThem(t *testing.T) {
	var p pair
	p.renew(t)
	for _, path := range some(trickyPaths()) {
		for _, op := range operations() {
			var s calls
			op.add(&s, path)
			ours := dir(filepath.Join(p.ours, "granted")).served(t, &s)
			theirs := dir(filepath.Join(p.theirs, "granted")).theirs(t, &s)
			left, theyLeft := p.renew(t)
			if ours.trapped || theirs.trapped {
				t.Fatalf("%s %.40q: trapped", op.name, path)
			}
			a, b := ours.results[0], theirs.results[0]
			switch {
			case a == b:
				if left != theyLeft {
					t.Errorf("%s %.40q: leaves\n%s, theirs\n%s", op.name, path, left, theyLeft)
				}
			case slashed(path) && (a != 0 || op.name == "rmdir"):
			case len(path) >= limits.PathBytes && a == int(wasi.NameTooLong):
			case !utf8.ValidString(path) && a != 0 && b != 0:
			default:
				t.Errorf("%s %.40q: %d, theirs %d", op.name, path, a, b)
			}
		}
	}
}

// What changes a directory is answered as the kernel answers it to programs, and
// does the same, as long as the path stays inside.
func TestPathsAreAnsweredAsTheKernelAnswersThem(t *testing.T) {
	var p pair
	p.renew(t)
	asked := 0
	for _, path := range some(trickyPaths()) {
		for _, op := range operations() {
			if op.native == nil || strings.ContainsRune(path, 0) || !utf8.ValidString(path) {
				continue
			}
			var s calls
			op.add(&s, path)
			ours := dir(filepath.Join(p.ours, "granted")).served(t, &s).results[0]
			granted, err := os.Open(filepath.Join(p.theirs, "granted"))
			if err != nil {
				t.Fatal(err)
			}
			if within(int(granted.Fd()), path) {
				err = op.native(int(granted.Fd()), path)
				asked++
			} else {
				err = unix.EPERM
			}
			_ = granted.Close()
			left, kernel := p.renew(t)
			switch want := wasiErrno(t, err); {
			case op.name == "readlink" && ours == int(wasi.Perm) && err == nil && strings.HasPrefix(yardLinks[path], "/"):
			case (op.name == "readlink" || op.name == "link") && slashed(path) && ours != 0 && want != 0:
				// The kernel follows a link for its slashes, wherever it leads.
			case ours != want && (ours == 0 || want == 0 || !dotted(path)):
				t.Errorf("%s %.40q: %d, the kernel says %d", op.name, path, ours, want)
			case left != kernel:
				t.Errorf("%s %.40q: leaves\n%s, the kernel\n%s", op.name, path, left, kernel)
			}
		}
	}
	if asked < 100 {
		t.Errorf("the kernel was asked only %d times", asked)
	}
}

// dotted says that a path ends in a name that is none.
func dotted(path string) bool {
	base := path[strings.LastIndexByte(strings.TrimRight(path, "/"), '/')+1:]
	base = strings.TrimRight(base, "/")
	return base == "." || base == ".."
}

// within says that a path does not lead out of a directory before its last place.
func within(dir int, path string) bool {
	if strings.HasPrefix(path, "/") {
		return false
	}
	for _, p := range []string{filepath.Dir(strings.TrimRight(path, "/")), path} {
		if p == path && !dotted(path) {
			continue
		}
		// filepath.Dir cleans: what matters is where the parents' links lead.
		fd, err := unix.Openat2(dir, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH})
		if errors.Is(err, unix.EXDEV) {
			return false
		}
		if err == nil {
			_ = unix.Close(fd)
		}
	}
	return true
}

// wasiErrno is the number of an error of the kernel's, from a list of its own.
func wasiErrno(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	for e, n := range map[unix.Errno]int{
		unix.EPERM: 63, unix.ENOENT: 44, unix.EEXIST: 20, unix.ENOTDIR: 54, unix.EISDIR: 31, unix.EINVAL: 28, unix.ENOTEMPTY: 55, unix.ELOOP: 32,
		unix.EBUSY: 10, unix.ENAMETOOLONG: 37, unix.EXDEV: 75, unix.EACCES: 2,
	} {
		if errors.Is(err, e) {
			return n
		}
	}
	t.Fatal(err)
	return 0
}
