package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispecs "github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/oci/remote"
)

// client is a connection to the node's containerd, in its namespace.
func (w *world) client() (*containerd.Client, context.Context) {
	w.t.Helper()
	client, err := containerd.New(w.Socket, containerd.WithDefaultPlatform(platforms.All))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { client.Close() })
	return client, namespaces.WithNamespace(context.WithoutCancel(w.t.Context()), w.Namespace)
}

// within is the same world for a subtest.
func (w *world) within(t *testing.T) *world {
	sub := &world{Node: w.Node, t: t, count: w.count}
	w.count += 100 // of one subtest's containers
	return sub
}

// bundled is a bundle as containerd's runc shim hands it to its runtime, with
// what nerdctl adds, and a runc command line to work on it.
type bundled struct {
	*world
	id, dir, root string
}

// bundle makes a container known to containerd, and its bundle.
func (w *world) bundle(ref string, args ...string) *bundled {
	w.t.Helper()
	client, ctx := w.client()
	b := &bundled{world: w, id: w.id(), root: filepath.Join(w.Root, "runc", w.Namespace)}
	b.dir = filepath.Join(w.Root, "io.containerd.runtime.v2.task", w.Namespace, b.id)
	w.ctr(append([]string{"containers", "create", ref, b.id}, args...)...)
	w.t.Cleanup(func() { _, _ = w.Ctr(ctx, "containers", "rm", b.id) })
	c, err := client.LoadContainer(ctx, b.id)
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	rootfs := filepath.Join(b.dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), info.Spec.GetValue(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	mounts, err := client.SnapshotService(info.Snapshotter).Mounts(ctx, info.SnapshotKey)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := mount.All(mounts, rootfs); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := mount.UnmountAll(rootfs, 0); err != nil {
			w.t.Error(err)
		}
	})
	return b
}

// log is what containerd's shim reads a failure from.
func (b *bundled) log() string { return filepath.Join(b.dir, "log.json") }

// args are a command line as go-runc builds it for nerdctl's containers.
func (b *bundled) args(args ...string) []string {
	return append([]string{"--root", b.root, "--log", b.log(), "--log-format", "json"}, args...)
}

// runtime runs mentat or runc with the environment of containerd's shim.
func (w *world) runtime(binary string, args ...string) outcome {
	w.t.Helper()
	// Cleaning up uses it, too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), time.Minute)
	defer cancel()
	cmd := w.Command(ctx, binary, args...)
	cmd.Env = append(cmd.Env, "GRPC_ADDRESS="+w.Socket, "TTRPC_ADDRESS="+w.Socket+".ttrpc", "NAMESPACE="+w.Namespace)
	cmd.Dir = w.t.TempDir()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		w.t.Fatalf("%s: %v", binary, err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs mentat and fails the test if it does.
func (b *bundled) ok(args ...string) string {
	b.t.Helper()
	got := b.runtime("mentat", b.args(args...)...)
	if got.code != 0 {
		log, _ := os.ReadFile(b.log())
		b.t.Fatalf("%q: status %d, stderr %q, log %s", args, got.code, got.stderr, log)
	}
	return got.stdout
}

// created creates the container with a pipe as its input and a file as its
// output. Its process becomes the test's own child, as it is the shim's.
func (b *bundled) created(stdin string, flags ...string) (pid int, stdout string) {
	b.t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			b.t.Error(err)
		}
	})
	pidFile := filepath.Join(b.dir, "init.pid")
	args := append([]string{"create", "--bundle", b.dir, "--pid-file", pidFile}, flags...)
	cmd := b.Command(b.t.Context(), "mentat", b.args(append(args, b.id)...)...)
	cmd.Env = append(cmd.Env, "GRPC_ADDRESS="+b.Socket, "TTRPC_ADDRESS="+b.Socket+".ttrpc", "NAMESPACE="+b.Namespace)
	input := filepath.Join(b.t.TempDir(), "stdin")
	if err := os.WriteFile(input, []byte(stdin), 0o600); err != nil {
		b.t.Fatal(err)
	}
	in, err := os.Open(input)
	if err != nil {
		b.t.Fatal(err)
	}
	defer in.Close()
	out, err := os.CreateTemp(b.t.TempDir(), "stdout")
	if err != nil {
		b.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		log, _ := os.ReadFile(b.log())
		b.t.Fatalf("create: %v: %s%s", err, said, log)
	}
	b.t.Cleanup(func() { b.runtime("mentat", b.args("delete", "--force", b.id)...) })
	data, err := os.ReadFile(pidFile)
	if err != nil {
		b.t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil {
		b.t.Fatal(err)
	}
	return pid, out.Name()
}

