package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

const wasiImports = `
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pread" (func $fd_pread (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $fd_fdstat_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $set_size (param i32 i64) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $fd_prestat_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_accept" (func $sock_accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
`

// command wraps the code of _start. $print writes n bytes at p to descriptor 1;
// the memory from 1024 on is the caller's.
func command(body string, more ...string) string {
	return `(module` + wasiImports + `
  (memory (export "memory") 1)
  (func $write (param $fd i32) (param $p i32) (param $n i32) (result i32)
    (i32.store (i32.const 0) (local.get $p))
    (i32.store (i32.const 4) (local.get $n))
    (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func $print (param $p i32) (param $n i32)
    (drop (call $write (i32.const 1) (local.get $p) (local.get $n))))
  (func $readin (param $p i32) (param $n i32) (result i32)
    (i32.store (i32.const 0) (local.get $p))
    (i32.store (i32.const 4) (local.get $n))
    (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (call $proc_exit (i32.const 99))))
    (i32.load (i32.const 8)))
  ` + strings.Join(more, "\n") + `
  (func (export "_start") (local $n i32)
` + body + `))`
}

func asCommand(edits ...func(*hostdoc.Document)) func(*hostdoc.Document) {
	return func(d *hostdoc.Document) {
		d.Entry = hostdoc.EntryCommand
		for _, edit := range edits {
			edit(d)
		}
	}
}

func TestCommandGetsArgumentsAndEnvironmentAndNothingElse(t *testing.T) {
	t.Setenv("MENTAT_TEST_SECRET", "leak")
	edit := func(d *hostdoc.Document) {
		d.Args = []string{"agent", "one", "two words", ""}
		d.Env = []string{"A=1", "B=x=y", "EMPTY="}
	}
	dump := func(kind string) string {
		return command(`
    (drop (call $`+kind+`_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $`+kind+`_get (i32.const 1024) (i32.const 2048)))
    (call $print (i32.const 2048) (i32.load (i32.const 20)))`, "")
	}
	setup{wat: dump("args"), edit: asCommand(edit)}.run(t).wants(t, 0, "").output(t, "agent\x00one\x00two words\x00\x00")
	setup{wat: dump("environ"), edit: asCommand(edit)}.run(t).wants(t, 0, "").output(t, "A=1\x00B=x=y\x00EMPTY=\x00")
	setup{wat: dump("environ"), edit: asCommand()}.run(t).wants(t, 0, "").output(t, "")
	for _, bad := range []func(*hostdoc.Document){
		func(d *hostdoc.Document) { d.Args = []string{"a\x00b"} },
		func(d *hostdoc.Document) { d.Env = []string{"A=\xff"} },
		func(d *hostdoc.Document) { d.Env = []string{"A=\x00"} },
		func(d *hostdoc.Document) {
			d.Preopens = []hostdoc.Preopen{{Host: "/nonexistent/dir", Guest: "/x"}}
		},
	} {
		setup{wat: dump("args"), edit: asCommand(bad)}.run(t).wants(t, fault.ExitHostFailure, fault.Internal).output(t, "")
	}
}

func TestExitStatusOfACommandPassesThrough(t *testing.T) {
	for code, status := range map[int]int{0: 0, 1: 1, 7: 7, 125: 125, 126: 126, 200: 200, 255: 255, 256: 255, -1: 255} {
		o := setup{wat: command(fmt.Sprintf(`(call $proc_exit (i32.const %d)) (unreachable)`, code)), edit: asCommand()}.run(t).wants(t, status, "")
		if o.stderr != "" {
			t.Errorf("%d: stderr %q", code, o.stderr)
		}
	}
	setup{wat: command(`(unreachable)`), edit: asCommand()}.run(t).wants(t, fault.ExitTrap, fault.Trap)
	// A reactor may exit, too.
	runWAT(t, `(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
	  (func (export "process") (result i32) (call $exit (i32.const 33)) (i32.const 0)))`).wants(t, 33, "")
	// As does Go's runtime when memory.grow fails.
	setup{wat: command(`(drop (memory.grow (i32.const 500))) (call $proc_exit (i32.const 2))`), edit: asCommand()}.run(t).wants(t, 2, fault.OutOfMemory)
}

