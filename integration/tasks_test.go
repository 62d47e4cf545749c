package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/integration/node"
)

func TestAnAgentReadsStdinAndWritesStdout(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("echo", guestEcho, "")
	doc := `{"text":"` + strings.Repeat("lorem ipsum ", 1000) + `"}`
	got := w.run(doc, ref, w.id())
	if got.code != 0 || got.stdout != doc {
		t.Errorf("status %d, %d bytes out of %d, stderr %q", got.code, len(got.stdout), len(doc), got.stderr)
	}
}

func TestTheExitStatusSaysHowARunEnded(t *testing.T) {
	w := newWorld(t, node.Config{})
	for _, tc := range []struct {
		name, wat, extra string
		code             int
		stderr           []string
	}{
		{"success", guestMarker(1), "", 0, nil},
		{"own-status", guestCommand, "", 7, []string{marker}},
		{"trap", guestTrap, "", 120, []string{"divide_by_nothing", "trap"}},
		{"deadline", guestSpin, "wasm:\n  deadline: 1s\n", 121, []string{"deadline"}},
		{"memory", guestHog, "wasm:\n  memory:\n    maximum: 4\n", 122, []string{"memory"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ref := w.agent(tc.name, tc.wat, tc.extra)
			got := w.run("", ref, w.id())
			if got.code != tc.code {
				t.Errorf("status %d, want %d; stderr %q", got.code, tc.code, got.stderr)
			}
			for _, s := range tc.stderr {
				if !strings.Contains(got.stderr, s) {
					t.Errorf("stderr %q does not say %q", got.stderr, s)
				}
			}
		})
	}
}

func TestAnOrdinaryContainerRunsThroughTheSameRuntime(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.container("busybox")
	for _, tc := range []struct {
		stdin  string
		args   []string
		stdout string
		code   int
	}{
		{"", []string{"/bin/echo", "hello"}, "hello\n", 0},
		// ctr closes a container's input only if its own ends after the task
		// was created, so the container reads one line.
		{"in\n", []string{"/bin/head", "-n", "1"}, "in\n", 0},
		{"", []string{"/bin/sh", "-c", "exit 42"}, "", 42},
	} {
		got := w.run(tc.stdin, append([]string{ref, w.id()}, tc.args...)...)
		if got.code != tc.code || got.stdout != tc.stdout {
			t.Errorf("%q: status %d, stdout %q, stderr %q", tc.args, got.code, got.stdout, got.stderr)
		}
	}
}

func TestWithoutStdinTheArgumentsAreTheInput(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("echo", guestEcho, "")
	out := filepath.Join(t.TempDir(), "out")
	id := w.id()
	w.ctr("run", "--detach", "--runtime", mentatRuntime, "--null-io=false", "--log-uri", "file://"+out, ref, id, "one", "two")
	t.Cleanup(func() { (&task{world: w, id: id}).remove() })
	eventually(t, "the arguments as output", func() bool {
		data, err := os.ReadFile(out)
		return err == nil && string(data) == "one two"
	})
}

func TestExecIntoAnAgentIsRefusedWithASentenceThatHelps(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk := w.start(w.agent("wait", guestSpin, ""))
	_, err := w.Ctr(t.Context(), "tasks", "exec", "--exec-id", "e1", tk.id, "/bin/sh")
	if err == nil || !strings.Contains(err.Error(), "a WASM agent has no shell") {
		t.Errorf("got %v", err)
	}
	if s := tk.state(); s != "RUNNING" {
		t.Errorf("the agent is %s after a refused exec", s)
	}
}

func TestExecIntoAContainerWorks(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk := w.start(w.container("busybox", "/bin/sleep", "600"))
	if out := w.ctr("tasks", "exec", "--exec-id", "e1", tk.id, "/bin/echo", "inside"); out != "inside\n" {
		t.Errorf("got %q", out)
	}
}

func TestSignalsReachAnAgent(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("spin", guestSpin, "")
	for signal, status := range map[string]uint32{"SIGTERM": 143, "SIGKILL": 137} {
		tk := w.start(ref)
		eventually(t, "the guest's first output", func() bool { return strings.Contains(tk.output(), marker) })
		if got := tk.killed(signal); got != status {
			t.Errorf("%s: status %d, want %d", signal, got, status)
		}
	}
}

