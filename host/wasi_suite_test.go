package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
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

// Each module runs as the only run of a process and as one of many, which have a
// poll_oneoff of their own.
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
