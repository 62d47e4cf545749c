package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/bytecodealliance/wasmtime-go/v39"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// role makes the test binary the command itself, or a probe.
const role = "MENTAT_HOST_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "main":
		main()
		os.Exit(0)
	case "without openat2":
		withoutOpenat2()
		main()
		os.Exit(0)
	case "confined":
		probe()
	}
	os.Exit(m.Run())
}

// withoutOpenat2 makes the kernel one that does not have the call.
func withoutOpenat2() {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT2, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); e != 0 {
		panic(e)
	}
}

// probe confines itself and tells what is left.
func probe() {
	if err := confine(); err != nil {
		fmt.Println("confine:", err)
		os.Exit(1)
	}
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	fmt.Println("no_new_privs", nnp, err)
	fmt.Println("uid", os.Getuid(), os.Geteuid(), "gid", os.Getgid())
	groups, err := os.Getgroups()
	fmt.Println("groups", groups, err)
	_, err = os.ReadFile("/etc/passwd")
	fmt.Println("reads passwd", err == nil)
	list, err := os.ReadDir("/")
	fmt.Println("sees", len(list), err != nil)
	fmt.Println("create", os.WriteFile("/x", nil, 0o600) == nil)
	for name, r := range map[string]int{"core": unix.RLIMIT_CORE, "as": unix.RLIMIT_AS, "files": unix.RLIMIT_NOFILE} {
		var l unix.Rlimit
		err := unix.Getrlimit(r, &l)
		fmt.Println("limit", name, l.Cur, l.Max, err)
	}
	os.Exit(0)
}

func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = []string{role + "=main"}
	return cmd
}

func wat(t testing.TB, text string) []byte {
	t.Helper()
	wasm, err := wasmtime.Wat2Wasm(text)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// compileIn runs the compiler child the way the cache does.
func compileIn(t testing.TB, module []byte) (compiled []byte, stderr string, code int) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var errs bytes.Buffer
	cmd := command(t, "compile")
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = bytes.NewReader(module), &errs, []*os.File{out}
	code = exitCode(t, cmd.Run())
	compiled, err = os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return compiled, errs.String(), code
}

func exitCode(t testing.TB, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	t.Fatal(err)
	return 0
}

// document writes a document for a text module and returns its path.
func document(t testing.TB, text string, edit func(*hostdoc.Document)) string {
	t.Helper()
	dir := t.TempDir()
	compiled, stderr, code := compileIn(t, wat(t, text))
	if code != 0 {
		t.Fatalf("%d: %s", code, stderr)
	}
	doc := &hostdoc.Document{
		Agent:     hostdoc.Agent{ID: "test.agent", Version: "1.0.0"},
		Instance:  "i1",
		Entry:     hostdoc.EntryProcess,
		Module:    filepath.Join(dir, "module.cwasm"),
		Input:     hostdoc.Input{Kind: hostdoc.InputStdin},
		Limits:    hostdoc.Limits{MemoryBytes: 8 * limits.MiB, InputBytes: limits.MiB, OutputBytes: limits.MiB},
		LogFormat: "text",
		ExitFile:  filepath.Join(dir, "exit.json"),
	}
	if edit != nil {
		edit(doc)
	}
	if err := os.WriteFile(doc.Module, compiled, 0o400); err != nil {
		t.Fatal(err)
	}
	data, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "host.json")
	if err := os.WriteFile(path, data, 0o400); err != nil {
		t.Fatal(err)
	}
	return path
}

func reported(t testing.TB, document string) hostdoc.Exit {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(filepath.Dir(document), "exit.json"))
	if err != nil {
		t.Fatal(err)
	}
	var exit hostdoc.Exit
	if err := json.Unmarshal(data, &exit); err != nil {
		t.Fatal(err)
	}
	return exit
}

const echo = `(module
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (local $n i32)
    (loop $again
      (local.set $n (call $read (i32.const 0) (i32.const 0) (i32.const 1024)))
      (if (i32.gt_s (local.get $n) (i32.const 0)) (then
        (call $write (i32.const 0) (local.get $n))
        (br $again))))
    (i32.const 5)))`

const spin = `(module
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32)
    (call $write (i32.const 0) (i32.const 1))
    (loop $again (br $again))
    (i32.const 0)))`

func TestRunPassesStreamsAndStatus(t *testing.T) {
	doc := document(t, echo, nil)
	cmd := command(t, "run", "--document", doc)
	cmd.Stdin = strings.NewReader("to and fro")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if code := exitCode(t, err); code != 5 || string(out) != "to and fro" || errs.Len() > 0 {
		t.Errorf("status %d, output %q, stderr %q", code, out, errs.String())
	}
	if exit := reported(t, doc); exit.Status != 5 || exit.Reason != "" {
		t.Errorf("reported %+v", exit)
	}
}