// exited waits for the container's process and returns its exit status.
func (b *bundled) exited(pid int) int {
	b.t.Helper()
	var status unix.WaitStatus
	eventually(b.t, "the end of the container's process", func() bool {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			b.t.Fatalf("wait for %d: %v", pid, err)
		}
		return got == pid
	})
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// status is what runc itself knows of the container.
func (b *bundled) status() string {
	b.t.Helper()
	got := b.runtime("runc", "--root", b.root, "state", b.id)
	var state struct{ Status string }
	if got.code == 0 {
		if err := json.Unmarshal([]byte(got.stdout), &state); err != nil {
			b.t.Fatal(err)
		}
	}
	return state.Status
}

func TestTheCommandLinesOfNerdctlRunAgentsAndContainers(t *testing.T) {
	w := newWorld(t, node.Config{})
	agent, command, box := w.agent("echo", guestEcho, ""), w.agent("command", guestCommand, ""), w.container("busybox")
	for name, tc := range map[string]struct {
		ref, stdout string
		args, flags []string
		code        int
	}{
		"an agent":            {ref: agent, stdout: "the document"},
		"a WASI command":      {ref: command, stdout: marker, code: 7},
		"a container":         {ref: box, args: []string{"/bin/cat"}, stdout: "the document"},
		"a failing container": {ref: box, args: []string{"/bin/sh", "-c", "exit 9"}, code: 9},
		"more flags":          {ref: agent, stdout: "the document", flags: []string{"--no-pivot=false", "--no-new-keyring"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			b := w.bundle(tc.ref, tc.args...)
			pid, stdout := b.created("the document", tc.flags...)
			if s := b.status(); s != "created" {
				t.Errorf("%q after create", s)
			}
			b.ok("start", b.id)
			if got := b.exited(pid); got != tc.code {
				t.Errorf("status %d, want %d", got, tc.code)
			}
			data, err := os.ReadFile(stdout)
			if err != nil || !strings.Contains(string(data), tc.stdout) {
				t.Errorf("output %q, %v", data, err)
			}
			if s := b.status(); s != "stopped" {
				t.Errorf("%q after the end", s)
			}
			b.ok("delete", b.id)
			b.ok("delete", "--force", b.id) // as the shim does once more
			if left, err := os.ReadDir(b.root); err != nil || len(left) > 0 {
				t.Errorf("runc still knows %v, %v", left, err)
			}
		})
	}
}

func TestARunningAgentIsDeletedByForceThroughTheRuncCommandLine(t *testing.T) {
	w := newWorld(t, node.Config{})
	b := w.bundle(w.agent("sleep", guestSleep, ""))
	pid, stdout := b.created("")
	b.ok("start", b.id)
	eventually(t, "the guest's first output", func() bool {
		data, err := os.ReadFile(stdout)
		return err == nil && strings.Contains(string(data), marker)
	})
	if got := b.runtime("mentat", b.args("exec", b.id, "/bin/sh")...); got.code == 0 || !strings.Contains(got.stderr, "a WASM agent has no shell") {
		t.Errorf("exec: status %d, stderr %q", got.code, got.stderr)
	}
	if data, err := os.ReadFile(b.log()); err != nil || !strings.Contains(string(data), "a WASM agent has no shell") {
		t.Errorf("containerd would read %q, %v", data, err)
	}
	if got := b.runtime("mentat", b.args("delete", b.id)...); got.code == 0 {
		t.Error("a running agent was deleted without force")
	}
	b.ok("delete", "--force", b.id)
	if got := b.exited(pid); got != 137 {
		t.Errorf("status %d", got)
	}
}

// TestEveryOtherCommandAnswersAsRuncDoes runs one container through its life
// and asks both mentat and runc everything that can be asked on the way.
// logTime is the time in runc's log lines, in text and in JSON.
var logTime = regexp.MustCompile(`time="[^"]*" |"time":"[^"]*"`)

