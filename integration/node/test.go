package node

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// TB is the part of [testing.TB] that this package needs, so that the demo does
// not link the testing package.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Failed() bool
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Where tests find binaries when they are not the ones of `make build` and
// `make tools` in this source tree.
const (
	BinEnv   = "MENTAT_TEST_BIN"
	ToolsEnv = "MENTAT_TEST_TOOLS"
)

// Binaries returns the directories for [Config.Bin] and [Config.Tools].
func Binaries() (bin, tools string) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	bin, tools = os.Getenv(BinEnv), os.Getenv(ToolsEnv)
	if bin == "" {
		bin = filepath.Join(root, "bin")
	}
	if tools == "" {
		tools = filepath.Join(root, "bin", "tools")
	}
	return bin, tools
}

// Privileged skips a test that needs root or the node's tools where they are
// not to be had. The runner of `make test` counts such a skip as a failure.
func Privileged(t TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: run `make integration` as root")
	}
	bin, tools := Binaries()
	for _, name := range append([]string{"containerd", "ctr", "runc", "registry"}, programs...) {
		found := false
		for _, dir := range []string{bin, tools} {
			if _, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				found = true
			}
		}
		if !found {
			t.Skipf("needs %s: run `make build tools`", name)
		}
	}
}

// Run starts a node for a test. When the test ends, nothing that it started may
// be left; if it failed, the node's logs are shown.
func Run(t TB, cfg Config) *Node {
	t.Helper()
	bin, tools := Binaries()
	if cfg.Bin == "" {
		cfg.Bin = bin
	}
	if cfg.Tools == "" {
		cfg.Tools = tools
	}
	n, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start a node: %v", err)
	}
	t.Cleanup(func() {
		if left, err := n.Settled(5 * time.Second); err != nil || !left.None() {
			t.Errorf("the test left behind (error %v):\n%s", err, left)
		}
		if t.Failed() {
			t.Logf("%s", n.Logs())
		}
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	return n
}
