package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

const canary = "sk-Canary/0123+abc&d\"ef"

// disguises are the forms in which the mask finds a secret.
var disguises = map[string]func(string) string{
	"plain":         func(s string) string { return s },
	"query":         url.QueryEscape,
	"path":          url.PathEscape,
	"lower escape":  func(s string) string { return lowerEscapes(url.QueryEscape(s)) },
	"json":          func(s string) string { return fmt.Sprintf("%q", s) },
	"json for html": func(s string) string { b, _ := json.Marshal(s); return string(b) },
	"html":          html.EscapeString,
	"base64":        func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"base64 url":    func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
	"basic 1":       func(s string) string { return base64.StdEncoding.EncodeToString([]byte("u" + s)) },
	"basic 2":       func(s string) string { return base64.StdEncoding.EncodeToString([]byte("us:" + s + ":x")) },
	"basic 3":       func(s string) string { return base64.RawStdEncoding.EncodeToString([]byte("Bearer " + s)) },
	"hex":           func(s string) string { return hex.EncodeToString([]byte(s)) },
}

// gone tells whether no long piece of a form of the secret is left: with base64,
// what is shared with the neighbours of the secret stays.
func gone(text, form string) bool {
	const piece = 8
	for i := 0; i+piece <= len(form); i++ {
		if strings.Contains(text, form[i:i+piece]) {
			return false
		}
	}
	return true
}

func TestASecretIsHiddenInEveryForm(t *testing.T) {
	m := NewMask("another-secret", canary)
	for name, f := range disguises {
		form := f(canary)
		text := "before " + form + " after"
		got := m.Text(text)
		if len(got) != len(text) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
			t.Errorf("%s: the rest has changed: %q", name, got)
		}
		core := strings.Trim(form, `"`)
		if strings.HasPrefix(name, "basic") {
			core = core[12 : len(core)-6]
		}
		if !gone(got, core) {
			t.Errorf("%s: %q is left of %q", name, got, form)
		}
	}
}

func TestAStreamIsHiddenHoweverItIsCut(t *testing.T) {
	m := NewMask(canary)
	text := "x" + canary[:5] + canary + canary + "sk-" + canary[:len(canary)-1] + "|" + url.QueryEscape(canary) + "sk"
	want := m.Text(text)
	if strings.Contains(want, canary) {
		t.Fatal(want)
	}
	for cut := 1; cut <= len(text); cut++ {
		var pieces []io.Reader
		for rest := text; rest != ""; rest = rest[min(cut, len(rest)):] {
			pieces = append(pieces, strings.NewReader(rest[:min(cut, len(rest))]))
		}
		for _, step := range []int{1, 7, 4096} {
			got := readIn(t, m.Reader(io.MultiReader(pieces...)), step)
			if got != want {
				t.Fatalf("cut at %d, read by %d: %q, want %q", cut, step, got, want)
			}
			pieces = []io.Reader{iotest.OneByteReader(strings.NewReader(text))}
		}
	}
}

func readIn(t *testing.T, r io.Reader, step int) string {
	t.Helper()
	var out bytes.Buffer
	p := make([]byte, step)
	for {
		n, err := r.Read(p)
		out.Write(p[:n])
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStreamFlowsWhileNothingLooksLikeASecret(t *testing.T) {
	pr, pw := io.Pipe()
	r := NewMask(canary).Reader(pr)
	// What may become the secret comes with the next chunk.
	chunks := []struct{ in, out string }{{"data: {\"x\":1}\n\n", "data: {\"x\":1}\n\n"}, {"sk", ""}, {"-x\n", "sk-x\n"}}
	go func() {
		for _, c := range chunks {
			_, _ = io.WriteString(pw, c.in)
		}
	}()
	for _, c := range chunks {
		p := make([]byte, 100)
		n, err := io.ReadAtLeast(r, p, len(c.out))
		if err != nil || string(p[:n]) != c.out {
			t.Fatalf("%q, %v, want %q", p[:n], err, c.out)
		}
	}
}

func TestAnErrorOfTheStreamComesAfterItsBytes(t *testing.T) {
	broken := io.MultiReader(strings.NewReader("sk-Can"), iotest.ErrReader(io.ErrUnexpectedEOF))
	got, err := io.ReadAll(NewMask(canary).Reader(broken))
	if string(got) != "sk-Can" || err != io.ErrUnexpectedEOF { //nolint:errorlint // passed on as it is
		t.Errorf("%q, %v", got, err)
	}
}

func TestNothingIsHiddenWithoutSecrets(t *testing.T) {
	r := strings.NewReader(canary)
	for _, m := range []*Mask{nil, NewMask()} {
		if m.Text(canary) != canary || m.Reader(r) != io.Reader(r) {
			t.Error("something is hidden")
		}
	}
}

func TestSecretsAreReadStrictlyAndNeverQuoted(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"good":        {`{"a":"` + "canary-value" + `"}`, true},
		"none":        {`{}`, true},
		"no object":   {`["canary-value"]`, false},
		"a number":    {`{"a":12345678}`, false},
		"more":        {`{"a":"canary-value"}{"canary":1}`, false},
		"broken":      {`{"a":"canary-value`, false},
		"short":       {`{"a":"canary"}`, false},
		"line break":  {`{"a":"canary-value\n"}`, false},
		"not ASCII":   {`{"a":"canary-välue"}`, false},
		"too long":    {`{"a":"canary` + strings.Repeat("x", limits.SecretBytes) + `"}`, false},
		"a huge file": {`{"a":"canary-value"}` + strings.Repeat(" ", limits.SecretsBytes), false},
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Read(file)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (s != nil || fault.ReasonOf(err) != fault.PolicyInvalid || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if s, err := Read(""); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := Read(filepath.Join(dir, "missing")); fault.ReasonOf(err) != fault.PolicyInvalid {
		t.Errorf("%v", err)
	}
	if _, err := Lookup(nil, "a", "here"); fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("%v", err)
	}
}

// Whatever is around a secret and however it is cut: it does not come through,
// and nothing else is lost.
func FuzzMask(f *testing.F) {
	f.Add([]byte("before"), []byte("after"), uint8(3))
	f.Add([]byte("sk-"), []byte("sk-Canary"), uint8(1))
	f.Add([]byte(canary), []byte(url.QueryEscape(canary)), uint8(9))
	f.Fuzz(func(t *testing.T, before, after []byte, cut uint8) {
		m := NewMask(canary)
		text := string(before) + canary + string(after)
		step := int(cut) + 1
		var pieces []io.Reader
		for rest := text; rest != ""; rest = rest[min(step, len(rest)):] {
			pieces = append(pieces, strings.NewReader(rest[:min(step, len(rest))]))
		}
		got, err := io.ReadAll(m.Reader(io.MultiReader(pieces...)))
		if err != nil || len(got) != len(text) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(text), err)
		}
		if bytes.Contains(got, []byte(canary)) {
			t.Fatalf("%q came through", got)
		}
		for i := range got {
			if got[i] != text[i] && got[i] != '*' {
				t.Fatalf("byte %d is %q, was %q", i, got[i], text[i])
			}
		}
	})
}