// Both ways to wait for input: the ABI's and WASI's, on a real pipe.
func TestDeadlineEndsARunThatWaitsOnItsStdin(t *testing.T) {
	for name, text := range map[string]string{
		"abi": echo,
		"wasi": `(module (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\10\00\00\00\10\00\00\00")
  (func (export "_start") (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))`,
	} {
		t.Run(name, func(t *testing.T) {
			doc := document(t, text, func(d *hostdoc.Document) {
				d.Limits.DeadlineMillis = 30
				if name == "wasi" {
					d.Entry = hostdoc.EntryCommand
				}
			})
			cmd := command(t, "run", "--document", doc)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			cmd.Stdin = r
			if code := exitCode(t, cmd.Run()); code != fault.ExitDeadline {
				t.Errorf("status %d", code)
			}
			if exit := reported(t, doc); exit.Reason != string(fault.Deadline) {
				t.Errorf("reported %+v", exit)
			}
		})
	}
}

func TestSignalsEndARun(t *testing.T) {
	for _, c := range []struct {
		signal syscall.Signal
		twice  bool
		status int
	}{{syscall.SIGTERM, false, 143}, {syscall.SIGINT, false, 130}, {syscall.SIGTERM, true, 143}} {
		t.Run(fmt.Sprint(c.signal, " twice ", c.twice), func(t *testing.T) {
			t.Parallel()
			doc := document(t, spin, nil)
			cmd := command(t, "run", "--document", doc)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// The guest says when it runs.
			if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			for c.twice && cmd.Process.Signal(c.signal) == nil && time.Since(began) < limits.DrainGrace/2 {
				time.Sleep(5 * time.Millisecond)
				if _, err := os.Stat(filepath.Join(filepath.Dir(doc), "exit.json")); err == nil {
					break
				}
			}
			if code := exitCode(t, cmd.Wait()); code != c.status {
				t.Errorf("status %d", code)
			}
			if drained := time.Since(began) >= limits.DrainGrace; drained == c.twice {
				t.Errorf("ended after %v", time.Since(began))
			}
			if exit := reported(t, doc); exit.Status != c.status || exit.Reason != string(fault.Canceled) {
				t.Errorf("reported %+v", exit)
			}
		})
	}
}

func TestARunWhoseReaderLeftEnds(t *testing.T) {
	doc := document(t, `(module (import "mentat" "write_output" (func $write (param i32 i32))) (memory (export "memory") 1)
	  (func (export "process") (result i32) (loop $again (call $write (i32.const 0) (i32.const 1000)) (br $again)) (i32.const 0)))`,
		func(d *hostdoc.Document) { d.Limits.OutputBytes = limits.OutputBytes })
	cmd := command(t, "run", "--document", doc)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 141 {
		t.Errorf("status %d", code)
	}
}

func TestRunsThatCannotBegin(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"run", "--document", "/nonexistent"}, {"run", "--document", bad}, {"run", "--nonsense"}, {"run", "argument"}} {
		var errs bytes.Buffer
		cmd := command(t, args...)
		cmd.Stderr = &errs
		if code := exitCode(t, cmd.Run()); code != fault.ExitHostFailure || errs.Len() == 0 {
			t.Errorf("%v: status %d, %q", args, code, errs.String())
		}
	}
}

// Without the call that keeps paths beneath a directory no guest gets one.
func TestAHostThatCannotHoldPathsGivesNoDirectory(t *testing.T) {
	const guest = `(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (call $write (i32.const 0) (i32.const 1)) (i32.const 0)))`
	for granted, want := range map[bool]int{false: 0, true: fault.ExitHostFailure} {
		doc := document(t, guest, func(d *hostdoc.Document) {
			if granted {
				d.Preopens = []hostdoc.Preopen{{Host: t.TempDir(), Guest: "/data"}}
			}
		})
		cmd := command(t, "run", "--document", doc)
		cmd.Env = []string{role + "=without openat2"}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if code := exitCode(t, err); code != want || (len(out) > 0) == granted || strings.Contains(errs.String(), "openat2") != granted {
			t.Errorf("with a directory %v: status %d, want %d; %q, %q", granted, code, want, out, errs.String())
		}
	}
}

// locked is a document with the narrowest lock, and the words of the command
// line that go with it.
func locked(t *testing.T, text string) (doc string, words []string) {
	t.Helper()
	doc = document(t, text, nil)
	d, err := hostdoc.Read(doc)
	if err != nil {
		t.Fatal(err)
	}
	d.Lock = d.LeastLock(doc)
	data, err := d.Marshal()
	if err == nil {
		err = errors.Join(os.Remove(doc), os.WriteFile(doc, data, 0o400))
	}
	if err != nil {
		t.Fatal(err)
	}
	return doc, hostdoc.Command("", doc, d.Lock)[1:]
}

func TestALockedHostRunsItsAgent(t *testing.T) {
	doc, words := locked(t, echo)
	cmd := command(t, words...)
	cmd.Stdin = strings.NewReader("to and fro")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if code := exitCode(t, err); code != 5 || string(out) != "to and fro" || errs.Len() > 0 {
		t.Errorf("status %d, output %q, stderr %q", code, out, errs.String())
	}
	if exit := reported(t, doc); exit.Status != 5 {
		t.Errorf("reported %+v", exit)
	}
}

