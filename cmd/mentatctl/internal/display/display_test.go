package display

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

func TestAnErrorIsOneLineAProblem(t *testing.T) {
	two := errors.Join(
		fault.New(fault.ManifestInvalid, "m.yaml:1", "first").WithHint("do this"),
		fmt.Errorf("second: %w", fault.New(fault.NotFound, "x", "gone\nforged: line")))
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"one":     {fault.New(fault.NotFound, "x", "is gone"), "mentatctl: x: is gone\n"},
		"caused":  {fault.Wrap(errors.New("cause"), fault.Internal, "x", "failed"), "mentatctl: x: failed: cause\n"},
		"joined":  {two, "mentatctl: m.yaml:1: first (do this)\nmentatctl: second: x: gone forged: line\n"},
		"foreign": {errors.New("plain"), "mentatctl: plain\n"},
		"single":  {errors.Join(fault.New(fault.NotFound, "x", "is gone")), "mentatctl: x: is gone\n"},
	} {
		var out, errs bytes.Buffer
		(&Printer{Out: &out, Err: &errs, Format: Text}).Fail(c.err)
		if errs.String() != c.want || out.Len() > 0 {
			t.Errorf("%s: got %q and %q, want %q", name, errs.String(), out.String(), c.want)
		}
	}
}

func TestAJSONErrorIsOneDocumentWithTheFirstProblem(t *testing.T) {
	err := errors.Join(
		fault.New(fault.Unsigned, "a", "carries none").WithHint("sign it"),
		fault.New(fault.NotFound, "b", "is gone"))
	var out, errs bytes.Buffer
	(&Printer{Out: &out, Err: &errs, Format: JSON}).Fail(err)
	var got struct {
		MediaType string
		Error     Problem
		Problems  []Problem
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := Problem{Reason: fault.Unsigned, Code: 10, On: "a", Message: "carries none", Hint: "sign it"}
	if got.Error != want || len(got.Problems) != 2 || errs.Len() > 0 {
		t.Errorf("got %+v", got)
	}
	if got.MediaType != "application/vnd.mentatlab.mentatctl.error.v1+json" {
		t.Errorf("media type %q", got.MediaType)
	}
}

type forged struct{}

func (forged) Text(w *Writer) {
	w.Line("%s", "a\nforged line\x1b[2J")
	w.Field("name", "%s", "b\rforged")
	w.Field("empty", "")
	w.List("list", []string{"one", "two\nthree"})
	w.Table([]string{"A", "B"}, [][]string{{"x\ny", "z"}})
}

func TestTextFromAnArtifactForgesNoLine(t *testing.T) {
	var out bytes.Buffer
	if err := (&Printer{Out: &out, Format: Text}).Result(forged{}); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	if n := strings.Count(got, "\n"); n != 6 || strings.ContainsAny(got, "\x1b\r") || strings.Contains(got, "empty") {
		t.Errorf("%d lines: %q", n, got)
	}
}

func TestUnitsReadWell(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KB", 1536: "1.5 KB", 128 << 20: "128 MB", 5 << 30: "5 GB", 1 << 50: "1048576 GB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0 ms", 999 * time.Millisecond: "999 ms", 1500 * time.Millisecond: "1.5 s", 90 * time.Second: "1m30s"} {
		if got := Took(d); got != want {
			t.Errorf("Took(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestProgressIsSilentOffATerminal(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, ProgressAuto)
	p.Step("working")()
	p.Transfer("pulled", "x", 1, 1)
	p.Close()
	if out.Len() > 0 {
		t.Errorf("got %q", out.String())
	}
}

func TestPlainProgressIsOneLineForEachBlob(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, ProgressPlain)
	p.Step("working on %s", "it\nforged")()
	p.Transfer("pulled", "x", 1, 2048)
	p.Transfer("pulled", "x", 2048, 2048)
	p.Close()
	if want := "working on it forged\npulled x, 2 KB\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestALiveLineIsTakenOffTheScreen(t *testing.T) {
	var out bytes.Buffer
	p := &Progress{w: &out, live: true}
	done := p.Step("working")
	p.Transfer("pulled", "x", 1, 2)
	done()
	p.Close()
	if got := out.String(); !strings.HasSuffix(got, "\r\x1b[K") || strings.Contains(got, "\n") {
		t.Errorf("got %q", got)
	}
}

func TestJSONIsAskedForAlsoOnABrokenCommandLine(t *testing.T) {
	for args, want := range map[string]bool{
		"x --output json": true, "x --output=json --bad": true, "-o json": true, "-ojson": true,
		"x --output text": false, "run x -- --output json": false, "x json": false, "x --output": false,
	} {
		if got := AsksForJSON(strings.Fields(args)); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
}
