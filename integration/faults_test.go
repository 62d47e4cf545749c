package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	ocispecs "github.com/containerd/containerd/v2/pkg/oci"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// guestFlood writes 64 MiB: the numbers from 0 on, four bytes each.
const guestFlood = `(module
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 1 1)
  (func (export "process") (result i32)
    (local $n i32) (local $at i32)
    (loop $block
      (local.set $at (i32.const 0))
      (loop $fill
        (i32.store (local.get $at) (local.get $n))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $fill (i32.lt_u (local.get $at) (i32.const 65536))))
      (call $write_output (i32.const 0) (i32.const 65536))
      (br_if $block (i32.lt_u (local.get $n) (i32.const 16777216))))
    (i32.const 0)))`

// guestDrain prints the marker and reads its input to the end.
const guestDrain = `(module
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "` + marker + `\n")
  (func (export "process") (result i32)
    (call $write_output (i32.const 0) (i32.const 21))
    (loop $more (br_if $more (i32.gt_s (call $read (i32.const 0) (i32.const 1024) (i32.const 4096)) (i32.const 0))))
    (i32.const 0)))`

// guestSleep prints the marker and sleeps for an hour.
const guestSleep = `(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "\10\00\00\00\15\00\00\00")
  (data (i32.const 16) "` + marker + `\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 272) (i32.const 1))
    (i64.store (i32.const 280) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 256) (i32.const 512) (i32.const 1) (i32.const 768)))))`

// guestLarge is a module of as many functions; a thousand compile for about a
// second to 8 MB.
func guestLarge(functions int) string {
	var b strings.Builder
	b.WriteString(`(module (memory (export "memory") 1 1)` + "\n")
	for i := range functions {
		fmt.Fprintf(&b, "(func $f%d (param i32 i64) (result i32) (local i32 i32)\n", i)
		for j := range 60 {
			fmt.Fprintf(&b, `(local.set 2 (i32.add (i32.mul (local.get 2) (i32.const %d)) (i32.load (i32.and (local.get 0) (i32.const 65528)))))
(if (i32.eq (local.get 2) (i32.const %d)) (then (local.set 3 (call $f%d (local.get 2) (local.get 1)))))
`, i*j+3, i+j, (i+1)%functions)
		}
		b.WriteString("(local.get 2))\n")
	}
	b.WriteString(`(func (export "process") (result i32) (drop (call $f0 (i32.const 1) (i64.const 1))) (i32.const 0)))`)
	return b.String()
}

// large assembles [guestLarge] once: that takes a second or two.
var large = func() func(t *testing.T, functions int) []byte {
	var mu sync.Mutex
	made := make(map[int][]byte)
	return func(t *testing.T, functions int) []byte {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if made[functions] == nil {
			made[functions] = assemble(t, guestLarge(functions))
		}
		return made[functions]
	}
}()

// slow imports an agent that compiles for several seconds.
func (w *world) slow() string {
	w.t.Helper()
	l, _ := w.build("slow", large(w.t, 4000), "")
	const ref = "mentat.test/slow:1.0.0"
	w.load(l, ref)
	return ref
}

// compiler is a running compiler child.
type compiler struct {
	pid    int
	groups []string // its cgroup directories
}

// compiling waits for the compiler of a process.
func compiling(t *testing.T, parent func() int) compiler {
	t.Helper()
	c := compiler{}
	eventually(t, "a compiler with its limits", func() bool {
		pid := parent()
		if pid == 0 {
			return false
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return false
		}
		// A child belongs to the thread that made it.
		if threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)); err == nil {
			for _, name := range threads {
				more, err := os.ReadFile(name)
				if err == nil {
					data = append(append(data, ' '), more...)
				}
			}
		}
		for field := range strings.FieldsSeq(string(data)) {
			line, err := os.ReadFile("/proc/" + field + "/cmdline")
			if err != nil || !strings.HasPrefix(string(line), "mentat-host\x00compile") {
				continue
			}
			if c.pid, err = strconv.Atoi(field); err != nil {
				t.Fatal(err)
			}
			c.groups = groupsOf(c.pid)
			return len(c.groups) > 0
		}
		return false
	})
	return c
}

