package arch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"
)

// linterEnv names the golangci-lint to test; scripts/lint.sh sets it.
const linterEnv = "GOLANGCI_LINT"

// wantRE matches a line with expectations, findingRE each of them.
var (
	wantRE    = regexp.MustCompile(`// want(?:\+([1-9]))? (.*)`)
	findingRE = regexp.MustCompile(`"([a-z]+): ([^"]*)"`)
)

// finding is one expected or reported finding.
type finding struct{ linter, text string }

func fixtures(t *testing.T) (files []txtar.File, wants map[string][]finding) {
	t.Helper()
	ar, err := txtar.ParseFile(filepath.Join("testdata", "lint.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	wants = map[string][]finding{}
	for _, f := range ar.Files {
		for i, line := range bytes.Split(f.Data, []byte("\n")) {
			m := wantRE.FindSubmatch(line)
			if m == nil {
				continue
			}
			below := 0
			if len(m[1]) > 0 {
				below = int(m[1][0] - '0')
			}
			at := fmt.Sprintf("%s:%d", f.Name, i+1+below)
			for _, m := range findingRE.FindAllSubmatch(m[2], -1) {
				wants[at] = append(wants[at], finding{string(m[1]), string(m[2])})
			}
			if len(wants[at]) == 0 {
				t.Fatalf("%s: no expectation after want", at)
			}
		}
	}
	if len(wants) == 0 {
		t.Fatal("no expectations")
	}
	return ar.Files, wants
}

// lintConfig is the part of .golangci.yml that must have a fixture.
type lintConfig struct {
	Linters struct {
		Enable   []string
		Settings struct {
			Forbidigo struct {
				Forbid []struct{ Pattern, Msg string }
			}
			Depguard struct {
				Rules map[string]struct {
					Deny []struct{ Pkg, Desc string }
				}
			}
			Revive struct {
				Rules []struct {
					Name     string
					Disabled bool
				}
			}
		}
	}
	Formatters struct{ Enable []string }
}

func TestEveryBanOfTheLinterHasAReasonAndAFixture(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var cfg lintConfig
	if err := yaml.Unmarshal(data, &cfg); err != nil {
		t.Fatal(err)
	}
	_, wants := fixtures(t)
	has := func(linter, message string) bool {
		for _, fs := range wants {
			if slices.ContainsFunc(fs, func(f finding) bool {
				return f.linter == linter && (message == "" || strings.Contains(message, f.text))
			}) {
				return true
			}
		}
		return false
	}
	s := cfg.Linters.Settings
	if len(cfg.Linters.Enable) < 10 || len(s.Forbidigo.Forbid) < 5 || len(s.Depguard.Rules) < 5 || len(s.Revive.Rules) < 5 {
		t.Fatalf("the configuration was not understood: %+v", cfg)
	}
	for _, l := range append(cfg.Linters.Enable, cfg.Formatters.Enable...) {
		if !has(l, "") {
			t.Errorf("no fixture for the linter %s", l)
		}
	}
	for _, f := range s.Forbidigo.Forbid {
		if f.Msg == "" || !has("forbidigo", f.Msg) {
			t.Errorf("forbidigo %s: no reason or no fixture", f.Pattern)
		}
	}
	for rule, r := range s.Depguard.Rules {
		for _, d := range r.Deny {
			if d.Desc == "" || !has("depguard", d.Desc) {
				t.Errorf("depguard %s %s: no reason or no fixture", rule, d.Pkg)
			}
		}
	}
	for _, r := range s.Revive.Rules {
		if !r.Disabled && !has("revive", r.Name) {
			t.Errorf("no fixture for revive's rule %s", r.Name)
		}
	}
}

func TestEachBanOfTheLinterFires(t *testing.T) {
	linter := os.Getenv(linterEnv)
	if linter == "" {
		t.Skipf("%s names no golangci-lint: scripts/lint.sh runs this test", linterEnv)
	}
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	files, wants := fixtures(t)
	dir := t.TempDir()
	config, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, txtar.File{Name: ".golangci.yml", Data: config}) {
		path := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), linter, "run", "--allow-parallel-runners", "--output.json.path=stdout", "--show-stats=false", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOLANGCI_LINT_CACHE="+t.TempDir(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		t.Fatalf("the linter is content with the fixtures: %s", out)
	}
	var report struct {
		Issues []struct {
			FromLinter, Text string
			Pos              struct {
				Filename string
				Line     int
			}
		}
	}
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&report); err != nil {
		t.Fatalf("%v: %s%s", err, out, &stderr)
	}
	for _, issue := range report.Issues {
		at := fmt.Sprintf("%s:%d", filepath.ToSlash(issue.Pos.Filename), issue.Pos.Line)
		i := slices.IndexFunc(wants[at], func(f finding) bool {
			return f.linter == issue.FromLinter && strings.Contains(issue.Text, f.text)
		})
		if i < 0 {
			t.Errorf("%s: unexpected: %s: %s", at, issue.FromLinter, issue.Text)
			continue
		}
		wants[at] = slices.Delete(wants[at], i, i+1)
	}
	var missing []string
	for at, fs := range wants {
		for _, f := range fs {
			missing = append(missing, fmt.Sprintf("%s: does not fire: %s: %s", at, f.linter, f.text))
		}
	}
	sort.Strings(missing)
	for _, m := range missing {
		t.Error(m)
	}
}
