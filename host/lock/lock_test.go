//go:build linux && amd64

package lock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// probe is the program that tries things from inside, static as the host is.
var probe string

func TestMain(m *testing.M) { os.Exit(withProbe(m)) }

func withProbe(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lock-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Another user runs it, too.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	probe = filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-tags", "netgo,osusergo", "-ldflags", "-linkmode external -extldflags -static", "-o", probe, "./probe")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot build the probe: %v: %s\n", err, out)
		return 1
	}
	return m.Run()
}

// needsLandlock skips where the kernel's Landlock is older than a claim needs.
func needsLandlock(t *testing.T, abi int) {
	t.Helper()
	have, _, e := unix.Syscall(444, 0, 0, 1)
	if e != 0 || int(have) < abi {
		t.Skipf("needs a kernel with Landlock version %d: this one has %d (%v)", abi, have, e)
	}
}

// attempt is a probe's run: l is what it locks itself into, nil for nothing.
type attempt struct {
	lock  *hostdoc.Lock
	tries []string
	// args replaces the words behind the document on the command line.
	args  []string
	user  uint32
	stdin io.Reader
}

type outcome struct {
	said           []string
	status         syscall.WaitStatus
	stdout, stderr string
}

func (a attempt) command(t *testing.T) *exec.Cmd {
	t.Helper()
	doc := &hostdoc.Document{
		Agent: hostdoc.Agent{ID: "test.agent", Version: "1.0.0"}, Instance: "i", LogFormat: "text",
		Input:  hostdoc.Input{Kind: hostdoc.InputStdin},
		Limits: hostdoc.Limits{MemoryBytes: 1, InputBytes: 1, OutputBytes: 1},
		Args:   append([]string{"probe"}, a.tries...),
	}
	if a.lock != nil {
		l := *a.lock
		doc.Lock = &l
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "host.json")
	if doc.Lock != nil {
		doc.Lock.Read = append(slices.Clone(doc.Lock.Read), path)
	}
	data, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o444); err != nil {
		t.Fatal(err)
	}
	words := hostdoc.Command(probe, path, doc.Lock)
	if a.args != nil {
		words = append(words[:4:4], a.args...)
	}
	// A probe that hangs says so sooner than the test's own limit.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env, cmd.Stdin = []string{}, a.stdin
	if a.user != 0 {
		// Those that the testing package made; what is above them is not the test's.
		for up := dir; up != filepath.Clean(os.TempDir()) && up != "/"; up = filepath.Dir(up) {
			if err := os.Chmod(up, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.user, Gid: a.user}}
	}
	return cmd
}

func (a attempt) run(t *testing.T) outcome {
	t.Helper()
	cmd := a.command(t)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	o := outcome{stdout: stdout.String(), stderr: stderr.String()}
	o.status, _ = cmd.ProcessState.Sys().(syscall.WaitStatus)
	for line := range strings.Lines(o.stdout) {
		o.said = append(o.said, strings.TrimSuffix(line, "\n"))
	}
	return o
}

// killed tells whether the filter ended the process.
func (o outcome) killed() bool { return o.status.Signaled() && o.status.Signal() == syscall.SIGSYS }

// one tries one thing and returns what became of it: "ok", an errno, "killed".
func one(t *testing.T, l *hostdoc.Lock, try string) string {
	t.Helper()
	o := attempt{lock: l, tries: []string{try}}.run(t)
	if o.killed() {
		return "killed"
	}
	if len(o.said) != 1 || !strings.HasPrefix(o.said[0], try+": ") || o.status.ExitStatus() != 0 {
		t.Fatalf("%s: said %q, status %v, stderr %q", try, o.said, o.status, o.stderr)
	}
	return strings.TrimPrefix(o.said[0], try+": ")
}

