package aot

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestTheCompilerReachesNothing needs root to mean anything: without it
// the child keeps its caller's user and file system, and only what holds for
// both is checked.
func TestTheCompilerReachesNothing(t *testing.T) {
	host := filepath.Join(t.TempDir(), "mentat-host")
	build := exec.Command("go", "build", "-o", host, "./testdata/confined")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var lines []string
	f := newFixture(t, func(o *Options) {
		o.HostBinary = host
		o.Report = func(line string) { lines = append(lines, line) }
	})
	t.Setenv("SECRET", "of the caller")
	e, err := f.Module(t.Context(), digest.FromString("ok"), opener([]byte("ok")))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(e.Path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Args, Root                   []string
		Env, UID, PID, Groups, Links int
		Descriptors                  []int
		Writes                       bool
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %q", data, lines)
	if got.Env != 0 || !slices.Equal(got.Args, []string{"compile"}) {
		t.Errorf("arguments %q and %d variables", got.Args, got.Env)
	}
	// The Go runtime of the child may have opened its own poller after these.
	if len(got.Descriptors) < 4 || !slices.Equal(got.Descriptors[:4], []int{0, 1, 2, 3}) || len(got.Descriptors) > 6 {
		t.Errorf("descriptors %v", got.Descriptors)
	}
	if os.Geteuid() != 0 {
		t.Log("not root: namespaces, user and root directory of the child are not checked")
		return
	}
	if got.UID < 0x70000000 || got.PID != 1 || got.Groups != 0 || got.Links != 1 || got.Writes || !slices.Equal(got.Root, []string{jailBinary}) {
		t.Errorf("the child reaches too much: %s", data)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "no cgroup") && !strings.HasPrefix(line, "the compiler has only the limits of its cgroup") {
			t.Errorf("report: %s", line)
		}
	}
}