func TestEveryOtherCommandAnswersAsRuncDoes(t *testing.T) {
	w := newWorld(t, node.Config{})
	b := w.bundle(w.container("busybox"), "/bin/sleep", "600")
	pid, _ := b.created("")
	state := []string{"--root", b.root}
	// same compares the answers to one command line.
	same := func(args ...string) outcome {
		t.Helper()
		ours, theirs := w.runtime("mentat", args...), w.runtime("runc", args...)
		ours.stderr, theirs.stderr = logTime.ReplaceAllString(ours.stderr, ""), logTime.ReplaceAllString(theirs.stderr, "")
		if ours != theirs {
			t.Errorf("%q:\nmentat %+v\n  runc %+v", args, ours, theirs)
		}
		return ours
	}
	on := func(args ...string) outcome {
		t.Helper()
		return same(append(slices.Clone(state), args...)...)
	}
	// keys compares what changes between two calls by its form.
	keys := func(args ...string) {
		t.Helper()
		args = append(slices.Clone(state), args...)
		var forms [2][]string
		for i, binary := range []string{"mentat", "runc"} {
			got := w.runtime(binary, args...)
			var v map[string]any
			if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || got.code != 0 {
				t.Errorf("%s %q: %+v, %v", binary, args, got, err)
			}
			forms[i] = slices.Sorted(maps.Keys(v))
		}
		if !slices.Equal(forms[0], forms[1]) {
			t.Errorf("%q: mentat %v, runc %v", args, forms[0], forms[1])
		}
	}

	// Without a container.
	for _, args := range []string{
		"", "--version", "-v", "--help", "-h", "help", "features", "help create", "create --help", "run -h", "restore --help",
		"exec --help", "checkpoint --help", "delete --help", "events --help", "kill --help", "list --help", "pause --help",
		"ps --help", "resume --help", "spec --help", "start --help", "state --help", "update --help", "features --help",
		"no-such-command", "state", "state absent", "start absent", "delete absent", "delete --force absent",
		"kill absent KILL", "pause absent", "resume absent", "ps absent", "events --stats absent", "update absent",
		"exec absent /bin/true", "checkpoint absent",
		"--systemd-cgroup=false state absent", "--rootless=true state absent", "--rootless auto list", "--rootless=nonsense list",
		"--log-format json state absent", "--log-format=nonsense list", "--debug=false --root=/nonexistent list",
		"--log /dev/null --root /nonexistent state absent", "list --format nonsense",
	} {
		same(strings.Fields(args)...)
	}
	// Of a bundle that does not exist runc knows less to say.
	if got := w.runtime("mentat", "--systemd-cgroup", "--debug", "create", "--bundle", "/nonexistent", "x"); got.code != 1 || !strings.Contains(got.stderr, "config.json") {
		t.Errorf("%+v", got)
	}

	on("list")
	on("list", "-q")
	on("list", "--format", "json")
	on("--log-format", "json", "state", b.id)
	on("state", b.id)
	on("ps", b.id)
	on("ps", "--format", "json", b.id)
	on("resume", b.id) // it is not paused
	on("exec", b.id, "/bin/echo", "before the start")
	b.ok("start", b.id)
	on("start", b.id) // it runs already
	on("state", b.id)
	on("delete", b.id) // it is running
	keys("events", "--stats", b.id)
	on("exec", b.id, "/bin/echo", "inside")
	on("exec", "--cwd", "/tmp", "-e", "A=B", "--user", "1:1", b.id, "/bin/sh", "-c", "pwd; echo $A; id -u; exit 3")
	for _, change := range []struct{ command, status string }{{"pause", "paused"}, {"resume", "running"}} {
		b.ok(change.command, b.id)
		if s := b.status(); s != change.status {
			t.Errorf("%q after %s", s, change.command)
		}
		on(change.command, b.id)
		on("state", b.id)
	}
	b.ok("update", "--memory", strconv.Itoa(64<<20), "--pids-limit", "77", b.id)
	on("update", "--memory", "nonsense", b.id)
	if got := w.runtime("runc", append(slices.Clone(state), "events", "--stats", b.id)...); !strings.Contains(got.stdout, strconv.Itoa(64<<20)) {
		t.Errorf("update changed nothing: %s", got.stdout)
	}
	if got := b.runtime("mentat", "--root", b.root, "--debug", "state", b.id); got.code != 0 || !strings.Contains(got.stdout, b.id) {
		t.Errorf("--debug: %+v", got)
	}

	for _, args := range [][]string{{"spec"}, {"spec", "--rootless"}} {
		var specs [2]string
		for i, binary := range []string{"mentat", "runc"} {
			dir := t.TempDir()
			if got := w.runtime(binary, append(slices.Clone(args), "--bundle", dir)...); got.code != 0 {
				t.Errorf("%s %q: %+v", binary, args, got)
			}
			data, err := os.ReadFile(filepath.Join(dir, "config.json"))
			if err != nil {
				t.Error(err)
			}
			specs[i] = string(data)
		}
		if specs[0] != specs[1] || specs[0] == "" {
			t.Errorf("%q: the specifications differ", args)
		}
	}

	b.ok("kill", b.id, "KILL")
	if got := b.exited(pid); got != 137 {
		t.Errorf("status %d", got)
	}
	on("kill", b.id, "KILL")
	on("state", b.id)
	on("ps", b.id)
	b.ok("delete", b.id)
	on("state", b.id)
	on("list")
}

