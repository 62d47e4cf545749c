package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// WASI's own test suite under the narrowest lock: what the guests need of the
// system is left to the host. The variable is that of the host's own test, which
// says what the suite is.
func TestTheOfficialWASISuitePassesUnderTheLock(t *testing.T) {
	const suite = "MENTAT_WASI_TESTSUITE"
	dir := os.Getenv(suite)
	if dir == "" {
		t.Skipf("set %s to a checkout of the prod/testsuite-base branch of WebAssembly's wasi-testsuite", suite)
	}
	modules, err := filepath.Glob(filepath.Join(dir, "tests", "*", "testsuite", "wasm32-wasip1", "*.wasm"))
	if err != nil || len(modules) == 0 {
		t.Fatalf("no modules below %s: %v", dir, err)
	}
	for _, module := range modules {
		t.Run(strings.TrimSuffix(filepath.Base(module), ".wasm"), func(t *testing.T) { runLocked(t, module) })
	}
}

// runLocked runs one module of the suite.
func runLocked(t *testing.T, module string) {
	t.Helper()
	name := strings.TrimSuffix(filepath.Base(module), ".wasm")
	var want struct {
		Args     []string          `json:"args"`
		Env      map[string]string `json:"env"`
		Root     string            `json:"root"`
		ExitCode int               `json:"exit_code"`
		Stdout   *string           `json:"stdout"`
	}
	if text, err := os.ReadFile(strings.TrimSuffix(module, ".wasm") + ".json"); err == nil {
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
	}
	code, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	doc := &hostdoc.Document{
		Agent: hostdoc.Agent{ID: "test.suite", Version: "1.0.0"}, Instance: "i1", Entry: hostdoc.EntryCommand, LogFormat: "text",
		Module: filepath.Join(scratch, "module.cwasm"), Input: hostdoc.Input{Kind: hostdoc.InputStdin}, Args: append([]string{name}, want.Args...),
		Limits: hostdoc.Limits{MemoryBytes: 64 * limits.MiB, InputBytes: limits.MiB, OutputBytes: limits.MiB, DeadlineMillis: 120_000},
	}
	for k, v := range want.Env {
		doc.Env = append(doc.Env, k+"="+v)
	}
	if want.Root != "" {
		root := filepath.Join(scratch, "root")
		if err := os.CopyFS(root, os.DirFS(filepath.Join(filepath.Dir(module), want.Root))); err != nil {
			t.Fatal(err)
		}
		doc.Preopens = []hostdoc.Preopen{{Host: root, Guest: "/"}}
	}
	path := filepath.Join(scratch, "host.json")
	doc.Lock = doc.LeastLock(path)
	compiled, stderr, status := compileIn(t, code)
	if status != 0 {
		t.Fatalf("%d: %s", status, stderr)
	}
	data, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{doc.Module: compiled, path: data} {
		if err := os.WriteFile(file, text, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	cmd := command(t, hostdoc.Command("", path, doc.Lock)[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if got := exitCode(t, err); got != want.ExitCode || want.Stdout != nil && string(out) != *want.Stdout {
		t.Errorf("status %d, want %d; stdout %q; stderr %s", got, want.ExitCode, out, errs.String())
	}
}
