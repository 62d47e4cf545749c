package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Every function of descriptors, on every kind of descriptor: what the engine
// answers is answered, but where the table says what is.
func TestDescriptorsAreAnsweredAsTheEngineAnswersThem(t *testing.T) {
	kinds := map[string]func(s *calls) any{
		"stdin": func(*calls) any { return 0 }, "stdout": func(*calls) any { return 1 }, "stderr": func(*calls) any { return 2 },
		"preopen": func(*calls) any { return 3 }, "none": func(*calls) any { return 99 }, "far": func(*calls) any { return -1 },
		"directory":      func(s *calls) any { return s.open(3, 0, "dir", dirOnly, canRead, 0) },
		"read":           func(s *calls) any { return s.open(3, 0, "file", 0, canRead, 0) },
		"write":          func(s *calls) any { return s.open(3, 0, "file", 0, canWrite, 0) },
		"read and write": func(s *calls) any { return s.open(3, 0, "file", 0, canRead|canWrite, 0) },
		"append":         func(s *calls) any { return s.open(3, 0, "file", 0, canRead|canWrite, 1) },
	}
	functions := map[string]func(s *calls, fd any){
		"fd_advise":            func(s *calls, fd any) { s.call("fd_advise", fd, int64(0), int64(4), 0) },
		"fd_advise, unknown":   func(s *calls, fd any) { s.call("fd_advise", fd, int64(0), int64(4), 6) },
		"fd_allocate":          func(s *calls, fd any) { s.call("fd_allocate", fd, int64(0), int64(4)) },
		"fd_close":             func(s *calls, fd any) { s.call("fd_close", fd) },
		"fd_datasync":          func(s *calls, fd any) { s.call("fd_datasync", fd) },
		"fd_fdstat_get":        func(s *calls, fd any) { s.call("fd_fdstat_get", fd, s.room(24)) },
		"fd_fdstat_set_flags":  func(s *calls, fd any) { s.call("fd_fdstat_set_flags", fd, 1) },
		"set flags, sync":      func(s *calls, fd any) { s.call("fd_fdstat_set_flags", fd, 16) },
		"set flags, unknown":   func(s *calls, fd any) { s.call("fd_fdstat_set_flags", fd, 32) },
		"fd_fdstat_set_rights": func(s *calls, fd any) { s.call("fd_fdstat_set_rights", fd, int64(0), int64(0)) },
		"fd_filestat_get":      func(s *calls, fd any) { s.call("fd_filestat_get", fd, s.room(64)) },
		"fd_filestat_set_size": func(s *calls, fd any) { s.call("fd_filestat_set_size", fd, int64(3)) },
		"set size, negative":   func(s *calls, fd any) { s.call("fd_filestat_set_size", fd, int64(-1)) },
		"set times":            func(s *calls, fd any) { s.call("fd_filestat_set_times", fd, int64(1), int64(1), 5) },
		"set times, now":       func(s *calls, fd any) { s.call("fd_filestat_set_times", fd, int64(1), int64(1), 10) },
		"set times, both":      func(s *calls, fd any) { s.call("fd_filestat_set_times", fd, int64(1), int64(1), 3) },
		"set times, unknown":   func(s *calls, fd any) { s.call("fd_filestat_set_times", fd, int64(1), int64(1), 16) },
		"fd_pread":             func(s *calls, fd any) { s.call("fd_pread", fd, s.vectors(4), 1, int64(2), s.room(4)) },
		"fd_prestat_get":       func(s *calls, fd any) { s.call("fd_prestat_get", fd, s.room(8)) },
		"fd_prestat_dir_name":  func(s *calls, fd any) { s.call("fd_prestat_dir_name", fd, s.room(16), 16) },
		"name, too long":       func(s *calls, fd any) { s.call("fd_prestat_dir_name", fd, s.room(16), 2) },
		"fd_pwrite":            func(s *calls, fd any) { s.call("fd_pwrite", fd, s.vectors("ab"), 1, int64(2), s.room(4)) },
		"fd_read":              func(s *calls, fd any) { s.call("fd_read", fd, s.vectors(4), 1, s.room(4)) },
		"fd_read of nothing":   func(s *calls, fd any) { s.call("fd_read", fd, s.vectors(), 0, s.room(4)) },
		"fd_readdir":           func(s *calls, fd any) { s.call("fd_readdir", fd, s.room(64), 64, int64(0), s.room(4)) },
		"fd_renumber":          func(s *calls, fd any) { s.call("fd_renumber", fd, 3) },
		"renumber to it":       func(s *calls, fd any) { s.call("fd_renumber", 3, fd) },
		"fd_seek":              func(s *calls, fd any) { s.call("fd_seek", fd, int64(2), 0, s.room(8)) },
		"seek back":            func(s *calls, fd any) { s.call("fd_seek", fd, int64(-2), 2, s.room(8)) },
		"seek before it":       func(s *calls, fd any) { s.call("fd_seek", fd, int64(-2), 1, s.room(8)) },
		"seek, unknown":        func(s *calls, fd any) { s.call("fd_seek", fd, int64(2), 3, s.room(8)) },
		"fd_sync":              func(s *calls, fd any) { s.call("fd_sync", fd) },
		"fd_tell":              func(s *calls, fd any) { s.call("fd_tell", fd, s.room(8)) },
		"fd_write":             func(s *calls, fd any) { s.call("fd_write", fd, s.vectors("ab"), 1, s.room(4)) },
		"fd_write of nothing":  func(s *calls, fd any) { s.call("fd_write", fd, s.vectors(), 0, s.room(4)) },
		"path_open":            func(s *calls, fd any) { s.open(fd, 0, "inner", 0, canRead, 0) },
		"path_filestat_get":    func(s *calls, fd any) { s.call("path_filestat_get", fd, 0, "inner", s.room(64)) },
		"path_unlink_file":     func(s *calls, fd any) { s.call("path_unlink_file", fd, "inner") },
		"path_rename":          func(s *calls, fd any) { s.call("path_rename", fd, "inner", 3, "moved") },
		"path_link":            func(s *calls, fd any) { s.call("path_link", 3, 0, "file", fd, "linked") },
		"sock_accept":          func(s *calls, fd any) { s.call("sock_accept", fd, 0, s.room(4)) },
		"sock_recv":            func(s *calls, fd any) { s.call("sock_recv", fd, s.vectors(4), 1, 0, s.room(4), s.room(4)) },
		"sock_send":            func(s *calls, fd any) { s.call("sock_send", fd, s.vectors("ab"), 1, 0, s.room(4)) },
		"sock_shutdown":        func(s *calls, fd any) { s.call("sock_shutdown", fd, 1) },
	}
	// After the call the descriptor and its file are looked at.
	after := func(s *calls, fd any) {
		s.call("fd_tell", fd, s.room(8))
		s.call("fd_filestat_get", fd, s.room(64))
		s.call("fd_prestat_get", 3, s.room(8))
	}
	var p pair
	p.renew(t)
	for kind, opened := range kinds {
		for name, f := range functions {
			var s calls
			fd := opened(&s)
			at := len(s.names)
			f(&s, fd)
			after(&s, fd)
			ours, theirs := dir(filepath.Join(p.ours, "granted")).served(t, &s), dir(filepath.Join(p.theirs, "granted")).theirs(t, &s)
			left, theyLeft := p.renew(t)
			switch {
			case theirs.trapped:
				// A number that WASI does not have: it is an error here.
				if ours.results[at] == 0 || !strings.HasSuffix(name, "unknown") {
					t.Errorf("%s of %s: %v, theirs trapped", name, kind, ours.results)
				}
				continue
			case fmt.Sprint(ours.results) == fmt.Sprint(theirs.results):
			case ours.results[at] == int(wasi.NotDir) && theirs.results[at] == errnoBadf:
				// A file where there must be a directory.
			case strings.HasPrefix(name, "set times") && kind == "preopen" && ours.results[at] == 0:
				// The engine cannot.
			default:
				t.Errorf("%s of %s: %v, theirs %v", name, kind, ours.results[at:], theirs.results[at:])
			}
			if left != theyLeft {
				t.Errorf("%s of %s: leaves\n%s, theirs\n%s", name, kind, left, theyLeft)
			}
		}
	}
}

