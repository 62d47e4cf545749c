package toolchain

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

func TestAGoBuildIsNotChangedByTheEnvironment(t *testing.T) {
	env := goEnv(Options{Environ: []string{"GOFLAGS=-tags=evil", "GOWORK=/up/go.work", "GOOS=linux", "CGO_ENABLED=1", "GOEXPERIMENT=x", "GOPROXY=p", "PATH=/bin"}})
	for _, want := range []string{"GOOS=wasip1", "GOARCH=wasm", "GOWORK=off", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0", "GOPROXY=p", "PATH=/bin"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %v", want, env)
		}
	}
	seen := map[string]bool{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if seen[name] || name == "GOEXPERIMENT" {
			t.Errorf("%s is there twice, or at all", name)
		}
		seen[name] = true
	}
}

func TestAnOfflineBuildFetchesNothing(t *testing.T) {
	env := goEnv(Options{Offline: true, Environ: []string{"GOPROXY=https://proxy.example.com", "GOTOOLCHAIN=auto"}})
	for _, want := range []string{"GOPROXY=off", "GOTOOLCHAIN=local"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %v", want, env)
		}
	}
}

func TestDetectNamesTheToolchainOrRefusesToChoose(t *testing.T) {
	for files, want := range map[string]Kind{"": None, "go.mod": Go, "Cargo.toml": Cargo, "package.json": None} {
		dir := t.TempDir()
		if files != "" {
			touch(t, filepath.Join(dir, files))
		}
		if got, err := Detect(dir); got != want || err != nil {
			t.Errorf("%q: %q, %v", files, got, err)
		}
	}
	dir := t.TempDir()
	touch(t, filepath.Join(dir, "go.mod"))
	touch(t, filepath.Join(dir, "Cargo.toml"))
	if _, err := Detect(dir); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("both: %v", err)
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCargosMessagesNameTheModule(t *testing.T) {
	messages := `{"reason":"compiler-artifact","filenames":["/t/libdep.rlib"]}
not json
{"reason":"compiler-artifact","filenames":["/t/agent.wasm","/t/agent.d"]}
{"reason":"build-finished","success":true}
`
	if got := artifacts([]byte(messages)); !slices.Equal(got, []string{"/t/agent.wasm"}) {
		t.Errorf("got %v", got)
	}
}

func TestInputsAreThoseBelowTheDirectoryThatNoNameTells(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.d")
	text := dir + "/agent.wasm: " + dir + "/src/lib.rs " + dir + "/src/a\\ prompt.txt /elsewhere/std.txt\n\nother:\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := below(dir, Cargo, dependencies(path)); !slices.Equal(got, []string{"src/a prompt.txt"}) {
		t.Errorf("got %q", got)
	}
	if got := dependencies(filepath.Join(dir, "none.d")); got != nil {
		t.Errorf("got %q", got)
	}
}

func TestSourcesAreKnownByTheirNames(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		path string
		want bool
	}{
		{Go, "main.go", true}, {Go, "a/b.go", true}, {Go, "main_test.go", false}, {Go, "go.sum", true}, {Go, "input.json", false},
		{Cargo, "src/lib.rs", true}, {Cargo, "Cargo.lock", true}, {Cargo, ".cargo/config.toml", true}, {Cargo, "README.md", false},
		{None, "main.go", false},
	} {
		if got := IsSource(c.kind, c.path); got != c.want {
			t.Errorf("%s %s: %v", c.kind, c.path, got)
		}
	}
}
