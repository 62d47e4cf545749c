package node_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/integration/node"
)

// rootfs is a directory with a static busybox, which needs no image.
func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"bin", "proc", "dev", "sys", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "sh"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAContainerRunsOnAPrivateNode(t *testing.T) {
	node.Privileged(t, "containerd-shim-runc-v2")
	n := node.Run(t, node.Config{})
	out, err := n.CtrInput(t.Context(), []byte("hello\n"), "run", "--rm", "--rootfs", rootfs(t), "one", "/bin/sh", "-c", "read x; echo got $x")
	if err != nil {
		t.Fatal(err)
	}
	if out != "got hello\n" {
		t.Errorf("the container said %q", out)
	}
	left, err := n.Settled(5 * time.Second)
	if err != nil || !left.None() {
		t.Errorf("left behind (error %v):\n%s", err, left)
	}
}

func TestARunningTaskSurvivesContainerdAndIsCountedAsALeak(t *testing.T) {
	node.Privileged(t, "containerd-shim-runc-v2")
	n := node.Run(t, node.Config{})
	if _, err := n.Ctr(t.Context(), "run", "-d", "--rootfs", rootfs(t), "one", "/bin/sh", "-c", "while :; do read -t 1 x </dev/zero; done"); err != nil {
		t.Fatal(err)
	}
	if err := n.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Ctr(t.Context(), "tasks", "ls"); err != nil || !strings.Contains(out, "RUNNING") {
		t.Errorf("the task is gone: %q, %v", out, err)
	}
	left, err := n.Leaks()
	if err != nil {
		t.Fatal(err)
	}
	if len(left.Shims) < 2 || len(left.Cgroups) == 0 || len(left.Sockets) == 0 || len(left.State) == 0 || left.Descriptors == 0 {
		t.Errorf("a running task is not counted: %+v", left)
	}
	if _, err := n.Ctr(t.Context(), "tasks", "kill", "-s", "SIGKILL", "one"); err != nil {
		t.Error(err)
	}
	if _, err := n.Ctr(t.Context(), "tasks", "rm", "-f", "one"); err != nil {
		t.Error(err)
	}
	if _, err := n.Ctr(t.Context(), "containers", "rm", "one"); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsWhatIsStillRunning(t *testing.T) {
	node.Privileged(t, "containerd-shim-runc-v2")
	bin, tools := node.Binaries()
	for _, dead := range []bool{false, true} {
		n, err := node.Start(t.Context(), node.Config{Bin: bin, Tools: tools})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Ctr(t.Context(), "run", "-d", "--rootfs", rootfs(t), "one", "/bin/sh", "-c", "while :; do read -t 1 x </dev/zero; done"); err != nil {
			t.Error(err)
		}
		if dead { // nobody can be asked to remove the task
			if err := n.KillContainerd(); err != nil {
				t.Error(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Errorf("close (containerd dead: %v): %v", dead, err)
		}
		if _, err := os.Lstat(n.Root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", n.Root)
		}
		if err := n.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
	}
}

func TestARegistryAsksForItsPassword(t *testing.T) {
	node.Privileged(t)
	n := node.Run(t, node.Config{})
	r, err := n.StartRegistry(t.Context(), node.RegistryConfig{Username: "ada", Password: "right"})
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]int{"": 401, "wrong": 401, "right": 200} {
		if got := get(t.Context(), t, "http://"+r.Host+"/v2/", password); got != want {
			t.Errorf("password %q: status %d, want %d", password, got, want)
		}
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

func get(ctx context.Context, t *testing.T, url, password string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if password != "" {
		req.SetBasicAuth("ada", password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestCRIIsReadyWhenAskedFor(t *testing.T) {
	node.Privileged(t)
	n := node.Run(t, node.Config{CRI: true, SandboxImage: "localhost/pause:1"})
	out, err := n.Ctr(t.Context(), "plugins", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasPrefix(f[1], "cri") && f[len(f)-1] != "ok" {
			t.Errorf("plugin: %s", line)
		}
	}
}

func TestARootTooLongForSocketsIsRefused(t *testing.T) {
	node.Privileged(t)
	bin, tools := node.Binaries()
	_, err := node.Start(t.Context(), node.Config{Root: filepath.Join(t.TempDir(), strings.Repeat("x", 60)), Bin: bin, Tools: tools})
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}
