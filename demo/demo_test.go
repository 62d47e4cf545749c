package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"
)

func TestTheSneakyModuleIsItsText(t *testing.T) {
	text, err := os.ReadFile("sneaky.wat")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(marker)) {
		t.Errorf("it does not print %s", marker)
	}
	want, err := wasmtime.Wat2Wasm(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sneaky, want) {
		t.Errorf("sneaky.wasm is not sneaky.wat assembled, that is %q", want)
	}
}

func TestFoldedLinesFitAndSayTheSame(t *testing.T) {
	const text = "    one two three four five six seven eight nine ten"
	for n := 14; n < 60; n++ {
		lines := fold(text, n, "  ")
		if n > len(text) && len(lines) != 1 {
			t.Errorf("width %d: %q was folded", n, lines)
		}
		for _, line := range lines {
			if len(line) > n || !strings.HasPrefix(line, "    ") {
				t.Errorf("width %d: %q", n, line)
			}
		}
		if got, want := strings.Fields(strings.Join(lines, " ")), strings.Fields(text); strings.Join(got, "") != strings.Join(want, "") {
			t.Errorf("width %d: %q", n, got)
		}
	}
}

// The README's transcript is pasted by hand (go run ./demo -page README.md).
func TestTheREADMEShowsEveryStep(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, begins := strings.Cut(string(readme), pasteBegin)
	shown, _, ends := strings.Cut(shown, pasteEnd)
	if !begins || !ends {
		t.Fatal("it has no transcript")
	}
	source, err := os.ReadFile("steps.go")
	if err != nil {
		t.Fatal(err)
	}
	steps := regexp.MustCompile(`d\.step\("([^"]+)", "([^"]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(steps) < 10 {
		t.Fatalf("only %d steps found", len(steps))
	}
	for i, step := range steps {
		if title := fmt.Sprintf("\n%2d. %s\n", i+1, step[1]); !strings.Contains(shown, title) {
			t.Errorf("it does not show step %d, %s", i+1, step[1])
		}
	}
}

func TestAWrongAnswerIsNotCounted(t *testing.T) {
	for _, answer := range []string{"", "{}", `{"count":531,"frequencies":{"assent":1}}`, `{"count":1}`} {
		if n, err := countWords(answer); err == nil {
			t.Errorf("%s: counted %d words", answer, n)
		}
	}
}

func TestTheVerdictIsFoundInTheLog(t *testing.T) {
	for line, want := range map[string]string{
		`level=debug msg="Image verifier allowed pull" name="h/a:1" ok=true reason="00-mentatlab => allowed, \"x\"" verifier=bindir`: `00-mentatlab => allowed, "x"`,
		`level=warning msg="Image verifier blocked pull" name="h/a:1" ok=false reason="no" verifier=bindir`:                          "",
		`level=debug msg="Image verifier allowed pull" name="h/b:1" ok=true reason="other" verifier=bindir`:                          "",
	} {
		if got := verdictIn(line, "h/a:1"); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
