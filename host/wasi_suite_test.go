package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// suiteEnv names a checkout of WASI's own test suite, the branch with compiled
// modules. No package registry carries them, so that this test runs where
// somebody has one.
const suiteEnv = "MENTAT_WASI_TESTSUITE"

// expectation is what the suite says of one module.
type expectation struct {
	Args     []string          `json:"args"`
	Env      map[string]string `json:"env"`
	Root     string            `json:"root"`
	ExitCode int               `json:"exit_code"`
	Stdout   *string           `json:"stdout"`
}

// Each module runs as the only run of a process and as one of many.
func TestTheOfficialWASISuitePasses(t *testing.T) {
	dir := os.Getenv(suiteEnv)
	if dir == "" {
		t.Skipf("set %s to a checkout of the prod/testsuite-base branch of WebAssembly's wasi-testsuite", suiteEnv)
	}
	modules, err := filepath.Glob(filepath.Join(dir, "tests", "*", "testsuite", "wasm32-wasip1", "*.wasm"))
	if err != nil || len(modules) == 0 {
		t.Fatalf("no modules below %s: %v", dir, err)
	}
	for _, module := range modules {
		name, _ := strings.CutSuffix(module, ".wasm")
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(module))))+"/"+filepath.Base(name), func(t *testing.T) {
			code, err := os.ReadFile(module)
			if err != nil {
				t.Fatal(err)
			}
			var want expectation
			if text, err := os.ReadFile(name + ".json"); err == nil {
				if err := json.Unmarshal(text, &want); err != nil {
					t.Fatal(err)
				}
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			compiled, err := Compile(code)
			if err != nil {
				t.Fatal(err)
			}
			for _, once := range []bool{true, false} {
				runSuite(t, filepath.Dir(module), filepath.Base(name), compiled, want, once)
			}
		})
	}
}

func runSuite(t *testing.T, dir, name string, compiled []byte, want expectation, once bool) {
	t.Helper()
	scratch := t.TempDir()
	doc := &hostdoc.Document{
		Version: hostdoc.Version, Instance: name, Entry: hostdoc.EntryCommand,
		Module: filepath.Join(scratch, "module.cwasm"), Input: hostdoc.Input{Kind: hostdoc.InputStdin},
		Args:   append([]string{name}, want.Args...),
		Limits: hostdoc.Limits{MemoryBytes: 64 * limits.MiB, InputBytes: limits.InputBytes, OutputBytes: limits.OutputBytes, DeadlineMillis: 60_000},
	}
	if err := os.WriteFile(doc.Module, compiled, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range slices.Sorted(maps.Keys(want.Env)) {
		doc.Env = append(doc.Env, k+"="+want.Env[k])
	}
	if want.Root != "" {
		root := filepath.Join(scratch, "root")
		if err := os.CopyFS(root, os.DirFS(filepath.Join(dir, want.Root))); err != nil {
			t.Fatal(err)
		}
		doc.Preopens = []hostdoc.Preopen{{Host: root, Guest: "/"}}
	}
	var out, errs bytes.Buffer
	var exit hostdoc.Exit
	if once {
		exit, _ = Once(t.Context(), doc, Options{}, Streams{Stdout: &out, Stderr: &errs})
	} else {
		p, err := Load(doc, Options{Stderr: &errs})
		if err != nil {
			t.Fatal(err)
		}
		exit, _ = p.Run(t.Context(), IO{ID: name, Sink: output.NewRaw(&out)})
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if exit.Status != want.ExitCode || want.Stdout != nil && out.String() != *want.Stdout {
		t.Errorf("once %v: %+v, want status %d; stdout %q; stderr %s", once, exit, want.ExitCode, out.String(), errs.String())
	}
}

// The tests that Go's own package os has for WASI, run as a guest: files,
// directories, links, times and pipes as a large runtime uses them.
func TestGosOwnTestsOfFilesPass(t *testing.T) {
	if testing.Short() {
		t.Skip("building and compiling the tests takes a minute")
	}
	scratch := t.TempDir()
	module := filepath.Join(scratch, "os.wasm")
	cmd := exec.Command("go", "test", "-c", "-o", module, "os")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := Compile(code)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(scratch, "os.cwasm")
	if err := os.WriteFile(path, compiled, 0o600); err != nil {
		t.Fatal(err)
	}
	env, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	goroot := strings.TrimSpace(string(env))
	// The tests write beside their sources.
	root := t.TempDir()
	sources := filepath.Join(root, "src", "os")
	if err := os.CopyFS(sources, os.DirFS(filepath.Join(goroot, "src", "os"))); err != nil {
		t.Fatal(err)
	}
	doc := &hostdoc.Document{
		Version: hostdoc.Version, Instance: "os", Entry: hostdoc.EntryCommand, Module: path, Input: hostdoc.Input{Kind: hostdoc.InputStdin},
		// No device is opened.
		Args: []string{"os.test", "-test.short", "-test.v", "-test.skip=DevNull"},
		Env:  []string{"PWD=/src/os", "TMPDIR=/tmp", "GOROOT=" + goroot},
		Preopens: []hostdoc.Preopen{
			{Host: root, Guest: "/"}, {Host: goroot, Guest: goroot, ReadOnly: true}, {Host: t.TempDir(), Guest: "/tmp"}, {Host: "/etc", Guest: "/etc", ReadOnly: true},
		},
		Limits: hostdoc.Limits{MemoryBytes: 512 * limits.MiB, InputBytes: limits.InputBytes, OutputBytes: limits.OutputBytes, DeadlineMillis: 300_000},
	}
	var out, errs bytes.Buffer
	exit, _ := Once(t.Context(), doc, Options{}, Streams{Stdout: &out, Stderr: &errs})
	passed, failed := strings.Count(out.String(), "--- PASS: "), strings.Count(out.String(), "--- FAIL: ")
	if exit.Status != 0 || passed < 100 || failed > 0 {
		t.Errorf("%+v: %d passed, %d failed\n%s\n%s", exit, passed, failed, out.String(), errs.String())
	}
}