// What a guest would do that owns its host. Each attempt gets through without
// the lock, or at least to the kernel, so that it is the lock that stops it; it
// is stopped on the thread that installed the filter and on one that was there
// before.
func TestWhatAGuestThatOwnsItsHostCannotDo(t *testing.T) {
	free := []string{"ok"}
	for try, c := range map[string]struct {
		with string
		// without are the answers that show that the kernel was reached.
		without []string
	}{
		"exec":                   {"killed", nil}, // replaces the probe, which says nothing any more
		"execveat":               {"killed", nil},
		"fork":                   {"killed", free},
		"clone-process":          {"killed", free},
		"clone3":                 {"ENOSYS", []string{"EINVAL"}},
		"map-executable":         {"killed", free},
		"make-executable":        {"killed", free},
		"make-executable-pkey":   {"killed", []string{"ok", "ENOSYS", "EINVAL"}},
		"memfd":                  {"killed", free},
		"personality":            {"killed", free},
		"trace":                  {"killed", []string{"ESRCH"}},
		"read-memory":            {"killed", free},
		"write-memory":           {"killed", free},
		"kill-parent":            {"killed", free},
		"tgkill-parent":          {"killed", free},
		"pidfd":                  {"killed", free},
		"unshare-user":           {"killed", []string{"ok", "EPERM"}},
		"setns":                  {"killed", []string{"ok", "EPERM", "EINVAL"}},
		"mount":                  {"killed", []string{"ENOENT", "EPERM"}},
		"chroot":                 {"killed", []string{"ENOENT", "EPERM"}},
		"io_uring":               {"killed", []string{"EINVAL", "EPERM", "EFAULT", "ENOSYS"}},
		"bpf":                    {"killed", []string{"EINVAL", "EPERM", "ENOSYS"}},
		"userfault":              {"killed", []string{"ok", "EPERM", "ENOSYS"}},
		"perf":                   {"killed", []string{"EFAULT", "EACCES", "EPERM", "ENOENT", "ENOSYS"}},
		"keyring":                {"killed", []string{"ok", "ENOKEY", "EINVAL", "ENOSYS"}},
		"set-user":               {"killed", free},
		"x32":                    {"killed", []string{"ok", "ENOSYS"}},
		"old-gate":               {"killed", []string{"ok", "ENOSYS"}},
		"dumpable":               {"EPERM", free},
		"second-filter":          {"ENOSYS", []string{"EFAULT", "EINVAL"}},
		"raise-limit":            {"EPERM", free},
		"async-signals":          {"EPERM", free},
		"type-into-tty":          {"EPERM", []string{"ENOTTY", "EIO"}},
		"tcp":                    {"EPERM", free},
		"tcp6":                   {"EPERM", []string{"ok", "EAFNOSUPPORT"}},
		"udp":                    {"EPERM", free},
		"unix":                   {"EPERM", free},
		"netlink":                {"EPERM", free},
		"packet":                 {"EPERM", []string{"ok", "EPERM", "EAFNOSUPPORT"}},
		"raw":                    {"EPERM", []string{"ok", "EPERM", "EPROTONOSUPPORT"}},
		"vsock":                  {"EPERM", []string{"ok", "EAFNOSUPPORT", "ENODEV"}},
		"alg":                    {"EPERM", []string{"ok", "EAFNOSUPPORT"}},
		"socketpair":             {"EPERM", free},
		"chmod:" + os.TempDir():  {"EPERM", []string{"ok", "EPERM"}},
		"xattr:/nonexistent":     {"EPERM", []string{"ENOENT"}},
		"fifo:/nonexistent/x":    {"killed", []string{"ENOENT"}},
		"read:/etc/passwd":       {"EACCES", free},
		"list:/":                 {"EACCES", free},
		"own-memory":             {"EACCES", free},
		"write:/proc/self/comm":  {"EACCES", free},
		"read:/proc/self/status": {"EACCES", free},
	} {
		if strings.HasPrefix(try, "chmod:") {
			try = "chmod:" + t.TempDir() // not everybody's directory
		}
		t.Run(try, func(t *testing.T) {
			t.Parallel()
			if c.with == "EACCES" {
				needsLandlock(t, 1)
			}
			for _, thread := range []string{"", "old-thread:"} {
				if got := one(t, &hostdoc.Lock{}, thread+try); got != c.with {
					t.Errorf("%swith the lock: %s, want %s", thread, got, c.with)
				}
			}
			if c.without == nil {
				return
			}
			if got := one(t, nil, try); !slices.Contains(c.without, got) {
				t.Errorf("without the lock: %s, want one of %q: the attempt proves nothing", got, c.without)
			}
		})
	}
}

// A program that replaces the probe is the one that says nothing.
func TestWithoutALockAProgramCanBeStarted(t *testing.T) {
	for _, try := range []string{"exec", "execveat"} {
		o := attempt{tries: []string{try, "nothing"}}.run(t)
		if o.stdout != "" || o.status.ExitStatus() != 0 || o.status.Signaled() {
			t.Errorf("%s: said %q, status %v, stderr %q", try, o.said, o.status, o.stderr)
		}
	}
}

func TestWhatTheHostNeedsIsLeftToIt(t *testing.T) {
	tries := []string{
		"nothing", "threads", "old-thread:threads", "thread-name", "signal-itself", "read-limit", "processor-clock", "write:/dev/null",
	}
	o := attempt{lock: &hostdoc.Lock{}, tries: tries}.run(t)
	want := make([]string, len(tries))
	for i, try := range tries {
		want[i] = try + ": ok"
	}
	if !slices.Equal(o.said, want) || o.status.ExitStatus() != 0 {
		t.Errorf("said %q, status %v, stderr %q", o.said, o.status, o.stderr)
	}
}