func TestCommandStreams(t *testing.T) {
	cat := command(`
    (loop $again
      (local.set $n (call $readin (i32.const 1024) (i32.const 100)))
      (call $print (i32.const 1024) (local.get $n))
      (br_if $again (local.get $n)))`)
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("0123456789", 20_000)
	setup{wat: cat, stdin: strings.NewReader(long), edit: asCommand()}.run(t).wants(t, 0, "").output(t, long)
	setup{wat: cat, edit: asCommand()}.run(t).wants(t, 0, "").output(t, "")
	setup{wat: cat, edit: asCommand(func(d *hostdoc.Document) { d.Input = hostdoc.Input{Kind: hostdoc.InputText, Text: "text"} })}.run(t).wants(t, 0, "").output(t, "text")
	setup{wat: cat, edit: asCommand(func(d *hostdoc.Document) { d.Input = hostdoc.Input{Kind: hostdoc.InputFile, Path: file} })}.run(t).wants(t, 0, "").output(t, "from a file")

	o := setup{wat: command(`(drop (call $write (i32.const 2) (i32.const 1024) (i32.const 5)))`, `(data (i32.const 1024) "error")`), edit: asCommand()}.run(t).wants(t, 0, "").output(t, "")
	if o.stderr != "info  test.agent: error\n" {
		t.Errorf("stderr %q", o.stderr)
	}
}

func TestCommandOutputIsBoundedAndItsLossNoticed(t *testing.T) {
	flood := command(`(loop $again (call $print (i32.const 1024) (i32.const 1000)) (br $again))`)
	o := setup{wat: flood, edit: asCommand(func(d *hostdoc.Document) { d.Limits.OutputBytes = 2500 })}.run(t)
	o.wants(t, fault.ExitHostFailure, fault.ResourceLimit).says(t, "output limit").output(t, strings.Repeat("\x00", 2000))
	setup{wat: flood, stdout: brokenWriter{syscall.EPIPE}, edit: asCommand()}.run(t).wants(t, 141, fault.Canceled)
}

func TestDeadlineEndsACommandThatWaits(t *testing.T) {
	setup{wat: command(`(drop (call $readin (i32.const 1024) (i32.const 1)))`), stdin: blocked(t), edit: asCommand(brief)}.run(t).
		wants(t, fault.ExitDeadline, fault.Deadline)
	// A clock subscription an hour ahead.
	setup{wat: command(`
    (i32.store8 (i32.const 1032) (i32.const 0))
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))`), edit: asCommand(brief)}.run(t).
		wants(t, fault.ExitDeadline, fault.Deadline)
	setup{wat: command(`(loop $again (br $again))`), edit: asCommand(brief)}.run(t).wants(t, fault.ExitDeadline, fault.Deadline)
}

func TestWASIPointersOutOfRangeNeverReachTheHost(t *testing.T) {
	for _, code := range []string{
		`(call $args_get (i32.const -1) (i32.const -1))`,
		`(call $environ_sizes_get (i32.const 65536) (i32.const 0))`,
		`(call $fd_write (i32.const 1) (i32.const 65535) (i32.const 1) (i32.const 8))`,
		`(call $write (i32.const 1) (i32.const 65000) (i32.const -1))`,
		`(call $path_open (i32.const 3) (i32.const 0) (i32.const -8) (i32.const 100) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 8))`,
	} {
		o := setup{wat: command(`(call $proc_exit (i32.add (i32.const 100) (i32.ne (i32.const 0) ` + code + `)))`), edit: asCommand(func(d *hostdoc.Document) {
			d.Args = []string{"a"}
			d.Env = []string{"A=1"}
		})}.run(t)
		if o.exit.Status != 101 && o.exit.Reason != string(fault.Trap) {
			t.Errorf("%s: %+v", code, o.exit)
		}
		o.output(t, "")
	}
}