func TestACommandLineCannotBringAnotherBundleThanTheOneJudged(t *testing.T) {
	w := newWorld(t, node.Config{})
	box := w.container("busybox")
	b := w.bundle(box, "/bin/sh", "-c", "echo "+marker)
	// Behind the id runc still reads flags.
	got := b.runtime("mentat", b.args("run", b.id, "--bundle", b.dir)...)
	if got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	for name, args := range map[string][]string{
		"two ids":             {"run", "--bundle", b.dir, b.id, "other"},
		"no id":               {"run", "--bundle", b.dir},
		"an unknown flag":     {"run", "--bundle", b.dir, "--unknown", b.id},
		"a flag of no value":  {"run", b.id, "--bundle"},
		"an unknown id":       {"run", "--bundle", b.dir, "never-created"},
		"no config.json":      {"run", "--bundle", t.TempDir(), b.id},
		"contradictory names": {"run", "--bundle", t.TempDir(), "-b", b.dir, b.id},
		"another's global":    {"--cgroup-manager", "systemd", "run", "--bundle", b.dir, b.id},
	} {
		got := b.runtime("mentat", b.args(args...)...)
		if got.code == 0 || strings.Contains(got.stdout, marker) || got.stderr == "" {
			t.Errorf("%s: status %d, stdout %q, stderr %q", name, got.code, got.stdout, got.stderr)
		}
		if name == "no config.json" && !strings.Contains(got.stderr, "the bundle has no readable specification") {
			t.Errorf("%s: %q", name, got.stderr)
		}
	}
	for name, env := range map[string]string{"a namespace": "NAMESPACE=", "the same namespace": "NAMESPACE=other", "a containerd": "GRPC_ADDRESS=" + w.ConfigFile()} {
		cmd := w.Command(t.Context(), "mentat", b.args("run", "--bundle", b.dir, b.id)...)
		cmd.Env = append(cmd.Env, "GRPC_ADDRESS="+w.Socket, "NAMESPACE="+w.Namespace, env)
		out, err := cmd.CombinedOutput()
		if err == nil || strings.Contains(string(out), marker) {
			t.Errorf("without %s: %v, %s", name, err, out)
		}
	}
}

func TestTasksUnderTheRuncShimAreManagedAsUsual(t *testing.T) {
	w := newWorld(t, node.Config{})
	binary := filepath.Join(binDir(), "mentat")
	exits := w.exits()
	for _, tc := range []struct {
		ref  string
		exec string // what exec answers
	}{
		{w.agent("sleep", guestSleep, ""), "a WASM agent has no shell"},
		{w.container("busybox", "/bin/sleep", "600"), "inside\n"},
	} {
		id := w.id()
		tk := &task{world: w, id: id}
		t.Cleanup(tk.remove)
		w.ctr("run", "--detach", "--runc-binary", binary, tc.ref, id)
		out, err := w.Ctr(t.Context(), "tasks", "exec", "--exec-id", "e", id, "/bin/echo", "inside")
		if err != nil {
			out = err.Error()
		}
		if !strings.Contains(out, tc.exec) {
			t.Errorf("%s: exec answers %q", tc.ref, out)
		}
		for _, change := range []struct{ command, state string }{{"pause", "PAUSED"}, {"resume", "RUNNING"}} {
			w.ctr("tasks", change.command, id)
			if s := tk.state(); s != change.state {
				t.Errorf("%s: %s after %s", tc.ref, s, change.command)
			}
		}
		w.ctr("tasks", "metrics", id)
		w.ctr("tasks", "kill", "-s", "SIGKILL", id)
		eventually(t, "SIGKILL's status", func() bool { return exits(id) == 137 })
		tk.remove()
	}
}