// Every system call of the table, by its number and in the kernel; and every
// number that is not in it.
func TestTheKernelAnswersEveryCallAsTheTableSays(t *testing.T) {
	const beyond = 500 // the last number was 470 when this was written
	verdicts := map[uint32]Verdict{}
	conditional := map[uint32]bool{}
	for _, c := range Calls {
		for _, n := range c.Numbers {
			if _, twice := verdicts[n]; twice {
				t.Errorf("call %d is in the table twice", n)
			}
			verdicts[n] = c.Verdict
			if c.When != "" {
				verdicts[n] = c.Else
			}
			conditional[n] = len(c.If) > 0 && c.When == ""
			if n >= beyond {
				t.Errorf("call %d is not tried", n)
			}
		}
	}
	var tries, want []string
	for n := range uint32(beyond) {
		try := fmt.Sprintf("number:%d", n)
		switch v, known := verdicts[n]; {
		case conditional[n] || v == Allow:
		case n == 335 || n == 336:
			// The kernel's own, which its probes of functions make: it lets them past
			// every filter and answers anybody else with SIGILL.
		case v == Kill:
			t.Run(try, func(t *testing.T) {
				t.Parallel()
				if got := one(t, &hostdoc.Lock{}, try); got != "killed" {
					t.Errorf("%s", got)
				}
			})
		case !known || v == Unknown:
			tries, want = append(tries, try), append(want, try+": ENOSYS")
		case v == Refuse:
			tries, want = append(tries, try), append(want, try+": EPERM")
		}
	}
	if len(tries) < 100 {
		t.Fatalf("only %d numbers to try", len(tries))
	}
	o := attempt{lock: &hostdoc.Lock{}, tries: tries}.run(t)
	if len(o.said) != len(want) {
		t.Fatalf("%d answers to %d calls: status %v, stderr %q", len(o.said), len(want), o.status, o.stderr)
	}
	for i := range want {
		if o.said[i] != want[i] {
			t.Errorf("%s, want %s", o.said[i], want[i])
		}
	}
	// The control: such calls reach the kernel otherwise.
	for _, n := range []int{unix.SYS_GETPGID, unix.SYS_MLOCK, unix.SYS_CHMOD, unix.SYS_SOCKETPAIR} {
		if got := one(t, nil, "number:"+strconv.Itoa(n)); got == "ENOSYS" || got == "EPERM" {
			t.Errorf("call %d without a lock: %s", n, got)
		}
	}
}

