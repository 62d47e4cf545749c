package sdk

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
	"github.com/mentatlab/mentat/sdk/internal/pack"
)

func TestTheEmbeddedSDKIsUpToDate(t *testing.T) {
	want, err := pack.Archive(os.DirFS("go"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(goArchive, want) {
		t.Error("embedded/go.txtar is not what sdk/go holds: run go generate ./sdk")
	}
}

func TestTheEmbeddedSDKIsTheWholeModule(t *testing.T) {
	for _, name := range []string{"go.mod", "agent/agent.go", "agent/run_wasm.go", "agent/run_wasm.s", "agenttest/agenttest.go", "internal/mentat/module_wasm.go"} {
		if data, err := fs.ReadFile(Go(), name); err != nil || len(data) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(data), err)
		}
	}
	err := fs.WalkDir(Go(), ".", func(name string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s is embedded", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTemplateRefusesWhatIsNoIDLanguageOrImage(t *testing.T) {
	for _, c := range []struct{ lang, id, image, want string }{
		{"go", "", "", "not an agent's id"},
		{"go", "Upper", "", "not an agent's id"},
		{"go", "a..b", "", "not an agent's id"},
		{"go", "../a", "", "not an agent's id"},
		{"go", "a\nmodule: x", "", "not an agent's id"},
		{"go", strings.Repeat("a", 129), "", "up to 128 characters"},
		{"go", "a.b", "x:1\nruntime: python3.12", "not an image reference"},
		{"go", "a.b", "a b", "not an image reference"},
		{"cobol", "a.b", "", "allowed are go"},
	} {
		files, err := Template(c.lang, c.id, c.image)
		if fault.ReasonOf(err) != fault.Usage || !strings.Contains(err.Error(), c.want) || files != nil {
			t.Errorf("%q %q %q: %d files, %v, want %q", c.lang, c.id, c.image, len(files), err, c.want)
		}
	}
}

func TestTheManifestOfATemplateIsValid(t *testing.T) {
	for _, image := range []string{"", "harbor.lan/agents/hello:0.1.0"} {
		files, err := Template("go", "example.hello-world", image)
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Parse("manifest.yaml", files["manifest.yaml"])
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != "example.hello-world" || m.Image != image || m.Module != "agent.wasm" || m.Runtime != "wasm" {
			t.Errorf("%+v", m)
		}
		if problems := m.Lint(); len(problems) != 0 {
			t.Errorf("%v", problems)
		}
	}
}

// TestATemplateBuildsOffline builds the agent with an empty home and module
// cache; only the build cache, which holds nothing but compiled standard
// packages for it, is shared to save time.
func TestATemplateBuildsOffline(t *testing.T) {
	files, err := Template("go", "example.hello", "")
	if err != nil {
		t.Fatal(err)
	}
	dir, home := t.TempDir(), t.TempDir()
	for name, data := range files {
		to := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	goCommand := func(env []string, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GOMODCACHE=" + filepath.Join(home, "mod"),
			"GOCACHE=" + strings.TrimSpace(string(cache)), "GOPROXY=off", "GOTOOLCHAIN=local", "GOWORK=off", "GOFLAGS="}, env...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Stdin = bytes.NewReader(files["input.json"])
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %v: %v\n%s%s", args, err, out, &stderr)
		}
		return out
	}
	goCommand(nil, "vet", "./...")
	goCommand(nil, "test", "./...")

	var out struct {
		Count       int
		Frequencies map[string]int
	}
	if data := goCommand(nil, "run", "."); json.Unmarshal(data, &out) != nil || out.Count != 12 || out.Frequencies["the"] != 3 {
		t.Errorf("go run: %s", data)
	}

	goCommand([]string{"GOOS=wasip1", "GOARCH=wasm"}, "build", "-buildmode=c-shared", "-o", "agent.wasm", ".")
	wasm, err := os.ReadFile(filepath.Join(dir, "agent.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := module.Inspect(wasm)
	if err != nil {
		t.Fatal(err)
	}
	if err := info.Check(); err != nil {
		t.Errorf("the module uses what no host has: %v", err)
	}
	if info.Entry != "process" || !info.Reactor {
		t.Errorf("entry %q, reactor %v", info.Entry, info.Reactor)
	}
	t.Logf("agent.wasm: %d bytes", len(wasm))
}