// hook is a program that writes what it is given on standard input to a file.
func hook(t *testing.T, to string) specs.Hook {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hook")
	script := "#!/bin/sh\n/bin/cat >" + to + "\necho >>" + to + "\n"
	if err := os.WriteFile(name, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return specs.Hook{Path: name, Args: []string{name}, Env: []string{"PATH=/bin"}}
}

func TestHooksOfTheSpecificationRun(t *testing.T) {
	w := newWorld(t, node.Config{})
	images := map[string]string{"agent": w.agent("marker", guestMarker(20), ""), "container": w.container("busybox", "/bin/echo", marker)}
	client, ctx := w.client()
	for _, runtime := range []string{mentatRuntime, runcRuntime} {
		for form, ref := range images {
			t.Run(form+" under "+runtime, func(t *testing.T) {
				w := w.within(t)
				dir := t.TempDir()
				hooked := func(_ context.Context, _ ocispecs.Client, _ *containers.Container, s *ocispecs.Spec) error {
					s.Hooks = &specs.Hooks{
						CreateRuntime: []specs.Hook{hook(t, filepath.Join(dir, "create"))},
						Poststop:      []specs.Hook{hook(t, filepath.Join(dir, "poststop"))},
					}
					s.Annotations = map[string]string{"nerdctl/probe": "kept"}
					return nil
				}
				out := w.through(ctx, client, ref, runtime, hooked)
				if out != marker+"\n" {
					t.Errorf("output %q", out)
				}
				for _, name := range []string{"create", "poststop"} {
					data, err := os.ReadFile(filepath.Join(dir, name))
					if err != nil || !strings.Contains(string(data), `"nerdctl/probe":"kept"`) {
						t.Errorf("hook %s: %q, %v", name, data, err)
					}
				}
			})
		}
	}
}

// through runs an image to its end as a Go client does and returns its output.
func (w *world) through(ctx context.Context, client *containerd.Client, ref, runtime string, change ...ocispecs.SpecOpts) string {
	w.t.Helper()
	var stdout bytes.Buffer
	w.into(ctx, &stdout, client, ref, runtime, change...)
	return stdout.String()
}

// into is [world.through] with a writer for the output. Under the runc shim the
// runtime is found on PATH, as nerdctl names it.
func (w *world) into(ctx context.Context, stdout io.Writer, client *containerd.Client, ref, runtime string, change ...ocispecs.SpecOpts) {
	w.t.Helper()
	image, err := client.GetImage(ctx, ref)
	if err != nil {
		w.t.Fatal(err)
	}
	var options any
	if runtime == runcRuntime {
		options = &runcoptions.Options{BinaryName: "mentat"}
	}
	id := w.id()
	c, err := client.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime(runtime, options),
		containerd.WithNewSpec(append([]ocispecs.SpecOpts{ocispecs.WithDefaultSpecForPlatform("linux/amd64"), ocispecs.WithImageConfig(image), ocispecs.WithCgroup("/" + w.Namespace + "/" + id)}, change...)...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			w.t.Error(err)
		}
	}()
	var stderr bytes.Buffer
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(strings.NewReader(""), stdout, &stderr), cio.WithFIFODir(w.t.TempDir())))
	if err != nil {
		w.t.Fatal(err)
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		w.t.Fatal(err)
	}
	select {
	case s := <-exit:
		if s.ExitCode() != 0 {
			w.t.Errorf("status %d, stderr %q", s.ExitCode(), stderr.String())
		}
		// The client's Delete closes its ends at once, whatever they still hold.
		task.IO().Wait()
	case <-time.After(time.Minute):
		w.t.Error("the task does not end")
	}
	if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
		w.t.Error(err)
	}
}

func TestNerdctlPullsAndRunsAgents(t *testing.T) {
	nerdctl, err := exec.LookPath("nerdctl")
	if err != nil {
		t.Skip("nerdctl is not on PATH")
	}
	w := newWorld(t, node.Config{})
	registry, err := w.StartRegistry(t.Context(), node.RegistryConfig{})
	if err != nil {
		t.Fatal(err)
	}
	l, _ := w.build("marker", assemble(t, guestMarker(21)), "")
	ref := registry.Host + "/agents/marker:1.0.0"
	c, err := remote.New(remote.Options{DockerConfig: filepath.Join(w.Etc, "docker", "config.json")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Push(t.Context(), l, ref); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := w.Command(ctx, nerdctl, append([]string{
			"--address", w.Socket, "--namespace", w.Namespace, "--data-root", filepath.Join(w.Root, "nerdctl"),
			"--cgroup-manager", "cgroupfs", "--cni-path", filepath.Join(w.Root, "cni/bin"), "--cni-netconfpath", filepath.Join(w.Root, "cni/conf"),
			"--hosts-dir", filepath.Join(w.Etc, "certs.d"), "--insecure-registry",
		}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("nerdctl %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	run("pull", "--all-platforms", ref)
	for _, runtime := range []string{"mentat", mentatRuntime} {
		if out := run("run", "--rm", "--network", "none", "--runtime", runtime, ref); !strings.Contains(out, marker) {
			t.Errorf("--runtime %s: %q", runtime, out)
		}
	}
}