// trees are a directory to read, one to write and one that is neither, each
// with a file.
func trees(t *testing.T) (read, write, neither string) {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"read", "write", "neither"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"file", "second", "third"} {
			if err := os.WriteFile(filepath.Join(root, dir, name), []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(filepath.Join(root, "neither", "file"), filepath.Join(root, dir, "out")); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(root, "read"), filepath.Join(root, "write"), filepath.Join(root, "neither")
}

func TestPathsAreHeldToTheLock(t *testing.T) {
	needsLandlock(t, 3)
	read, write, neither := trees(t)
	l := &hostdoc.Lock{Read: []string{read}, Write: []string{write}}
	for _, c := range []struct {
		try, with string
	}{
		{"list:" + read, "ok"},
		{"read:" + read + "/file", "ok"},
		{"write:" + read + "/file", "EACCES"},
		{"truncate:" + read + "/file", "EACCES"},
		{"create:" + read + "/new", "EACCES"},
		{"mkdir:" + read + "/new", "EACCES"},
		{"remove:" + read + "/second", "EACCES"},
		{"symlink:" + read + "/new", "EACCES"},
		{"link:" + read + "/file", "EACCES"},
		{"rename:" + read + "/file", "EACCES"},
		{"read:" + read + "/out", "EACCES"},
		{"read:" + read + "/../neither/file", "EACCES"},
		// What may be read does not become writable in another place.
		{"link-into:" + read + "/file," + write + "/linked", "EXDEV"},
		{"rename-into:" + read + "/file," + write + "/moved", "EACCES"},
		{"rename-into:" + write + "/third," + read + "/moved", "EACCES"},

		{"list:" + write, "ok"},
		{"read:" + write + "/file", "ok"},
		{"write:" + write + "/file", "ok"},
		{"truncate:" + write + "/file", "ok"},
		{"create:" + write + "/new", "ok"},
		{"mkdir:" + write + "/newdir", "ok"},
		{"symlink:" + write + "/newlink", "ok"},
		{"link:" + write + "/file", "ok"},
		{"rename:" + write + "/second", "ok"},
		{"remove:" + write + "/third", "ok"},
		{"read:" + write + "/out", "EACCES"},
		{"read:" + write + "/newlink", "EACCES"},

		{"list:" + neither, "EACCES"},
		{"read:" + neither + "/file", "EACCES"},
		{"truncate:" + neither + "/file", "EACCES"},
		{"create:" + neither + "/new", "EACCES"},
		{"remove:" + neither + "/file", "EACCES"},
	} {
		if got := one(t, l, c.try); got != c.with {
			t.Errorf("%s: %s, want %s", c.try, got, c.with)
		}
	}
	for _, dir := range []string{read, neither} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 4 {
			t.Errorf("%s has %v, %v", dir, entries, err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != "content" {
			t.Errorf("%s/file is %q, %v", dir, data, err)
		}
	}
	// A grant of one file is for that file.
	l = &hostdoc.Lock{Read: []string{neither + "/file"}, Write: []string{neither + "/second"}}
	for try, want := range map[string]string{
		"read:" + neither + "/file": "ok", "write:" + neither + "/file": "EACCES", "write:" + neither + "/second": "ok",
		"truncate:" + neither + "/second": "ok", "read:" + neither + "/third": "EACCES", "list:" + neither: "EACCES",
	} {
		if got := one(t, l, try); got != want {
			t.Errorf("%s: %s, want %s", try, got, want)
		}
	}
}

func TestALockFollowsNoLink(t *testing.T) {
	needsLandlock(t, 1)
	read, _, neither := trees(t)
	link := filepath.Join(read, "way")
	if err := os.Symlink(neither, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, filepath.Join(link, "file"), filepath.Join(read, "gone"), "/proc/self/root", "/proc/self/fd/0"} {
		o := attempt{lock: &hostdoc.Lock{Read: []string{path}}, tries: []string{"nothing"}}.run(t)
		if o.status.ExitStatus() != fault.ExitHostFailure || o.stdout != "" || !strings.Contains(o.stderr, path) {
			t.Errorf("%s: said %q, status %v, stderr %q", path, o.said, o.status, o.stderr)
		}
	}
}

func TestTheNetworkIsLeftOnlyByTheLock(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connect := "connect:" + listener.Addr().String()
	for name, c := range map[string]struct {
		lock *hostdoc.Lock
		want map[string]string
	}{
		"none":   {&hostdoc.Lock{}, map[string]string{connect: "EPERM", "bind": "EPERM", "tcp": "EPERM", "udp": "EPERM"}},
		"listen": {&hostdoc.Lock{Listen: true}, map[string]string{connect: "EPERM", "bind": "EPERM", "tcp": "EPERM"}},
		"dial": {&hostdoc.Lock{Dial: true}, map[string]string{
			connect: "ok", "bind": "EPERM", "tcp": "ok", "udp": "ok",
			"unix": "EPERM", "netlink": "EPERM", "packet": "EPERM", "raw": "EPERM", "vsock": "EPERM", "alg": "EPERM",
		}},
		"control": {nil, map[string]string{connect: "ok", "bind": "ok"}},
	} {
		for try, want := range c.want {
			if got := one(t, c.lock, try); got != want {
				t.Errorf("%s: %s: %s, want %s", name, try, got, want)
			}
		}
	}
}

func TestAPluginIsStartedInTimeAndEndedLater(t *testing.T) {
	needsLandlock(t, 1)
	busybox := "/bin/busybox"
	o := attempt{
		lock:  &hostdoc.Lock{Execute: []string{probe}},
		tries: []string{"before:start:" + probe, "before:start:" + busybox, "before:start-waiting:" + probe, "read:/etc/passwd", "end-waiting"},
	}.run(t)
	want := []string{"before:start:" + probe + ": ok", "before:start:" + busybox + ": EACCES", "before:start-waiting:" + probe + ": ok", "read:/etc/passwd: EACCES", "end-waiting: ok"}
	if !slices.Equal(o.said, want) {
		t.Errorf("said %q, status %v, stderr %q", o.said, o.status, o.stderr)
	}
	if got := one(t, &hostdoc.Lock{Execute: []string{probe}}, "exec"); got != "killed" {
		t.Errorf("a program that may be started before: %s afterwards", got)
	}
	// It is the plugin alone that may be ended, and the host still starts nothing.
	needsLandlock(t, 6)
	if got := one(t, &hostdoc.Lock{Execute: []string{probe}}, "end-parent"); got != "EPERM" {
		t.Errorf("the parent process: %s", got)
	}
	o = attempt{lock: &hostdoc.Lock{}, tries: []string{"before:start:" + probe}}.run(t)
	if len(o.said) != 1 || !strings.HasSuffix(o.said[0], ": EACCES") {
		t.Errorf("without a plugin: %q, %v", o.said, o.status)
	}
}

// A program with libraries needs their directories, too.
func TestAPluginOfSeveralFilesIsStarted(t *testing.T) {
	needsLandlock(t, 1)
	var dirs []string
	for _, dir := range []string{"/bin", "/usr", "/lib", "/lib64"} {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil && !slices.Contains(dirs, resolved) {
			dirs = append(dirs, resolved)
		}
	}
	for _, c := range []struct {
		lock *hostdoc.Lock
		want string
	}{{&hostdoc.Lock{Execute: dirs}, "ok"}, {&hostdoc.Lock{Read: dirs}, "EACCES"}} {
		if got := one(t, c.lock, "before:start:/bin/true"); got != c.want {
			t.Errorf("%+v: %s, want %s", c.lock, got, c.want)
		}
	}
}

// What the kernel itself says of the process, thread by thread.
func TestEveryThreadIsLocked(t *testing.T) {
	hold, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a := attempt{lock: &hostdoc.Lock{}, tries: []string{"before:threads", "threads", "wait"}, stdin: hold}
	if os.Geteuid() == 0 {
		a.user = 65534
	}
	cmd := a.command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(release.Close(), hold.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	said := make([]byte, len("before:threads: ok\nthreads: ok\n"))
	if _, err := io.ReadFull(out, said); err != nil {
		t.Fatalf("said %q: %v", said, err)
	}
	proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
	tasks, err := filepath.Glob(proc + "/task/*/status")
	if err != nil || len(tasks) < 3 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
			if !strings.Contains(string(data), line) {
				t.Errorf("%s lacks %q", task, line)
			}
		}
	}
	// Who may not be read belongs to root, whoever runs it.
	info, err := os.Stat(proc + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("the process can be read by the user %d", owner)
	}
}

func TestACommandLineThatSaysSomethingElseIsRefused(t *testing.T) {
	for name, a := range map[string]attempt{
		"the document has a lock, the command line none": {lock: &hostdoc.Lock{}, args: []string{}},
		"the command line has a lock, the document none": {args: []string{"lock"}},
		"a path more":       {lock: &hostdoc.Lock{Read: []string{}}, args: []string{"lock", "read=/"}},
		"a right more":      {lock: &hostdoc.Lock{}, args: []string{"lock", "dial"}},
		"an unknown word":   {lock: &hostdoc.Lock{}, args: []string{"lock", "more"}},
		"another beginning": {lock: &hostdoc.Lock{}, args: []string{"Lock"}},
	} {
		a.tries = []string{"nothing"}
		o := a.run(t)
		if o.status.ExitStatus() != fault.ExitHostFailure || o.stdout != "" {
			t.Errorf("%s: said %q, status %v, stderr %q", name, o.said, o.status, o.stderr)
		}
	}
}

func TestWithoutALockInTheCommandLineThereIsNoSecondHalf(t *testing.T) {
	if missing, err := Early(nil, nil); err != nil || len(missing) > 0 {
		t.Errorf("nothing asked for: %q, %v", missing, err)
	}
	if err := Enter(nil); err != nil {
		t.Errorf("nothing asked for: %v", err)
	}
	if err := Enter(&hostdoc.Lock{}); fault.ReasonOf(err) != fault.Internal {
		t.Errorf("half a lock: %v", err)
	}
}

func TestAnOlderKernelIsSpokenOf(t *testing.T) {
	for _, c := range []struct {
		abi   int
		why   syscall.Errno
		lines int
		says  string
	}{
		{0, unix.ENOSYS, 1, "no Landlock"},
		{0, unix.EOPNOTSUPP, 1, "switched off"},
		{0, unix.EPERM, 1, "seccomp profile"},
		{1, 0, 5, "version 1: links and renames"},
		{2, 0, 4, "truncated"},
		{3, 0, 3, "TCP"},
		{4, 0, 2, "devices"},
		{5, 0, 1, "signals"},
		{6, 0, 0, ""},
		{7, 0, 0, ""},
		{99, 0, 0, ""},
	} {
		lines := cannot(c.abi, c.why)
		if len(lines) != c.lines || !strings.Contains(strings.Join(lines, "\n"), c.says) {
			t.Errorf("version %d: %q", c.abi, lines)
		}
	}
}