// groupsOf are the directories of a compiler's own cgroups.
func groupsOf(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.Contains(f[2], "mentat-compile-") {
			continue
		}
		for _, top := range []string{"/sys/fs/cgroup/" + f[1], "/sys/fs/cgroup"} {
			if _, err := os.Stat(top + f[2]); err == nil {
				dirs = append(dirs, top+f[2])
				break
			}
		}
	}
	return dirs
}

// gone waits until nothing of a compilation is left.
func (w *world) gone(c compiler) {
	w.t.Helper()
	eventually(w.t, "the compiler's end", func() bool { return errors.Is(unix.Kill(c.pid, 0), unix.ESRCH) })
	eventually(w.t, "the end of the compiler's cgroups", func() bool {
		return !slices.ContainsFunc(c.groups, func(dir string) bool {
			_, err := os.Stat(dir)
			return err == nil
		})
	})
	eventually(w.t, "a cache without temporary files", func() bool { return len(w.temporary()) == 0 })
}

// temporary are unfinished files of the cache.
func (w *world) temporary() []string {
	names, err := filepath.Glob(filepath.Join(w.Root, "modules", ".*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

// nothing waits until no task of the node has left anything.
func (w *world) nothing() {
	w.t.Helper()
	left, err := w.Settled(10 * time.Second)
	if err != nil || !left.None() {
		w.t.Errorf("left behind (error %v):\n%s", err, left)
	}
}

// works runs an agent, to see that the node still does.
func (w *world) works() {
	w.t.Helper()
	if got := w.run("", w.agent("works", guestMarker(30), ""), w.id()); got.code != 0 || got.stdout != marker+"\n" {
		w.t.Errorf("afterwards an agent ends with status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

// background starts `ctr run` and returns how it went, later. The process is
// returned to be killed.
func (w *world) background(args ...string) (*os.Process, func() outcome) {
	w.t.Helper()
	var stdout, stderr strings.Builder
	cmd := w.Command(context.WithoutCancel(w.t.Context()), "ctr", append([]string{"run", "--fifo-dir", filepath.Join(w.Root, "fifo"), "--runtime", mentatRuntime}, args...)...)
	in, err := cmd.StdinPipe() // stays open until the end
	if err != nil {
		w.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // the outcome is in the process's state
	}()
	wait := sync.OnceValue(func() outcome {
		select {
		case <-done:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-done
			w.t.Errorf("ctr %q does not end", args)
		}
		in.Close()
		return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	})
	w.t.Cleanup(func() { _ = cmd.Process.Kill(); wait() })
	return cmd.Process, wait
}

// forgetClients removes the FIFOs of clients that were killed.
func (w *world) forgetClients() {
	w.t.Helper()
	if err := os.RemoveAll(filepath.Join(w.Root, "fifo")); err != nil {
		w.t.Error(err)
	}
}

func TestContainerdKilledDuringACreateLeavesNothing(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref, id := w.slow(), w.id()
	_, wait := w.background(ref, id)
	c := compiling(t, func() int { return shimOf(t, w.Namespace, id) })
	if err := w.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if got := wait(); got.code == 0 {
		t.Error("the client was told that it succeeded")
	}
	if err := w.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.gone(c)
	w.nothing()
	_, _ = w.Ctr(t.Context(), "containers", "rm", id)
	w.works()
}

func TestAShimKilledDuringACreateLeavesNothing(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref, id := w.slow(), w.id()
	_, wait := w.background(ref, id)
	var shim int
	c := compiling(t, func() int { shim = shimOf(t, w.Namespace, id); return shim })
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := wait(); got.code == 0 || got.stderr == "" {
		t.Errorf("the client was told %+v", got)
	}
	w.nothing()
	_, _ = w.Ctr(t.Context(), "containers", "rm", id)
	w.works()
	w.gone(c)
}

func TestACompilationThatIsNotWantedAnyMoreEnds(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.slow()
	for _, tc := range []struct {
		name string
		end  func(ctr *os.Process, c compiler) error
	}{
		{"the client went away", func(ctr *os.Process, _ compiler) error { return ctr.Kill() }},
		{"the compiler was killed", func(_ *os.Process, c compiler) error { return unix.Kill(c.pid, unix.SIGKILL) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.within(t)
			id := w.id()
			ctr, wait := w.background(ref, id)
			c := compiling(t, func() int { return shimOf(t, w.Namespace, id) })
			if err := tc.end(ctr, c); err != nil {
				t.Fatal(err)
			}
			if got := wait(); got.code == 0 || got.code > 0 && !strings.Contains(got.stderr, "compile") {
				t.Errorf("the client was told %+v", got)
			}
			w.gone(c)
			w.forgetClients()
			w.nothing()
			_, _ = w.Ctr(t.Context(), "containers", "rm", id)
		})
	}
	w.works()
}

// annotated are the flags that put a container into a shim of a group.
func annotated(group string) []string {
	return []string{"--annotation", "io.containerd.runc.v2.group=" + group}
}

// group starts agents that sleep, in one shim, which is returned.
func (w *world) group(n int) ([]*task, int) {
	w.t.Helper()
	ref := w.agent("sleep", guestSleep, "")
	var tasks []*task
	for range n {
		tasks = append(tasks, w.start(ref, annotated("g")...))
	}
	shim := shimOf(w.t, w.Namespace, tasks[0].id)
	if shim == 0 {
		w.t.Fatal("there is no shim")
	}
	for _, tk := range tasks[1:] {
		if pid := shimOf(w.t, w.Namespace, tk.id); pid != 0 {
			w.t.Fatalf("%s has a shim of its own", tk.id)
		}
	}
	return tasks, shim
}

func TestAShimKilledUnderFiveAgentsTakesThemAlong(t *testing.T) {
	w := newWorld(t, node.Config{})
	tasks, shim := w.group(5)
	exits := w.exits()
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, tk := range tasks {
		eventually(t, "the end of "+tk.id+" to be reported", func() bool { return exits(tk.id) == 137 })
	}
	w.nothing()
	for _, tk := range tasks {
		if s := tk.state(); s != "" && s != "STOPPED" {
			t.Errorf("%s is %s", tk.id, s)
		}
		tk.remove()
	}
	w.works()
}

// exits records the exit statuses that containerd publishes, by container; -1
// stands for none yet.
func (w *world) exits() func(id string) int {
	w.t.Helper()
	events := w.events()
	return func(id string) int {
		for line := range strings.Lines(events()) {
			_, data, ok := strings.Cut(line, " /tasks/exit ")
			if !ok {
				continue
			}
			var e struct {
				ContainerID string `json:"container_id"`
				ID          string `json:"id"` // of a process in it, the container's own for the first
				ExitStatus  int    `json:"exit_status"`
			}
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				w.t.Fatalf("%s: %v", line, err)
			}
			if e.ContainerID == id && e.ID == id {
				return e.ExitStatus
			}
		}
		return -1
	}
}

// descriptors counts a process's open files, but for those by which Go holds
// on to its children: the garbage collector closes them in its own time.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("process %d has no files, %v", pid, err)
	}
	n := 0
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to != "anon_inode:[pidfd]" {
			n++
		}
	}
	return n
}

// inGroup puts a container of a Go client into a shim of a group.
func inGroup(group string) ocispecs.SpecOpts {
	return ocispecs.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": group})
}

func TestThirtyRunsInOneShimLeaveNoDescriptor(t *testing.T) {
	w := newWorld(t, node.Config{})
	_, shim := w.group(1)
	ref := w.agent("marker", guestMarker(31), "")
	client, ctx := w.client()
	run := func() {
		t.Helper()
		if out := w.through(ctx, client, ref, mentatRuntime, inGroup("g")); out != marker+"\n" {
			t.Fatalf("output %q", out)
		}
	}
	run() // what is opened once for all, like the connection back to containerd
	before, err := w.Leaks()
	if err != nil {
		t.Fatal(err)
	}
	inShim, inDaemon := descriptors(t, shim), descriptors(t, w.ContainerdPID())
	for range 30 {
		run()
	}
	eventually(t, "as few descriptors as before", func() bool {
		return descriptors(t, shim) <= inShim && descriptors(t, w.ContainerdPID()) <= inDaemon
	})
	eventually(t, "what there was before, and no more", func() bool {
		after, err := w.Leaks()
		return err == nil && after.String() == before.String()
	})
}

func TestFiftyCreatesInOneShimCompileOnce(t *testing.T) {
	w := newWorld(t, node.Config{})
	leader, shim := w.group(1)
	client, ctx := w.client()
	image, err := client.GetImage(ctx, w.agent("marker", guestMarker(32), ""))
	if err != nil {
		t.Fatal(err)
	}
	tasks := make([]containerd.Task, 50)
	errs := make([]error, len(tasks))
	var wg sync.WaitGroup
	for i := range tasks {
		wg.Go(func() {
			id := fmt.Sprintf("grouped-%d", i)
			var c containerd.Container
			if c, errs[i] = client.NewContainer(ctx, id, containerd.WithNewSnapshot(id, image), containerd.WithImage(image), containerd.WithRuntime(mentatRuntime, nil),
				containerd.WithNewSpec(ocispecs.WithDefaultSpecForPlatform("linux/amd64"), ocispecs.WithImageConfig(image), ocispecs.WithCgroup("/"+w.Namespace+"/"+id), inGroup("g"))); errs[i] == nil {
				tasks[i], errs[i] = c.NewTask(ctx, cio.NullIO)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if compiled := compiledModules(t, w); compiled != 2 {
		t.Errorf("the cache holds %d modules", compiled)
	}
	for i, tk := range tasks {
		if tk == nil {
			continue
		}
		if i == 0 {
			exit, err := tk.Wait(ctx)
			if err == nil {
				err = tk.Start(ctx)
			}
			if err != nil {
				t.Error(err)
			} else if s := <-exit; s.ExitCode() != 0 {
				t.Errorf("status %d", s.ExitCode())
			}
		}
		wg.Go(func() {
			if _, err := tk.Delete(ctx, containerd.WithProcessKill); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if leader[0].state() != "RUNNING" || shimOf(t, w.Namespace, leader[0].id) != shim {
		t.Error("the shim did not survive")
	}
}

func TestTheLastOfAGroupTakesShimAndSocketAlong(t *testing.T) {
	w := newWorld(t, node.Config{})
	tasks, _ := w.group(5)
	end := func(tk *task) {
		if _, err := tk.Ctr(t.Context(), "tasks", "rm", "--force", tk.id); err != nil {
			t.Error(err)
		}
	}
	end(tasks[0]) // whose bundle is the shim's working directory
	var wg sync.WaitGroup
	for _, tk := range tasks[1:] {
		wg.Go(func() { end(tk) })
	}
	wg.Wait()
	w.nothing()
}

func TestAnAgentWhoseClientWasKilledEndsOrCanBeEnded(t *testing.T) {
	w := newWorld(t, node.Config{})
	drain, flood := w.agent("drain", guestDrain, ""), w.agent("flood", guestFlood, "")
	limited := w.agent("limited", guestFlood, "wasm:\n  deadline: 1s\n")
	exits := w.exits()
	cases := []struct {
		name, ref string
		end       func(tk *task)
		status    int
		tk        *task
	}{
		{name: "its input ends with the client", ref: drain},
		{name: "a full output is interrupted by the deadline", ref: limited, status: 121},
		{name: "a full output is interrupted by SIGTERM", ref: flood, status: 143, end: func(tk *task) { tk.ctr("tasks", "kill", tk.id) }},
		{name: "a full output is interrupted by SIGKILL", ref: flood, status: 137, end: func(tk *task) { tk.ctr("tasks", "kill", "-s", "SIGKILL", tk.id) }},
	}
	for i := range cases {
		tc := &cases[i]
		tc.tk = &task{world: w, id: w.id()}
		// Nobody reads the client's own output, so that the FIFO fills up.
		cmd := w.Command(context.WithoutCancel(t.Context()), "ctr", "run", "--fifo-dir", filepath.Join(w.Root, "fifo"), "--runtime", mentatRuntime, tc.ref, tc.tk.id)
		r, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Close()
		if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 16)); err != nil {
			t.Errorf("%s: no first output: %v", tc.name, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if tc.end != nil {
			tc.end(tc.tk)
		}
	}
	for _, tc := range cases {
		eventually(t, tc.name, func() bool { return exits(tc.tk.id) >= 0 })
		if got := exits(tc.tk.id); got != tc.status {
			t.Errorf("%s: status %d, want %d", tc.name, got, tc.status)
		}
	}
	// All at once: containerd's shim waits ten seconds for a reader that may come
	// back.
	var wg sync.WaitGroup
	for _, tc := range cases {
		wg.Go(tc.tk.remove)
	}
	wg.Wait()
	w.forgetClients()
	w.nothing()
}

func TestAFloodOfOutputArrivesWholeAndInOrder(t *testing.T) {
	w := newWorld(t, node.Config{})
	client, ctx := w.client()
	got := &counting{wrong: -1}
	w.into(ctx, got, client, w.agent("flood", guestFlood, ""), mentatRuntime)
	if want := int64(64 << 20); got.at != want || got.wrong >= 0 {
		t.Errorf("%d bytes arrived, want %d; the first wrong one is %d (-1 is none)", got.at, want, got.wrong)
	}
}

// counting holds what is written to it against what guestFlood writes: numbers of
// four bytes, from 0 on.
type counting struct{ at, wrong int64 }

func (c *counting) Write(p []byte) (int, error) {
	for _, b := range p {
		if want := byte(uint32(c.at>>2) >> (8 * (c.at & 3))); b != want && c.wrong < 0 {
			c.wrong = c.at
		}
		c.at++
	}
	return len(p), nil
}

// script writes a program for a log URI. Descriptor 3 is stdout, 4 stderr, and
// containerd's shim waits until 5 is closed.
func script(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "logger")
	if err := os.WriteFile(name, []byte("#!/bin/sh\nexec 5>&-\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return "binary://" + name
}

func TestLogsGoWhereTheyAreSent(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("command", guestCommand, "")
	exits := w.exits()
	dir := t.TempDir()
	contains := func(name string, want string) {
		t.Helper()
		eventually(t, name+" with the marker", func() bool {
			data, err := os.ReadFile(filepath.Join(dir, name))
			return err == nil && strings.Contains(string(data), want)
		})
	}
	for uri, files := range map[string][]string{
		"file://" + filepath.Join(dir, "file"): {"file"},
		script(t, "cat <&3 >"+dir+"/stdout & cat <&4 >"+dir+"/stderr & echo $CONTAINER_NAMESPACE >"+dir+"/who; wait"): {"stdout", "stderr"},
	} {
		id := w.id()
		tk := &task{world: w, id: id}
		w.ctr("run", "--detach", "--runtime", mentatRuntime, "--log-uri", uri, ref, id)
		eventually(t, "the run's end", func() bool { return exits(id) == 7 })
		for _, name := range files {
			contains(name, marker)
		}
		tk.remove()
	}
	contains("who", w.Namespace)

	// A logger that goes away breaks the pipe, which ends the run.
	id := w.id()
	tk := &task{world: w, id: id}
	w.ctr("run", "--detach", "--runtime", mentatRuntime, "--log-uri", script(t, "head -c 10 <&3 >"+dir+"/head"), w.agent("flood", guestFlood, ""), id)
	eventually(t, "the run's end", func() bool { return exits(id) >= 0 })
	if got := exits(id); got != 128+int(unix.SIGPIPE) {
		t.Errorf("a broken pipe ends with status %d", got)
	}
	tk.remove()
}

func TestATerminalIsResized(t *testing.T) {
	w := newWorld(t, node.Config{})
	client, ctx := w.client()
	for form, ref := range map[string]string{"agent": w.agent("sleep", guestSleep, ""), "container": w.container("busybox", "/bin/sleep", "600")} {
		id := w.id()
		w.ctr("containers", "create", "--tty", "--runtime", mentatRuntime, ref, id)
		c, err := client.LoadContainer(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		tk, err := c.NewTask(ctx, cio.TerminalBinaryIO("/bin/true", nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := tk.Start(ctx); err != nil {
			t.Error(err)
		}
		if err := tk.Resize(ctx, 132, 43); err != nil {
			t.Errorf("%s: %v", form, err)
		}
		// What the process itself has as its output.
		tty, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", tk.Pid()), os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
		if err := errors.Join(err, tty.Close()); err != nil || size.Col != 132 || size.Row != 43 {
			t.Errorf("%s: its terminal has %+v: %v", form, size, err)
		}
		if _, err := tk.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
		if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			t.Error(err)
		}
	}
}

// cacheOn puts a small file system under the node's cache of modules.
func (w *world) cacheOn(flags uintptr, size int64) string {
	w.t.Helper()
	dir := filepath.Join(w.Root, "modules")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, fmt.Sprintf("mode=0700,size=%d", size)); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	})
	return dir
}

func TestAFullDiskUnderTheCacheIsSaid(t *testing.T) {
	host, err := os.Stat(filepath.Join(binDir(), "mentat-host"))
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int64{"no room for the compiler": 16 << 20, "no room for the compiled module": host.Size() + 4<<20} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, node.Config{})
			dir := w.cacheOn(0, size)
			l, _ := w.build("large", large(t, 1000), "")
			const ref = "mentat.test/large:1.0.0"
			w.load(l, ref)
			got := w.run("", ref, w.id())
			if got.code == 0 || !strings.Contains(got.stderr, "the disk is full") || !strings.Contains(got.stderr, dir) {
				t.Errorf("status %d, stderr %q", got.code, got.stderr)
			}
			if left := w.temporary(); len(left) > 0 {
				t.Errorf("half-written: %q", left)
			}
			if left, err := filepath.Glob(filepath.Join(dir, "*.[cm]*")); err != nil || len(left) > 0 {
				t.Errorf("half-written: %q, %v", left, err)
			}
			if got := w.run("", w.container("busybox"), w.id(), "/bin/echo", "hello"); got.stdout != "hello\n" {
				t.Errorf("an ordinary container: %+v", got)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=128m"); err != nil {
				t.Fatal(err)
			}
			w.works()
		})
	}
}

func TestACacheThatCannotRunCodeIsRefusedByName(t *testing.T) {
	w := newWorld(t, node.Config{})
	dir := w.cacheOn(unix.MS_NOEXEC, 64<<20)
	got := w.run("", w.agent("marker", guestMarker(33), ""), w.id())
	if got.code == 0 || !strings.Contains(got.stderr, "noexec") || !strings.Contains(got.stderr, dir) || strings.Contains(got.stdout, marker) {
		t.Errorf("%+v", got)
	}
	if got := w.run("", w.container("busybox"), w.id(), "/bin/echo", "hello"); got.stdout != "hello\n" {
		t.Errorf("an ordinary container: %+v", got)
	}
}

// install puts programs into a directory, over what runs from there. Each build
// differs in bytes, as builds do.
func install(t *testing.T, dir, from, build string) {
	t.Helper()
	for _, name := range []string{"containerd-shim-mentat-v1", "mentat-shim", "mentat", "mentat-host", "mentat-verifier", "mentatctl"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) && from != binDir() {
			continue // a build before this one had fewer programs
		}
		if err != nil {
			t.Fatal(err)
		}
		temp := filepath.Join(dir, "."+name)
		if err := os.WriteFile(temp, append(data, build...), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAgentsOfAnotherBuildStopUnderTheNewOne(t *testing.T) {
	node.Privileged(t, "mentat-shim")
	upgrades(t, binDir())
}

func TestAgentsOfThePreviousBuildStopUnderTheNewOne(t *testing.T) {
	node.Privileged(t, "mentat-shim")
	previous := filepath.Join(binDir(), "previous")
	if _, err := os.Stat(previous); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the previous build is not there: scripts/previous.sh makes it, from a clone with its commit")
	}
	upgrades(t, previous, "verify.memory", "capability", "audit", "service", "host.net_binary", "sandbox")
}

// upgrades replaces a node's programs under running agents. unknown are the keys
// and tables of the node's configuration that the old ones do not know.
func upgrades(t *testing.T, from string, unknown ...string) {
	t.Helper()
	dir := t.TempDir()
	install(t, dir, from, "previous")
	w := newWorld(t, node.Config{Bin: dir})
	config, err := os.ReadFile(w.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	w.configure(without(t, config, unknown))
	ref := w.agent("sleep", guestSleep, "")
	exits := w.exits()
	stopped, orphan, paused, kept := w.start(ref), w.start(ref), w.start(ref), w.start(ref)
	// One was created and waits to be started.
	client, ctx := w.client()
	created := w.id()
	w.ctr("containers", "create", "--runtime", mentatRuntime, ref, created)
	c, err := client.LoadContainer(ctx, created)
	if err != nil {
		t.Fatal(err)
	}
	tk, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	w.ctr("tasks", "pause", paused.id)
	before := compiledModules(t, w)

	install(t, dir, binDir(), "new")
	w.configure(config)

	w.ctr("tasks", "kill", stopped.id)
	eventually(t, "SIGTERM's status", func() bool { return exits(stopped.id) == 143 })
	w.ctr("tasks", "rm", stopped.id)

	// The new build deletes what the previous one's shim left.
	if err := unix.Kill(shimOf(t, w.Namespace, orphan.id), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed shim's task to be reported", func() bool { return exits(orphan.id) == 137 })

	if err := tk.Start(ctx); err != nil {
		t.Errorf("start what the previous build created: %v", err)
	}
	if _, err := tk.Delete(ctx, containerd.WithProcessKill); err != nil {
		t.Error(err)
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}

	// As an upgrade of the packages does.
	if err := w.StopContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := w.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	exits = w.exits()
	w.ctr("tasks", "resume", paused.id)
	for _, tk := range []*task{paused, kept} {
		if s := tk.state(); s != "RUNNING" {
			t.Errorf("%s is %s", tk.id, s)
		}
		if _, err := w.Ctr(t.Context(), "tasks", "exec", "--exec-id", "e", tk.id, "/bin/sh"); err == nil || !strings.Contains(err.Error(), "no shell") {
			t.Errorf("exec: %v", err)
		}
		w.ctr("tasks", "kill", "-s", "SIGKILL", tk.id)
		eventually(t, "SIGKILL's status", func() bool { return exits(tk.id) == 137 })
		w.ctr("tasks", "rm", tk.id)
	}
	orphan.remove()
	w.nothing()
	w.works()
	// Another engine build does not load the previous one's code.
	if after := compiledModules(t, w); after != before+1 {
		t.Errorf("%d compiled modules, %d before", after, before)
	}
}

// without is a configuration that says nothing of some keys.
func without(t *testing.T, config []byte, keys []string) []byte {
	t.Helper()
	var tables map[string]map[string]any
	if err := toml.Unmarshal(config, &tables); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		table, name, ok := strings.Cut(key, ".")
		if !ok {
			delete(tables, table)
			continue
		}
		delete(tables[table], name)
	}
	data, err := toml.Marshal(tables)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// configure replaces the node's configuration.
func (w *world) configure(config []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.ConfigFile(), config, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func compiledModules(t *testing.T, w *world) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.Root, "modules", "*.cwasm"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestAHostRefusesADocumentOfANewerBuild(t *testing.T) {
	node.Privileged(t, "mentat-host")
	name := filepath.Join(t.TempDir(), "host.json")
	if err := os.WriteFile(name, fmt.Appendf(nil, `{"version": %d, "something": "new"}`, hostdoc.Version+1), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir(), "mentat-host"), "run", "--document", name)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 124 || !strings.Contains(string(out), "the shim and mentat-host must be of one installation") {
		t.Errorf("status %d, %v: %s", cmd.ProcessState.ExitCode(), err, out)
	}
}