// killed sends a signal and returns the exit status that containerd reports.
func (tk *task) killed(signal string) uint32 {
	tk.t.Helper()
	client, err := containerd.New(tk.Socket)
	if err != nil {
		tk.t.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(tk.t.Context(), tk.Namespace)
	c, err := client.LoadContainer(ctx, tk.id)
	if err != nil {
		tk.t.Fatal(err)
	}
	ct, err := c.Task(ctx, nil)
	if err != nil {
		tk.t.Fatal(err)
	}
	exit, err := ct.Wait(ctx)
	if err != nil {
		tk.t.Fatal(err)
	}
	tk.ctr("tasks", "kill", "--signal", signal, tk.id)
	select {
	case s := <-exit:
		return s.ExitCode()
	case <-time.After(time.Minute):
		tk.t.Fatalf("%s did not end the task", signal)
	}
	return 0
}

func TestAnAgentIsPausedResumedMeasuredAndUpdated(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk := w.start(w.agent("spin", guestSpin, ""))
	eventually(t, "RUNNING", func() bool { return tk.state() == "RUNNING" })
	w.ctr("tasks", "pause", tk.id)
	if s := tk.state(); s != "PAUSED" {
		t.Errorf("state %s after pause", s)
	}
	w.ctr("tasks", "resume", tk.id)
	if s := tk.state(); s != "RUNNING" {
		t.Errorf("state %s after resume", s)
	}
	if out := w.ctr("tasks", "metrics", tk.id); !strings.Contains(out, "memory.usage_in_bytes") && !strings.Contains(out, "memory.usage") {
		t.Errorf("metrics are %q", out)
	}
	if out := w.ctr("tasks", "ps", tk.id); len(strings.Fields(out)) < 3 {
		t.Errorf("pids are %q", out)
	}
	client, err := containerd.New(w.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(t.Context(), w.Namespace)
	c, err := client.LoadContainer(ctx, tk.id)
	if err != nil {
		t.Fatal(err)
	}
	ct, err := c.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(512 << 20)
	if err := ct.Update(ctx, containerd.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})); err != nil {
		t.Errorf("update: %v", err)
	}
}

func TestAnAgentOnATerminalTalksToIt(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("marker", guestMarker(3), "")
	pty, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	tty, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := w.Command(t.Context(), "ctr", "run", "--rm", "--tty", "--runtime", mentatRuntime, ref, w.id())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := tty.Close(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	if _, err := io.Copy(&seen, pty); err != nil && !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ctr: %v", err)
	}
	if !strings.Contains(seen.String(), marker) {
		t.Errorf("the terminal shows %q", seen.String())
	}
}

func TestAContainerOutOfMemoryIsReported(t *testing.T) {
	w := newWorld(t, node.Config{})
	events := w.events()
	ref := w.container("busybox")
	got := w.run("", "--memory-limit", strconv.Itoa(16<<20), ref, w.id(), "/bin/tail", "/dev/zero")
	if got.code != 137 {
		t.Errorf("status %d, stderr %q", got.code, got.stderr)
	}
	eventually(t, "the event /tasks/oom", func() bool { return strings.Contains(events(), "/tasks/oom") })
}

func TestTaskEventsArePublished(t *testing.T) {
	w := newWorld(t, node.Config{})
	events := w.events()
	ref := w.agent("marker", guestMarker(4), "")
	if got := w.run("", ref, w.id()); got.code != 0 {
		t.Fatalf("status %d, stderr %q", got.code, got.stderr)
	}
	for _, topic := range []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"} {
		eventually(t, topic, func() bool { return strings.Contains(events(), topic) })
	}
}

// events records containerd's events until the test ends.
func (w *world) events() func() string {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	var mu sync.Mutex
	var seen bytes.Buffer
	cmd := w.Command(ctx, "ctr", "events")
	cmd.Stdout = writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return seen.Write(p)
	})
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	text := func() string {
		mu.Lock()
		defer mu.Unlock()
		return seen.String()
	}
	// The subscription stands once an event of our own is seen.
	ref := w.container("events-probe")
	eventually(w.t, "the subscription to events", func() bool {
		w.ctr("images", "label", ref, "probe="+strconv.Itoa(int(time.Now().UnixNano())))
		return strings.Contains(text(), "events-probe")
	})
	return text
}