// Nothing runs that is not held as the document says.
func TestALockThatTheCommandLineDoesNotSayIsRefused(t *testing.T) {
	for name, change := range map[string]func([]string) []string{
		"none":        func(w []string) []string { return w[:3] },
		"a right":     func(w []string) []string { return append(w, "dial") },
		"a path":      func(w []string) []string { return append(w, "write=/") },
		"a path less": func(w []string) []string { return w[:len(w)-1] },
	} {
		_, words := locked(t, echo)
		cmd := command(t, change(words)...)
		cmd.Stdin = strings.NewReader("x")
		out, err := cmd.Output()
		if code := exitCode(t, err); code != fault.ExitHostFailure || len(out) > 0 {
			t.Errorf("%s: status %d, %q", name, code, out)
		}
	}
}

func TestTheLeanHostRefusesWhatNeedsANetwork(t *testing.T) {
	for name, edit := range map[string]func(*hostdoc.Document){
		"network": func(d *hostdoc.Document) { d.Network = &hostdoc.Network{Mode: hostdoc.NetworkFull} },
		"llm":     func(d *hostdoc.Document) { d.LLM = &hostdoc.LLM{} },
		"S3":      func(d *hostdoc.Document) { d.Media = &hostdoc.Media{S3: &hostdoc.MediaS3{}} },
		"serving": func(d *hostdoc.Document) {
			d.Limits.DeadlineMillis = 1000
			d.Serve = &hostdoc.Serve{Listen: ":0", Concurrent: 1, BufferBytes: 1 << 20, DrainMillis: 1}
		},
	} {
		doc := document(t, echo, edit)
		var errs bytes.Buffer
		cmd := command(t, "run", "--document", doc)
		cmd.Stdin, cmd.Stderr = strings.NewReader("x"), &errs
		out, err := cmd.Output()
		if code := exitCode(t, err); code != fault.RowOf(fault.Unsupported).Exit || len(out) > 0 || !strings.Contains(errs.String(), name) {
			t.Errorf("%s: status %d, %q, %q", name, code, out, errs.String())
		}
		if exit := reported(t, doc); exit.Reason != string(fault.Unsupported) {
			t.Errorf("%s: reported %+v", name, exit)
		}
	}
}

func TestCompileTellsBadModulesApart(t *testing.T) {
	good, _, code := compileIn(t, wat(t, echo))
	if code != 0 || len(good) == 0 {
		t.Fatalf("code %d, %d bytes", code, len(good))
	}
	for name, module := range map[string][]byte{"empty": nil, "text": []byte("hello"), "native": good, "no entry": wat(t, "(module)")} {
		compiled, stderr, code := compileIn(t, module)
		if code != fault.RowOf(fault.ModuleInvalid).CLI || len(compiled) > 0 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: code %d, %d bytes, %q", name, code, len(compiled), stderr)
		}
	}
	cmd := command(t, "compile") // descriptor 3 is not open
	cmd.Stdin = bytes.NewReader(wat(t, echo))
	if code := exitCode(t, cmd.Run()); code != fault.RowOf(fault.Usage).CLI {
		t.Errorf("without a descriptor: code %d", code)
	}
}

func TestCompileIsTheSameEveryTime(t *testing.T) {
	a, _, _ := compileIn(t, wat(t, echo))
	b, _, _ := compileIn(t, wat(t, echo))
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Errorf("%d and %d bytes", len(a), len(b))
	}
}

func TestTheCompilerIsConfined(t *testing.T) {
	cmd := command(t)
	cmd.Env = []string{role + "=confined"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := []string{"no_new_privs 1 <nil>", "limit core 0 0 <nil>", "limit as 8589934592 8589934592 <nil>", "limit files 32 32 <nil>"}
	if os.Geteuid() == 0 {
		want = append(want, "uid 65534 65534 gid 65534", "groups [] <nil>", "reads passwd false", "sees 0 true", "create false")
	} else {
		t.Log("not root: what only root can give up was not tested")
	}
	for _, line := range want {
		if !strings.Contains(string(out), line+"\n") {
			t.Errorf("lacks %q:\n%s", line, out)
		}
	}
}

func TestOtherCommands(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"version"}, 0, "mentat-host dev wasmtime-39."},
		{nil, fault.RowOf(fault.Usage).CLI, "which of"},
		{[]string{"exec"}, fault.RowOf(fault.Usage).CLI, `unknown command "exec"`},
		{[]string{"compile", "x"}, fault.RowOf(fault.Usage).CLI, "takes no arguments"},
	} {
		out, err := command(t, c.args...).CombinedOutput()
		if code := exitCode(t, err); code != c.code || !strings.Contains(string(out), c.says) || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("%v: code %d, %q", c.args, code, out)
		}
	}
}