// content is a file of the yard that a test reads again.
func content(t testing.TB, root, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAFilesBytesAndItsPlace(t *testing.T) {
	root := yard(t)
	g := dir(filepath.Join(root, "granted"))
	var s calls
	fd := s.open(3, 0, "new", create|exclusive, canRead|canWrite, 0)
	count, place := s.room(4*16), s.room(8*8)
	s.call("fd_write", fd, s.vectors("hello ", "", "wide ", "world"), 4, count)
	s.call("fd_tell", fd, place)
	s.call("fd_seek", fd, int64(6), 0, place+8)
	three, rest := s.room(3), s.room(100)
	s.call("fd_read", fd, s.place(pairs(three, 3, 0, 0, rest, 100)), 3, count+4)
	s.call("fd_read", fd, s.vectors(10), 1, count+8)
	at2 := s.room(5)
	s.call("fd_pread", fd, s.place(pairs(at2, 5)), 1, int64(2), count+12)
	s.call("fd_pwrite", fd, s.vectors("WIDE"), 1, int64(6), count+16)
	s.call("fd_tell", fd, place+16)
	s.call("fd_pread", fd, s.vectors(4), 1, int64(1000), count+20)
	s.call("fd_seek", fd, int64(-3), 2, place+24)
	s.call("fd_write", fd, s.vectors("LDWIDE"), 1, count+24)
	s.call("fd_fdstat_set_flags", fd, 1)
	s.call("fd_seek", fd, int64(0), 0, place+32)
	s.call("fd_write", fd, s.vectors("!"), 1, count+28)
	s.call("fd_filestat_set_size", fd, int64(18))
	stat := s.room(64)
	s.call("fd_filestat_get", fd, stat)
	s.call("fd_seek", fd, int64(1<<40), 1, place+40)
	s.call("fd_read", fd, s.vectors(4), 1, count+32)
	r := g.results(t, &s, make([]int, len(s.names))...)
	for i, want := range []uint32{16, 10, 0, 5, 4, 0, 6, 1, 0} {
		if got := r.u32(count + 4*uint32(i)); got != want {
			t.Errorf("count %d is %d, want %d", i, got, want)
		}
	}
	for i, want := range []uint64{16, 6, 16, 13, 0, 20 + 1<<40} {
		if got := r.u64(place + 8*uint32(i)); got != want {
			t.Errorf("place %d is %d, want %d", i, got, want)
		}
	}
	if r.text(three, 3) != "wid" || r.text(rest, 7) != "e world" || r.text(at2, 5) != "llo w" || r.u64(stat+32) != 18 {
		t.Errorf("read %q, %q, %q, size %d", r.text(three, 3), r.text(rest, 7), r.text(at2, 5), r.u64(stat+32))
	}
	if got, want := content(t, root, "granted/new"), "hello WIDE woLDWIDE!"[:18]; got != want {
		t.Errorf("the file holds %q, want %q", got, want)
	}
}

// pairs lays out pointers and lengths.
func pairs(list ...uint32) []byte {
	var b []byte
	for _, v := range list {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func TestOfManyBuffersOneThatIsNoneStopsAll(t *testing.T) {
	root := yard(t)
	g := dir(filepath.Join(root, "granted"))
	const far = 0xffff0000
	// Some file systems have room for it, tmpfs is one.
	const huge = int64(1) << 62
	larger := int(wasi.FBig)
	probe, err := os.CreateTemp(t.TempDir(), "probe-*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := probe.WriteAt([]byte("abcd"), huge); err == nil {
		larger = 0
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		call func(s *calls, fd any)
		want int // -1 traps
	}{
		"a buffer out of range":  {func(s *calls, fd any) { s.call("fd_write", fd, s.place(pairs(dataAt, 4, far, 4)), 2, s.room(4)) }, -1},
		"one that ends too late": {func(s *calls, fd any) { s.call("fd_write", fd, s.place(pairs(dataAt, 4, dataAt, far)), 2, s.room(4)) }, -1},
		"one that wraps around": {func(s *calls, fd any) {
			s.call("fd_pwrite", fd, s.place(pairs(dataAt, 0xffffffff)), 1, int64(0), s.room(4))
		}, -1},
		"the list out of range":   {func(s *calls, fd any) { s.call("fd_write", fd, far, 1, s.room(4)) }, -1},
		"a list without end":      {func(s *calls, fd any) { s.call("fd_write", fd, s.vectors("abcd"), -1, s.room(4)) }, -1},
		"the result out of range": {func(s *calls, fd any) { s.call("fd_write", fd, s.vectors("abcd"), 1, far) }, -1},
		"a read's result":         {func(s *calls, fd any) { s.call("fd_read", fd, s.vectors(4), 1, far) }, -1},
		"a place's result":        {func(s *calls, fd any) { s.call("fd_seek", fd, int64(1), 0, far) }, -1},
		"too many":                {func(s *calls, fd any) { s.call("fd_write", fd, s.room(8*1025), 1025, s.room(4)) }, int(wasi.Inval)},
		"as many as there may be": {func(s *calls, fd any) { s.call("fd_write", fd, s.room(8*1024), 1024, s.room(4)) }, 0},
		"a place before it":       {func(s *calls, fd any) { s.call("fd_pwrite", fd, s.vectors("abcd"), 1, int64(-1), s.room(4)) }, int(wasi.Inval)},
		"a place beyond any":      {func(s *calls, fd any) { s.call("fd_pwrite", fd, s.vectors("abcd"), 1, int64(1<<63-1), s.room(4)) }, int(wasi.Inval)},
		"larger than any file":    {func(s *calls, fd any) { s.call("fd_pwrite", fd, s.vectors("abcd"), 1, huge, s.room(4)) }, larger},
		"not for writing": {func(s *calls, _ any) {
			s.call("fd_write", s.open(3, 0, "file", 0, canRead, 0), s.vectors("abcd"), 1, s.room(4))
		}, errnoBadf},
		"not for reading": {func(s *calls, _ any) {
			s.call("fd_read", s.open(3, 0, "file", 0, canWrite, 0), s.vectors(4), 1, s.room(4))
		}, errnoBadf},
	} {
		var s calls
		c.call(&s, s.open(3, 0, "file", 0, canRead|canWrite, 0))
		r := g.served(t, &s)
		if r.trapped != (c.want < 0) || !r.trapped && r.results[len(r.results)-1] != c.want {
			t.Errorf("%s: %v, trapped %v; want %d", name, r.results, r.trapped, c.want)
		}
		if larger == 0 && c.want == larger {
			if err := os.Truncate(filepath.Join(root, "granted/file"), int64(len("content"))); err != nil {
				t.Fatal(err)
			}
		}
		if got := content(t, root, "granted/file"); got != "content" {
			t.Fatalf("%s: the file holds %q", name, got)
		}
	}
}

// More buffers than one system call takes, of which the first covers the list of
// all: what is read makes pointers of the others that lead nowhere.
func TestAListOfBuffersThatIsOverwrittenMeanwhile(t *testing.T) {
	root := yard(t)
	bad := bytes.Repeat([]byte{0xff}, 64<<10)
	if err := os.WriteFile(filepath.Join(root, "granted/file"), bad, 0o600); err != nil {
		t.Fatal(err)
	}
	var s calls
	fd := s.open(3, 0, "file", 0, canRead, 0)
	const buffers = 200
	into, count := s.room(8), s.room(4)
	list := s.room(8 * buffers)
	s.data = s.data[:len(s.data)-8*buffers]
	s.data = append(s.data, pairs(list, 8*buffers)...)
	for range buffers - 1 {
		s.data = append(s.data, pairs(into, 8)...)
	}
	s.call("fd_read", fd, list, buffers, count)
	r := dir(filepath.Join(root, "granted")).results(t, &s, 0, 0)
	// The first 64 were gathered before they were overwritten.
	if got, want := r.u32(count), uint32(8*buffers+63*8); got != want {
		t.Errorf("%d bytes were read, want %d", got, want)
	}
}

// large is a guest that writes n MiB with one call and reads them with another,
// into other memory, and compares.
func large(n int) string {
	return command(fmt.Sprintf(`
    (local.set $n (i32.const %[1]d))
    (loop $fill
      (local.set $n (i32.sub (local.get $n) (i32.const 8)))
      (i64.store offset=65536 (local.get $n) (i64.mul (i64.extend_i32_u (local.get $n)) (i64.const 0x9e3779b97f4a7c15)))
      (br_if $fill (local.get $n)))
    (if (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 3) (i32.const 1) (i64.const 0x42) (i64.const 0) (i32.const 0) (i32.const 100))
      (then (call $proc_exit (i32.const 1))))
    (if (call $write (i32.load (i32.const 100)) (i32.const 65536) (i32.const %[1]d)) (then (call $proc_exit (i32.const 2))))
    (if (i32.ne (i32.load (i32.const 8)) (i32.const %[1]d)) (then (call $proc_exit (i32.const 3))))
    (i32.store (i32.const 16) (i32.const %[2]d)) (i32.store (i32.const 20) (i32.const %[1]d))
    (if (call $fd_pread (i32.load (i32.const 100)) (i32.const 16) (i32.const 1) (i64.const 0) (i32.const 8)) (then (call $proc_exit (i32.const 4))))
    (if (i32.ne (i32.load (i32.const 8)) (i32.const %[1]d)) (then (call $proc_exit (i32.const 5))))
    (local.set $n (i32.const %[1]d))
    (loop $compare
      (local.set $n (i32.sub (local.get $n) (i32.const 8)))
      (if (i64.ne (i64.load offset=65536 (local.get $n)) (i64.load offset=%[2]d (local.get $n))) (then (call $proc_exit (i32.const 6))))
      (br_if $compare (local.get $n)))`, n<<20, 65536+n<<20),
		`(data (i32.const 1024) "new")`, fmt.Sprintf(`(func $grown (drop (memory.grow (i32.const %d)))) (start $grown)`, 32*n+2))
}

func TestMoreThanOneSystemCallMovesIsMoved(t *testing.T) {
	tr := makeTree(t)
	setup{wat: large(20), edit: func(d *hostdoc.Document) {
		tr.preopen(false)(d)
		d.Limits.MemoryBytes = 64 * limits.MiB
	}}.run(t).wants(t, 0, "")
	if st, err := os.Stat(filepath.Join(tr.granted, "new")); err != nil || st.Size() != 20<<20 {
		t.Errorf("%v, %v", st, err)
	}
}

// One call names 2 GiB again and again; the file has them all.
func TestTheDeadlineEndsATransfer(t *testing.T) {
	tr := makeTree(t)
	if err := os.Truncate(filepath.Join(tr.granted, "file"), 1<<40); err != nil {
		t.Skipf("no file of that size: %v", err)
	}
	guest := command(`
    (if (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))
      (then (call $proc_exit (i32.const 1))))
    (loop $fill
      (i32.store offset=65536 (local.get $n) (i32.const 131072))
      (i32.store offset=65540 (local.get $n) (i32.const 4194304))
      (br_if $fill (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 8))) (i32.const 8192))))
    (loop $again
      (if (call $fd_read (i32.load (i32.const 8)) (i32.const 65536) (i32.const 1024) (i32.const 16)) (then (call $proc_exit (i32.const 2))))
      (br_if $again (i32.load (i32.const 16))))`,
		`(data (i32.const 1024) "file")`, `(func $grown (drop (memory.grow (i32.const 70)))) (start $grown)`)
	setup{wat: guest, edit: func(d *hostdoc.Document) {
		tr.preopen(true)(d)
		brief(d)
	}}.run(t).wants(t, fault.ExitDeadline, fault.Deadline)
}

// The engine's own WASI handed each such call to another thread, of which a guest
// had a dozen soon. A container's host has sixteen for all it does.
func TestFilesTakeNoThreadButTheRuns(t *testing.T) {
	const runs = 6
	tr := makeTree(t)
	doc := document(t, command(`
    (loop $again
      (if (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))
        (then (call $proc_exit (i32.const 9))))
      (if (call $close (i32.load (i32.const 8))) (then (call $proc_exit (i32.const 8))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 3000))))
    (call $proc_exit (i32.const 7))`, `(data (i32.const 1024) "file")`))
	doc.Entry, doc.Preopens = hostdoc.EntryCommand, []hostdoc.Preopen{{Host: tr.granted, Guest: "/data", ReadOnly: true}}
	p := load1(t, doc, Options{})
	before := threadsNow(t)
	for range 3 {
		var all sync.WaitGroup
		for range runs {
			all.Go(func() {
				if exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != 7 || err != nil {
					t.Errorf("%+v, %v", exit, err)
				}
			})
		}
		all.Wait()
	}
	// Go keeps the threads that it once made: one for each run, and those that run
	// what else there is meanwhile.
	if now, most := threadsNow(t), before+runs+runtime.GOMAXPROCS(0)+2; now > most {
		t.Errorf("%d threads, before %d, want %d at most", now, before, most)
	}
}

func threadsNow(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}
