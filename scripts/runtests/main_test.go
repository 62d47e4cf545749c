package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheLastLineCountsAndTheVerdictFollows(t *testing.T) {
	const head = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
`
	const passed = `{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	tests := map[string]struct {
		events  string
		allowed map[string]string
		want    []string
		ok      bool
	}{
		"all pass": {events: head + passed, want: []string{"ok  \tp\t0.1s\n", "1 passed, 0 failed, 0 skipped"}, ok: true},
		"a test fails": {
			events: head + `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: why\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`,
			want: []string{"a_test.go:1: why", "0 passed, 1 failed, 0 skipped"},
		},
		"a package does not build": {
			events: `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: syntax error\n"}
{"Action":"fail","Package":"p","FailedBuild":"p"}
` + strings.ReplaceAll(head+passed, `"p"`, `"q"`),
			want: []string{"p.go:1: syntax error", "FAILED: p", "1 passed, 1 failed, 0 skipped"},
		},
		"a crash shows the test it happened in": {
			events: head + `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}
{"Action":"fail","Package":"p"}`,
			want: []string{"panic: oh", "FAILED: p"},
		},
		"a skip that nobody allowed fails": {
			events: head + `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
` + strings.ReplaceAll(head+passed, "TestA", "TestB"),
			want: []string{"must run: p TestA: needs root", "1 passed, 0 failed, 1 skipped"},
		},
		"an allowed skip covers subtests": {
			events: strings.ReplaceAll(head, "TestA", "TestA/x/y") + `{"Action":"skip","Package":"p","Test":"TestA/x/y"}
` + strings.ReplaceAll(head+passed, "TestA", "TestB"),
			allowed: map[string]string{"TestA": "nerdctl is not on PATH"},
			want:    []string{"skipped: p TestA/x/y", "1 passed, 0 failed, 1 skipped"},
			ok:      true,
		},
		"nothing ran": {want: []string{"no test ran"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			tally := &tally{out: &out, started: time.Now(), allowed: tt.allowed}
			if _, err := tally.read(strings.NewReader(tt.events)); err != nil {
				t.Fatal(err)
			}
			if ok := tally.close(); ok != tt.ok {
				t.Errorf("verdict %v, want %v", ok, tt.ok)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, out.String())
				}
			}
			if strings.Contains(out.String(), "=== RUN") {
				t.Errorf("noise in:\n%s", out.String())
			}
		})
	}
}

func TestASkipIsOnlyAllowedWithAReason(t *testing.T) {
	for text, ok := range map[string]bool{
		"# comment\n\nTestX: because\n": true,
		"TestX\n":                       false,
		"TestX: \n":                     false,
		"x: because\n":                  false,
	} {
		name := filepath.Join(t.TempDir(), "skips")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSkips(name); (err == nil) != ok {
			t.Errorf("%q: error %v", text, err)
		}
	}
}