// WASI's rights and flags, and the errno of a path outside of the preopens.
const (
	rightsRead  = 0x2
	rightsWrite = 0x42 // and read
	openCreate  = 1
	openTrunc   = 8
	errnoPerm   = 63
	errnoNoEnt  = 44
	errnoBadf   = 8
)

// tree has a directory to grant and a secret beside it.
type tree struct{ granted, secret string }

func makeTree(t *testing.T) tree {
	t.Helper()
	root := t.TempDir()
	tr := tree{filepath.Join(root, "granted"), filepath.Join(root, "secret")}
	for _, dir := range []string{tr.granted, tr.secret, filepath.Join(tr.granted, "sub")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{filepath.Join(tr.granted, "file"): "content", filepath.Join(tr.secret, "key"): "secret"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"abs":     tr.secret,
		"abskey":  filepath.Join(tr.secret, "key"),
		"rel":     "../secret",
		"relkey":  "../secret/key",
		"sub/up":  "../..",
		"inside":  "file",
		"proc":    "/proc/self/root",
		"sub/abs": "/etc",
	} {
		if err := os.Symlink(to, filepath.Join(tr.granted, link)); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func (tr tree) preopen(readOnly bool) func(*hostdoc.Document) {
	return asCommand(func(d *hostdoc.Document) {
		d.Preopens = []hostdoc.Preopen{{Host: tr.granted, Guest: "/data", ReadOnly: readOnly}}
	})
}

// openPath opens a path under descriptor 3, following links, and exits with the errno.
func openPath(path string, oflags, rights int) string {
	return command(fmt.Sprintf(`(call $proc_exit (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const %d)
      (i32.const %d) (i64.const %d) (i64.const 0) (i32.const 0) (i32.const 8)))`, len(path), oflags, rights),
		fmt.Sprintf(`(data (i32.const 1024) %q)`, path))
}

func TestGuestsDoNotLeaveTheirDirectories(t *testing.T) {
	tr := makeTree(t)
	for _, readOnly := range []bool{true, false} {
		for _, path := range []string{
			"../secret/key", "..", "sub/../../secret/key", "sub/../..", "abs/key", "abskey", "rel/key", "relkey", "sub/up/secret/key",
			"/etc/passwd", tr.secret + "/key", "proc/etc/passwd", "sub/abs/passwd", "./../secret/key", "sub//../../secret/key",
			"abs/", "relkey/", "../granted/file", "file/../../secret/key",
		} {
			for _, mode := range [][2]int{{0, rightsRead}, {openCreate, rightsWrite}, {openTrunc, rightsWrite}} {
				o := setup{wat: openPath(path, mode[0], mode[1]), edit: tr.preopen(readOnly)}.run(t)
				if o.exit.Status == 0 || o.exit.Reason != "" {
					t.Errorf("%q (read-only %v, flags %v): errno %d, %q", path, readOnly, mode, o.exit.Status, o.exit.Reason)
				}
			}
		}
	}
	if data, err := os.ReadFile(filepath.Join(tr.secret, "key")); err != nil || string(data) != "secret" {
		t.Errorf("the secret is %q, %v", data, err)
	}
	for _, path := range []string{"file", "inside", "sub/../file", "./file"} {
		setup{wat: openPath(path, 0, rightsRead), edit: tr.preopen(true)}.run(t).wants(t, 0, "")
	}
	setup{wat: openPath("nothing", 0, rightsRead), edit: tr.preopen(true)}.run(t).wants(t, errnoNoEnt, "")
	// Nothing granted, nothing open.
	setup{wat: openPath("file", 0, rightsRead), edit: asCommand()}.run(t).wants(t, errnoBadf, "")
}

func TestReadOnlyDirectoriesStayAsTheyAre(t *testing.T) {
	paths := func(call string) string {
		return command(`(call $proc_exit (call $`+call+`))`, `(data (i32.const 1024) "filenewsub")`)
	}
	for name, text := range map[string]string{
		"create":   openPath("new", openCreate, rightsWrite),
		"write":    openPath("file", 0, rightsWrite),
		"unlink":   paths(`unlink (i32.const 3) (i32.const 1024) (i32.const 4)`),
		"mkdir":    paths(`mkdir (i32.const 3) (i32.const 1028) (i32.const 3)`),
		"rename":   paths(`rename (i32.const 3) (i32.const 1024) (i32.const 4) (i32.const 3) (i32.const 1028) (i32.const 3)`),
		"link":     paths(`link (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 4) (i32.const 3) (i32.const 1028) (i32.const 3)`),
		"symlink":  paths(`symlink (i32.const 1024) (i32.const 4) (i32.const 3) (i32.const 1028) (i32.const 3)`),
		"truncate": openPath("file", openTrunc, rightsWrite),
		"set size": command(`
    (drop (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 4) (i32.const 0) (i64.const 0x400002) (i64.const 0) (i32.const 0) (i32.const 8)))
    (call $proc_exit (call $set_size (i32.load (i32.const 8)) (i64.const 0)))`, `(data (i32.const 1024) "file")`),
	} {
		t.Run(name, func(t *testing.T) {
			tr := makeTree(t)
			o := setup{wat: text, edit: tr.preopen(true)}.run(t)
			if o.exit.Status == 0 || o.exit.Reason != "" {
				t.Errorf("errno %d, reason %q", o.exit.Status, o.exit.Reason)
			}
			if data, err := os.ReadFile(filepath.Join(tr.granted, "file")); err != nil || string(data) != "content" {
				t.Errorf("the file is %q, %v", data, err)
			}
			if _, err := os.Lstat(filepath.Join(tr.granted, "new")); err == nil {
				t.Error("something new is there")
			}
		})
	}
}

func TestReadWriteDirectoriesCanBeWritten(t *testing.T) {
	tr := makeTree(t)
	setup{wat: command(`
    (if (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 3) (i32.const 1) (i64.const 0x42) (i64.const 0) (i32.const 0) (i32.const 8))
      (then (call $proc_exit (i32.const 1))))
    (call $proc_exit (call $write (i32.load (i32.const 8)) (i32.const 1027) (i32.const 4)))`, `(data (i32.const 1024) "newdata")`), edit: tr.preopen(false)}.run(t).wants(t, 0, "")
	if data, err := os.ReadFile(filepath.Join(tr.granted, "new")); err != nil || string(data) != "data" {
		t.Errorf("got %q, %v", data, err)
	}
}

// Between two grants the weaker one holds for what it covers.
func TestAReadOnlyFileIsNotMovedIntoAWritableDirectory(t *testing.T) {
	for _, call := range []string{
		`rename (i32.const 3) (i32.const 1024) (i32.const 4) (i32.const 4) (i32.const 1028) (i32.const 3)`,
		`link (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 4) (i32.const 4) (i32.const 1028) (i32.const 3)`,
	} {
		tr := makeTree(t)
		writable := t.TempDir()
		o := setup{wat: command(`(call $proc_exit (call $`+call+`))`, `(data (i32.const 1024) "filenew")`), edit: asCommand(func(d *hostdoc.Document) {
			d.Preopens = []hostdoc.Preopen{{Host: tr.granted, Guest: "/ro", ReadOnly: true}, {Host: writable, Guest: "/rw"}}
		})}.run(t)
		if _, err := os.Lstat(filepath.Join(writable, "new")); err == nil || o.exit.Status == 0 {
			t.Errorf("%.6s: errno %d, %v", call, o.exit.Status, err)
		}
	}
}

func TestThereAreNoSockets(t *testing.T) {
	for _, fd := range []string{"0", "1", "3", "4"} {
		o := setup{wat: command(`(call $proc_exit (call $sock_accept (i32.const ` + fd + `) (i32.const 0) (i32.const 8)))`), edit: asCommand()}.run(t)
		if o.exit.Status == 0 {
			t.Errorf("descriptor %s is a socket", fd)
		}
	}
}
