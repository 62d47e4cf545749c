package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// outside tells all of a yard but what was granted.
func outside(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(listing(t, root)) {
		if !strings.HasPrefix(line, "granted/") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// everything adds each call that there is about a path, in both ways to look it
// up, and returns where the files that are opened by it will be.
func everything(s *calls, dir any, path string) (opened []ref) {
	for _, lookup := range []int{0, followLink} {
		for _, oflags := range []int{0, dirOnly, create, truncate, create | exclusive} {
			for _, rights := range []uint64{canRead, canRead | canWrite} {
				opened = append(opened, s.open(dir, lookup, path, oflags, rights, 0))
			}
		}
		s.call("path_filestat_get", dir, lookup, path, s.room(64))
		s.call("path_filestat_set_times", dir, lookup, path, int64(1), int64(1), 5)
	}
	s.call("path_readlink", dir, path, s.room(32), 32, s.room(4))
	s.call("path_link", dir, 0, path, 3, "linked")
	s.call("path_link", 3, 0, "file", dir, path)
	s.call("path_rename", dir, path, 3, "renamed")
	s.call("path_rename", 3, "renamed", dir, path)
	s.call("path_rename", 3, "file", dir, path)
	s.call("path_symlink", "x", dir, path)
	s.call("path_create_directory", dir, path)
	s.call("path_remove_directory", dir, path)
	s.call("path_unlink_file", dir, path)
	return opened
}

// Paths and links that end in slashes, made by the guest itself (GHSA-vqjp), after
// they were moved (GHSA-m9f7), and all others that lead out: no call gets there.
func TestWhateverAGuestLinksItStaysInside(t *testing.T) {
	targets := []string{"..", "../", "..//", "../.", "../canary", "../canary/", "../canary//", "../canary/.", "../canary/secret", "../canary/secret/", "dir/../..", "dir/../../canary/", "./..", ".././canary/"}
	uses := []string{"", "/", "//", "/.", "/./", "/..", "/secret", "/secret/", "/new", "/new/", "/canary", "/canary/secret", "/canary/new"}
	for _, moved := range []bool{false, true} {
		for _, to := range targets {
			for _, use := range uses {
				root := yard(t)
				before := outside(t, root)
				var s calls
				link := "lnk"
				s.call("path_symlink", to, 3, link)
				if moved {
					// From a place from which it leads elsewhere.
					s.call("path_create_directory", 3, "dir/deep/er")
					s.call("path_rename", 3, link, 3, "dir/deep/er/"+link)
					s.call("path_rename", 3, "dir/deep/er", 3, "er")
					link = "er/" + link
				}
				opened := everything(&s, 3, link+use)
				for _, fd := range opened {
					s.call("fd_readdir", fd, s.room(256), 256, int64(0), s.room(4))
					s.call("fd_read", fd, s.vectors(16), 1, s.room(4))
					s.call("fd_write", fd, s.vectors("overwritten"), 1, s.room(4))
					s.call("path_open", fd, 1, "secret", 0, int64(canRead), int64(0), 0, s.room(4))
				}
				r := dir(filepath.Join(root, "granted")).served(t, &s)
				if after := outside(t, root); after != before {
					t.Fatalf("%q -> %q (moved %v): outside was\n%s, now\n%s", link+use, to, moved, before, after)
				}
				// Where its own link leads a guest may read.
				without := func(b []byte) string { return strings.ReplaceAll(string(b), to, "") }
				for _, text := range []string{"secret", "canary"} {
					if strings.Count(without(r.memory[dataAt:]), text) > strings.Count(without(s.data), text) {
						t.Errorf("%q -> %q (moved %v): %q was read", link+use, to, moved, text)
					}
				}
			}
		}
	}
}

// A descriptor of a directory leads no higher than that, also when it was moved.
func TestADirectoryIsTheTopOfWhatIsOpenedInIt(t *testing.T) {
	root := yard(t)
	before := outside(t, root)
	var s calls
	deep := s.open(3, 0, "dir/deep", dirOnly, canRead, 0)
	s.call("path_rename", 3, "dir/deep", 3, "deep")
	n := len(s.names)
	for _, path := range []string{"..", "../", "../file", "../../canary/secret", "../../canary/new", "./../..", "../granted/file"} {
		everything(&s, deep, path)
	}
	r := dir(filepath.Join(root, "granted")).served(t, &s)
	for i := n; i < len(r.results); i++ {
		if r.results[i] == 0 && s.names[i] != "path_link" && s.names[i] != "path_rename" {
			t.Errorf("call %d, %s, succeeds", i, s.names[i])
		}
	}
	if after := outside(t, root); after != before {
		t.Errorf("outside was\n%s, now\n%s", before, after)
	}
	if got := content(t, root, "granted/file"); got != "content" {
		t.Errorf("the file holds %q", got)
	}
}

// Whatever there is to change something in a read-only directory (GHSA-2r75,
// GHSA-4ch3): by a path, by a descriptor, by a second name or a link elsewhere.
func TestAReadOnlyDirectoryIsNeverChanged(t *testing.T) {
	root, other := yard(t), t.TempDir()
	g := readOnlyDir(filepath.Join(root, "granted"))
	g.preopens = append(g.preopens, hostdoc.Preopen{Host: other, Guest: "/writable"})
	before := listing(t, root)
	stat, err := os.Stat(filepath.Join(root, "granted/file"))
	if err != nil {
		t.Fatal(err)
	}
	const rw = 4
	var s calls
	for _, path := range []string{"file", "link", "dir", "dir/inner", "dirlink/inner", "dirlink/", "new", "dir/new", "emptydir", "."} {
		everything(&s, 3, path)
	}
	sub := s.open(3, 0, "dir", dirOnly, canRead, 0)
	everything(&s, sub, "inner")
	n := len(s.names)
	fd := s.open(3, 0, "file", 0, canRead, 0)
	for i, f := range []func(){
		func() { s.call("fd_write", fd, s.vectors("x"), 1, s.room(4)) },
		func() { s.call("fd_pwrite", fd, s.vectors("x"), 1, int64(0), s.room(4)) },
		func() { s.call("fd_filestat_set_size", fd, int64(0)) },
		func() { s.call("fd_filestat_set_times", fd, int64(1), int64(1), 5) },
		func() { s.call("fd_filestat_set_times", 3, int64(1), int64(1), 5) },
		func() { s.call("fd_filestat_set_times", sub, int64(1), int64(1), 5) },
		func() { s.call("fd_allocate", fd, int64(0), int64(1<<20)) },
		// From a writable one, and back.
		func() { s.call("path_link", 3, 0, "file", rw, "second") },
		func() { s.call("path_link", sub, 0, "inner", rw, "second") },
		func() { s.call("path_rename", 3, "file", rw, "second") },
		func() { s.call("path_rename", 3, "dir", rw, "second") },
		func() { s.call("path_rename", sub, "inner", rw, "second") },
		func() { s.open(3, 0, "file", 0, canWrite, 0) },
		func() { s.open(3, 0, "file", truncate, 0, 0) },
		func() { s.open(3, 0, "file", truncate, canRead, 0) },
		func() { s.open(3, 0, "file", create, canRead, 0) },
		func() { s.open(3, 0, "file", 0, canRead|canWrite, 1) },
		func() { s.open(3, followLink, "link", truncate, canRead, 0) },
		func() { s.open(sub, 0, "inner", truncate, canRead, 0) },
		func() { s.open(rw, followLink, "up/granted/file", truncate, canWrite, 0) },
	} {
		f()
		if len(s.names) != n+2+i {
			t.Fatal("a step is not one call")
		}
	}
	if err := os.Symlink("..", filepath.Join(other, "up")); err != nil {
		t.Fatal(err)
	}
	r := g.served(t, &s)
	for i := n + 1; i < len(r.results); i++ {
		if r.results[i] == 0 {
			t.Errorf("call %d, %s, succeeds", i-n-1, s.names[i])
		}
	}
	if after := listing(t, root); after != before {
		t.Errorf("it was\n%s, and is\n%s", before, after)
	}
	if now, err := os.Stat(filepath.Join(root, "granted/file")); err != nil || !now.ModTime().Equal(stat.ModTime()) {
		t.Errorf("modified at %v, was %v, %v", now.ModTime(), stat.ModTime(), err)
	}
	if entries, err := os.ReadDir(other); err != nil || len(entries) != 1 {
		t.Errorf("in the writable one are %v, %v", entries, err)
	}
}

// A pipe, a socket, a device: they are seen, but opening them would wait, wake
// somebody up or do something. A writer that waits for a reader of the pipe goes on
// waiting.
func TestWhatIsNeitherFileNorDirectoryIsNotOpened(t *testing.T) {
	root := yard(t)
	granted := filepath.Join(root, "granted")
	pipe := filepath.Join(granted, "pipe")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.Symlink("pipe", filepath.Join(granted, "topipe"))); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	socket, err := lc.Listen(t.Context(), "unix", filepath.Join(granted, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	names := []string{"pipe", "topipe", "socket"}
	if err := unix.Mknod(filepath.Join(granted, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err == nil {
		names = append(names, "null")
	}
	woken := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(pipe, os.O_WRONLY, 0)
		if err == nil {
			err = f.Close()
		}
		woken <- err
	}()
	var s calls
	types := map[string]uint32{}
	for _, name := range names {
		types[name] = s.room(64)
		s.call("path_filestat_get", 3, followLink, name, types[name])
	}
	n := len(s.names)
	for _, name := range names {
		for _, lookup := range []int{0, followLink} {
			for _, oflags := range []int{0, create, truncate, dirOnly, create | truncate} {
				for _, rights := range []uint64{0, canRead, canWrite, canRead | canWrite} {
					s.open(3, lookup, name, oflags, rights, 0)
				}
			}
		}
	}
	r := dir(granted).served(t, &s)
	for i, e := range r.results {
		if (i < n) != (e == 0) || i >= n && !slices.Contains([]int{int(wasi.NXIO), int(wasi.Loop), int(wasi.NotDir)}, e) {
			t.Errorf("call %d, %s: %d", i, s.names[i], e)
		}
	}
	for name, want := range map[string]byte{"pipe": 0, "topipe": 0, "socket": 6} {
		if got := r.memory[types[name]+16]; got != want {
			t.Errorf("%s is of type %d, want %d", name, got, want)
		}
	}
	select {
	case err := <-woken:
		t.Errorf("the pipe's writer was woken up: %v", err)
	default:
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := <-woken; err != nil {
		t.Error(err)
	}
}

// Somebody exchanges a directory and a link that leads out, as fast as can be,
// while the guest uses both names for everything that there is.
func TestALinkThatComesMeanwhileLeadsNowhere(t *testing.T) {
	root := yard(t)
	granted := filepath.Join(root, "granted")
	if err := errors.Join(os.Mkdir(filepath.Join(granted, "swap"), 0o700), os.WriteFile(filepath.Join(granted, "swap/secret"), []byte("inside"), 0o600), os.Symlink("../canary", filepath.Join(granted, "swap.link"))); err != nil {
		t.Fatal(err)
	}
	before := outside(t, root)
	stop := make(chan struct{})
	var swapped atomic.Int64
	var done sync.WaitGroup
	done.Go(func() {
		a, b := filepath.Join(granted, "swap"), filepath.Join(granted, "swap.link")
		for ; ; swapped.Add(1) {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var s calls
	var texts []uint32
	for range 4 {
		for _, path := range []string{"swap/secret", "swap/./secret", "swap/../swap/secret", "dir/../swap/secret"} {
			for _, lookup := range []int{0, followLink} {
				fd := s.open(3, lookup, path, 0, canRead, 0)
				text := s.room(8)
				texts = append(texts, text)
				s.call("fd_read", fd, s.place(pairs(text, 8)), 1, s.room(4))
				s.call("fd_close", fd)
			}
		}
		s.open(3, followLink, "swap/new", create|truncate, canWrite, 0)
		s.call("path_create_directory", 3, "swap/room2")
		s.call("path_remove_directory", 3, "swap/room")
		s.call("path_remove_directory", 3, "swap/room2")
		s.call("path_unlink_file", 3, "swap/new")
		s.call("path_symlink", "x", 3, "swap/link")
		s.call("path_unlink_file", 3, "swap/link")
		s.call("path_link", 3, 0, "file", 3, "swap/linked")
		s.call("path_unlink_file", 3, "swap/linked")
		s.call("path_rename", 3, "empty", 3, "swap/moved")
		s.call("path_rename", 3, "swap/moved", 3, "empty")
		s.call("path_filestat_set_times", 3, followLink, "swap/secret", int64(1), int64(1), 5)
	}
	// As long as it takes for both to have been met, whatever else the machine does.
	inside, refused := 0, 0
	for i, end := 0, time.Now().Add(2*time.Minute); i < 150 || (inside == 0 || refused == 0 || swapped.Load() < 1000) && time.Now().Before(end); i++ {
		r := dir(granted).served(t, &s)
		for _, text := range texts {
			switch got := r.text(text, 6); got {
			case "inside":
				inside++
			case "\x00\x00\x00\x00\x00\x00":
				refused++
			default:
				t.Fatalf("read %q", got)
			}
		}
	}
	close(stop)
	done.Wait()
	if after := outside(t, root); after != before {
		t.Errorf("outside was\n%s, now\n%s", before, after)
	}
	if st, err := os.Stat(filepath.Join(root, "canary/secret")); err != nil || st.ModTime().Unix() < 1000 {
		t.Errorf("%v, %v", st, err)
	}
	if inside == 0 || refused == 0 || swapped.Load() < 1000 {
		t.Errorf("no race: %d times inside, %d times not, %d exchanges", inside, refused, swapped.Load())
	}
}

func TestDescriptorsAreBoundedAndGoWithTheRun(t *testing.T) {
	root := yard(t)
	leavesNothing(t, func() {
		for range 3 {
			var s calls
			last := ref(0)
			for range limits.GuestFiles + 3 {
				last = s.open(3, 0, "file", 0, canRead, 0)
			}
			r := dir(filepath.Join(root, "granted")).served(t, &s)
			for i, e := range r.results {
				want := 0
				if i >= limits.GuestFiles-4 {
					want = int(wasi.MFile)
				}
				if e != want {
					t.Fatalf("open %d: %d, want %d", i, e, want)
				}
			}
			if r.u32(uint32(last)) != 0xffffffff {
				t.Error("what was not opened has a number")
			}
		}
	})
}

// A descriptor that another is renumbered to is closed (GHSA-3p27), as is one that
// is closed; and both numbers are good for what they now are, only.
func TestNothingLeaksByRenumbering(t *testing.T) {
	root := yard(t)
	before := len(descriptors(t))
	g := dir(filepath.Join(root, "granted"))
	var s calls
	a := s.open(3, 0, "file", 0, canRead, 0)
	for range 150 {
		b := s.open(3, 0, "dir/inner", 0, canRead, 0)
		s.call("fd_renumber", b, a)
	}
	text := s.room(8)
	s.call("fd_read", a, s.place(pairs(text, 8)), 1, s.room(4))
	s.call("fd_read", 5, s.vectors(4), 1, s.room(4))
	s.call("fd_renumber", a, a)
	// A preopen can be closed and replaced; it is other runs', too.
	s.call("fd_renumber", a, 3)
	s.call("fd_prestat_get", 3, s.room(8))
	s.call("fd_close", 3)
	s.call("fd_close", 3)
	want := make([]int, len(s.names))
	for i, e := range map[int]int{len(want) - 6: errnoBadf, len(want) - 3: errnoBadf, len(want) - 1: errnoBadf} {
		want[i] = e
	}
	r := g.results(t, &s, want...)
	if r.text(text, 5) != "inner" {
		t.Errorf("read %q", r.text(text, 8))
	}
	eventually(t, "no more descriptors are open than before", func() bool { return len(descriptors(t)) <= before })
}

func descriptors(t *testing.T) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Sizes are the guest's, memory is the host's (GHSA-852m): whatever size is passed,
// no call makes the host take more than a fixed piece.
func TestSizesThatAGuestNamesCostTheHostNothing(t *testing.T) {
	root := yard(t)
	g := dir(filepath.Join(root, "granted"))
	g.args, g.env = []string{"agent", strings.Repeat("a", 1000)}, []string{"A=" + strings.Repeat("b", 1000)}
	const much = 100 << 10
	var s calls
	fd := s.open(3, 0, "file", create, canRead|canWrite, 0)
	at := s.room(much)
	for range 20 {
		for _, name := range []string{"path_create_directory", "path_unlink_file"} {
			s.call(name, 3, at, much)
		}
		s.call("path_open", 3, 0, at, much, 0, int64(canRead), int64(0), 0, s.room(4))
		s.call("path_symlink", at, much, 3, "link2")
		s.call("path_readlink", 3, "link", at, much, s.room(4))
		s.call("fd_read", fd, at, 1024, s.room(4))
		s.call("fd_pread", fd, s.place(pairs(at, much)), 1, int64(0), s.room(4))
		s.call("fd_readdir", 3, at, much, int64(0), s.room(4))
		s.call("fd_prestat_dir_name", 3, at, much)
		s.call("random_get", at, much)
		s.call("args_get", at, at+8192)
		s.call("environ_get", at, at+8192)
		s.call("poll_oneoff", at, at, 2000, s.room(4))
		s.call("fd_filestat_set_size", fd, int64(1)<<40)
		s.call("fd_filestat_set_size", fd, int64(0))
	}
	var idle calls
	taken := func(s *calls) uint64 {
		g.served(t, s) // caches are made
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		g.served(t, s)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	base := taken(&idle)
	if got := taken(&s); got > base+4*limits.MiB {
		t.Errorf("%d bytes were taken, %d without the calls", got, base)
	}
}

// What a directory lists comes in pieces, as large as the guest likes: every name
// once, with its type, and nothing of what is above.
func TestADirectoryIsListedInPieces(t *testing.T) {
	root := yard(t)
	many := filepath.Join(root, "granted/many")
	if err := os.Mkdir(many, 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]byte{".": 3, "..": 3}
	for i := range 300 {
		name := fmt.Sprintf("%d-%s", i, strings.Repeat("n", i%200))
		var err error
		switch want[name] = 4; i % 3 {
		case 0:
			err = os.WriteFile(filepath.Join(many, name), nil, 0o600)
		case 1:
			want[name] = 3
			err = os.Mkdir(filepath.Join(many, name), 0o700)
		case 2:
			want[name] = 7
			err = os.Symlink("x", filepath.Join(many, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	above, err := os.Stat(filepath.Join(root, "granted"))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{24 + 255, 300, 1000, 4096, 60_000} {
		g := dir(filepath.Join(root, "granted/many"))
		got := map[string]byte{}
		for cookie, calls1 := uint64(0), 0; ; calls1++ {
			if calls1 > 400 {
				t.Fatalf("pieces of %d: no end", size)
			}
			var s calls
			buf, used := s.room(size), s.room(4)
			s.call("fd_readdir", 3, buf, size, cookie, used)
			r := g.results(t, &s, 0)
			n := r.u32(used)
			for at := buf; buf+n-at >= 24; {
				next, ino, length, how := r.u64(at), r.u64(at+8), r.u32(at+16), r.memory[at+20]
				if buf+n-at-24 < length {
					break
				}
				name := r.text(at+24, length)
				if _, twice := got[name]; twice {
					t.Fatalf("pieces of %d: %q twice", size, name)
				}
				if name == ".." && ino == above.Sys().(*syscall.Stat_t).Ino {
					t.Error("the directory above is told")
				}
				got[name], cookie = how, next
				at += 24 + length
			}
			if n < uint32(size) {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("pieces of %d: %d names, want %d", size, len(got), len(want))
		}
	}
	var s calls
	s.call("fd_readdir", 3, s.room(100), 100, int64(-1), s.room(4))
	s.call("fd_readdir", 3, s.room(100), 100, int64(1<<62+12345), s.room(4))
	s.call("fd_readdir", 3, s.room(1), 0, int64(0), s.room(4))
	s.call("fd_readdir", 3, s.room(10), 10, int64(0), s.room(4))
	r := dir(many).served(t, &s)
	if r.trapped || r.results[0] != int(wasi.Inval) || r.results[2] != 0 || r.results[3] != 0 {
		t.Errorf("%+v", r.results)
	}
}