type writer func([]byte) (int, error)

func (f writer) Write(p []byte) (int, error) { return f(p) }

func TestAgentsOutliveContainerd(t *testing.T) {
	w := newWorld(t, node.Config{})
	agent, box := w.agent("spin", guestSpin, ""), w.container("busybox", "/bin/sleep", "600")
	tasks := []*task{w.start(agent), w.start(agent), w.start(box)}
	if err := w.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := w.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tk := range tasks {
		if s := tk.state(); s != "RUNNING" {
			t.Errorf("%s is %q after the restart", tk.id, s)
		}
		if got := tk.killed("SIGKILL"); got != 137 {
			t.Errorf("%s: status %d", tk.id, got)
		}
	}
}

func TestAKilledShimLeavesNothingRunning(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk := w.start(w.agent("spin", guestSpin, ""))
	var pid int
	eventually(t, "the shim's process", func() bool {
		pid = shimOf(t, w.Namespace, tk.id)
		return pid != 0
	})
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task to be reported as gone", func() bool { s := tk.state(); return s == "" || s == "STOPPED" })
	tk.remove()
}

// shimOf finds a task's shim by its command line.
func shimOf(t *testing.T, namespace, id string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range dirs {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		args := strings.Split(string(data), "\x00")
		if strings.HasSuffix(args[0], "containerd-shim-mentat-v1") && strings.Contains(string(data), "-namespace\x00"+namespace+"\x00-id\x00"+id+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

func TestFiftyAgentsAreCreatedAtOnce(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("marker", guestMarker(5), "")
	const n = 50
	results := make([]outcome, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { results[i] = w.run("", ref, fmt.Sprintf("many-%d", i)) })
	}
	wg.Wait()
	for i, r := range results {
		if r.code != 0 || r.stdout != marker+"\n" {
			t.Errorf("%d: status %d, stdout %q, stderr %q", i, r.code, r.stdout, r.stderr)
		}
	}
}

func TestARemovedImageKeepsItsContentWhileAnAgentHasIt(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("spin", guestSpin, "")
	tk := w.start(ref)
	w.ctr("images", "rm", "--sync", ref)
	if s := tk.state(); s != "RUNNING" {
		t.Errorf("state %s after the image was removed", s)
	}
	if got := tk.killed("SIGKILL"); got != 137 {
		t.Errorf("status %d", got)
	}
	w.ctr("tasks", "rm", tk.id)
	// The same container starts again from the content that its label holds.
	w.ctr("tasks", "start", "--detach", "--null-io", tk.id)
	eventually(t, "RUNNING again", func() bool { return tk.state() == "RUNNING" })
}

func TestTheRuncCommandLineRunsAgentsToo(t *testing.T) {
	w := newWorld(t, node.Config{})
	agent, box := w.agent("marker", guestMarker(6), ""), w.container("busybox")
	binary := filepath.Join(binDir(), "mentat")
	if got := w.runWith("", "--runc-binary", binary, agent, w.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("agent: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	if got := w.runWith("", "--runc-binary", binary, box, w.id(), "/bin/echo", "hello"); got.code != 0 || got.stdout != "hello\n" {
		t.Errorf("container: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func binDir() string {
	bin, _ := node.Binaries()
	return bin
}

func TestAnOldDaemonStartsTheShim(t *testing.T) {
	_, tools := node.Binaries()
	old := filepath.Join(tools, "containerd-old")
	if _, err := exec.LookPath(old); err != nil {
		t.Fatalf("%v: run `make tools`", err)
	}
	w := newWorld(t, node.Config{Containerd: old})
	if out := w.ctr("version"); !strings.Contains(out, "2.0.") {
		t.Fatalf("not an old daemon: %s", out)
	}
	ref := w.agent("marker", guestMarker(7), "")
	if got := w.run("", ref, w.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}
