package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Variables that make this test's binary a provider.
const (
	modeEnv = "PROVIDER_MODE"
	textEnv = "PROVIDER_TEXT"
	logEnv  = "PROVIDER_LOG" // one line for each request
)

const secret = "hunter2-of-the-registry"

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeEnv); mode != "" {
		os.Exit(provide(mode))
	}
	os.Exit(m.Run())
}

// provide is the provider program.
func provide(mode string) int {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 3
	}
	log, err := os.OpenFile(os.Getenv(logEnv), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 3
	}
	fmt.Fprintf(log, "%s %s\n", strings.Join(os.Args[1:], " "), in)
	switch mode {
	case "answer":
		fmt.Print(os.Getenv(textEnv))
	case "fail":
		fmt.Print(os.Getenv(textEnv))
		fmt.Fprintln(os.Stderr, secret)
		return 1
	case "flood":
		for {
			if _, err := fmt.Print(strings.Repeat(secret, 1000)); err != nil {
				return 1
			}
		}
	case "hang":
		fmt.Print(os.Getenv(textEnv))
		time.Sleep(time.Hour)
	}
	return 0
}

func answer(key, duration, auth string) string {
	return fmt.Sprintf(`{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":%q,"cacheDuration":%s,"auth":%s}`, key, duration, auth)
}

func one(pattern string) string {
	return fmt.Sprintf(`{%q:{"username":"robot","password":%q}}`, pattern, secret)
}

// open makes one provider of this binary; the clock stands at *now.
func open(t *testing.T, mode, text string) (p *Providers, requests func() []string, now *time.Time) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "test-provider")); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "requests")
	file := filepath.Join(dir, "providers.yaml")
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: test-provider
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    matchImages: ["*.registry.example", "127.0.0.1:5000/team"]
    defaultCacheDuration: 1h
    args: [get, --strict]
    env:
      - {name: %s, value: %s}
      - {name: %s, value: '%s'}
      - {name: %s, value: '%s'}
`, modeEnv, mode, textEnv, text, logEnv, log)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err = Open(file, dir); err != nil {
		t.Fatal(err)
	}
	p.limit = time.Minute // the machine may be busy
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p.now = func() time.Time { return clock }
	return p, func() []string {
		data, err := os.ReadFile(log)
		if err != nil {
			return nil
		}
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}, &clock
}

func TestAProviderIsAskedAsTheKubeletAsks(t *testing.T) {
	p, requests, _ := open(t, "answer", answer("Registry", "null", one("eu.registry.example")))
	c, ok, err := p.Credential(t.Context(), "eu.registry.example/agents/echo")
	if err != nil || !ok || c != (Credential{"robot", secret}) {
		t.Fatalf("%t, %v", ok, err)
	}
	if got := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(got, secret) {
		t.Errorf("a credential prints itself: %s", got)
	}
	args, in, _ := strings.Cut(requests()[0], " {")
	var r map[string]string
	if err := json.Unmarshal([]byte("{"+in), &r); err != nil {
		t.Fatal(err)
	}
	if args != "get --strict" || r["kind"] != "CredentialProviderRequest" || r["apiVersion"] != protocol || r["image"] != "eu.registry.example/agents/echo" {
		t.Errorf("asked with %q: %v", args, r)
	}
}

func TestAProviderIsNotRunForOtherImages(t *testing.T) {
	p, requests, _ := open(t, "answer", answer("Global", "null", one("*.registry.example")))
	for _, image := range []string{"registry.example/x", "a.b.registry.example/x", "eu.registry.example:5000/x", "eu.registry.example.evil/x", "127.0.0.1/team/x", "127.0.0.1:5000/other", "evil/eu.registry.example"} {
		if c, ok, err := p.Credential(t.Context(), image); ok || err != nil {
			t.Errorf("%s: %v, %t, %v", image, c, ok, err)
		}
	}
	if got := requests(); got != nil {
		t.Errorf("it was run: %v", got)
	}
}

func TestCredentialsAreForTheirPatternOnly(t *testing.T) {
	text := `{"us.registry.example":{"username":"us","password":"x"},"*.registry.example":{"username":"any","password":"x"},"eu.registry.example/team":{"username":"team","password":"x"},"eu.registry.example":{"username":"eu","password":"x"}}`
	p, _, _ := open(t, "answer", answer("Image", "null", text))
	for image, want := range map[string]string{"eu.registry.example/team/a": "team", "eu.registry.example/b": "eu", "us.registry.example/team": "us", "asia.registry.example/c": "any"} {
		if c, ok, err := p.Credential(t.Context(), image); err != nil || !ok || c.Username != want {
			t.Errorf("%s: user %s, %t, %v", image, c.Username, ok, err)
		}
	}
	p, _, _ = open(t, "answer", answer("Image", "null", one("elsewhere.example")))
	if _, ok, err := p.Credential(t.Context(), "eu.registry.example/x"); ok || err != nil {
		t.Errorf("another registry's credentials were handed out: %v", err)
	}
	p, _, _ = open(t, "answer", answer("Image", "null", "null"))
	if _, ok, err := p.Credential(t.Context(), "eu.registry.example/x"); ok || err != nil {
		t.Errorf("no credentials: %t, %v", ok, err)
	}
}

func TestAnAnswerIsKeptAsItSays(t *testing.T) {
	images := []string{"eu.registry.example/a", "eu.registry.example/a", "eu.registry.example/b", "us.registry.example/a"}
	for _, c := range []struct {
		key, duration string
		want          int
	}{
		{"Image", `"10m0s"`, 3}, {"Registry", `"10m0s"`, 2}, {"Global", `"10m0s"`, 1},
		{"Global", `"0s"`, 4}, {"Global", "null", 1},
	} {
		p, requests, now := open(t, "answer", answer(c.key, c.duration, one("*.registry.example")))
		for _, image := range images {
			if _, ok, err := p.Credential(t.Context(), image); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		if got := len(requests()); got != c.want {
			t.Errorf("%s for %s: asked %d times, want %d", c.key, c.duration, got, c.want)
		}
		*now = now.Add(61 * time.Minute) // beyond the configured hour, too
		if _, _, err := p.Credential(t.Context(), images[0]); err != nil {
			t.Fatal(err)
		}
		if got := len(requests()); got != c.want+1 {
			t.Errorf("%s for %s: an old answer was used", c.key, c.duration)
		}
	}
}

func TestAHostileAnswerGivesNoCredentialAndIsNotShown(t *testing.T) {
	good := answer("Global", "null", one("*.registry.example"))
	for name, c := range map[string]struct{ mode, text string }{
		"nothing":             {"answer", " "},
		"no JSON":             {"answer", secret},
		"a list":              {"answer", "[" + good + "]"},
		"two answers":         {"answer", good + good},
		"a key twice":         {"answer", strings.Replace(good, `"auth"`, `"auth":{},"auth"`, 1)},
		"a key in other case": {"answer", strings.Replace(good, `"auth"`, `"auth":{},"AUTH"`, 1)},
		"a user's other case": {"answer", strings.Replace(good, `"username"`, `"username":"a","Username"`, 1)},
		"an unknown key":      {"answer", strings.Replace(good, `"auth"`, `"`+secret+`":1,"auth"`, 1)},
		"another version":     {"answer", strings.Replace(good, "k8s.io/v1", "k8s.io/v1beta1", 1)},
		"another kind":        {"answer", strings.Replace(good, "Response", "Request", 1)},
		"no cache key":        {"answer", answer("", "null", one("*.registry.example"))},
		"a wrong cache key":   {"answer", answer(secret, "null", one("*.registry.example"))},
		"a wrong duration":    {"answer", answer("Global", `"`+secret+`"`, one("*.registry.example"))},
		"a negative duration": {"answer", answer("Global", `"-1s"`, one("*.registry.example"))},
		"a number, no text":   {"answer", answer("Global", "null", `{"*.registry.example":{"username":1,"password":"x"}}`)},
		"a pattern of a URL":  {"answer", answer("Global", "null", one("https://*.registry.example"))},
		"a broken pattern":    {"answer", answer("Global", "null", one("[.registry.example"))},
		"a line in a header":  {"answer", answer("Global", "null", `{"*.registry.example":{"username":"a\\r\\nHost: b","password":"x"}}`)},
		"a failure":           {"fail", good},
		"too much":            {"flood", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			p, requests, _ := open(t, c.mode, strings.ReplaceAll(c.text, `\\`, `\`))
			got, ok, err := p.Credential(t.Context(), "eu.registry.example/a")
			if ok || fault.ReasonOf(err) != fault.AccessDenied || got != (Credential{}) {
				t.Fatalf("%t, %v", ok, err)
			}
			if !strings.Contains(err.Error(), "test-provider") || strings.Contains(err.Error(), secret) || len(err.Error()) > 300 {
				t.Errorf("the error says: %v", err)
			}
			if (c.mode == "flood") != strings.Contains(err.Error(), "bytes") {
				t.Errorf("the answer's size: %v", err)
			}
			if len(requests()) != 1 || len(p.kept) != 0 {
				t.Errorf("asked %d times, kept %d", len(requests()), len(p.kept))
			}
		})
	}
}

func TestAProviderThatDoesNotEndIsEnded(t *testing.T) {
	p, _, _ := open(t, "hang", answer("Global", "null", one("*.registry.example")))
	p.limit = time.Second
	if _, ok, err := p.Credential(t.Context(), "eu.registry.example/a"); ok || fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("%t, %v", ok, err)
	}
	p.limit = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, ok, err := p.Credential(ctx, "eu.registry.example/a"); ok || err == nil {
		t.Errorf("the caller's time was not kept: %t, %v", ok, err)
	}
}

func TestAMissingProgramIsAnError(t *testing.T) {
	p, _, _ := open(t, "answer", "x")
	p.programs[0].path = filepath.Join(t.TempDir(), "none")
	if _, ok, err := p.Credential(t.Context(), "eu.registry.example/a"); ok || fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("%t, %v", ok, err)
	}
}

func TestABrokenConfigurationIsRefused(t *testing.T) {
	const good = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: a
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    matchImages: [registry.example]
    defaultCacheDuration: 1h
`
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	read := func(text string) error {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(file, dir)
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(good, "providers:\n")
	for name, text := range map[string]string{
		"empty":            "",
		"other kind":       strings.Replace(good, "kind: C", "kind: X", 1),
		"old config":       strings.Replace(good, "io/v1\nkind", "io/v1beta1\nkind", 1),
		"old protocol":     strings.Replace(good, "k8s.io/v1\n    match", "k8s.io/v1alpha1\n    match", 1),
		"no provider":      strings.Replace(good, "providers:\n"+rest, "providers: []\n", 1),
		"twice":            good + rest,
		"a path":           strings.Replace(good, "name: a", "name: ../a", 1),
		"a parent":         strings.Replace(good, "name: a", "name: ..", 1),
		"no name":          strings.Replace(good, "name: a", "name: ''", 1),
		"no images":        strings.Replace(good, "[registry.example]", "[]", 1),
		"a wild path":      strings.Replace(good, "[registry.example]", "['registry.example/*']", 1),
		"a wild port":      strings.Replace(good, "[registry.example]", "['registry.example:*']", 1),
		"a broken pattern": strings.Replace(good, "[registry.example]", "['a[.example']", 1),
		"no duration":      strings.Replace(good, "    defaultCacheDuration: 1h\n", "", 1),
		"a bad duration":   strings.Replace(good, "1h", "soon", 1),
		"a variable":       good + "    env: [{name: 'A=B', value: x}]\n",
		"unknown":          good + "    tokenAttributes: {requireServiceAccount: true}\n",
		"too large":        good + "#" + strings.Repeat("x", limits.PolicyBytes),
	} {
		if err := read(text); fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, ""); fault.ReasonOf(err) != fault.PolicyInvalid {
		t.Errorf("without a directory of programs: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none"), dir); fault.ReasonOf(err) != fault.PolicyInvalid {
		t.Errorf("without a file: %v", err)
	}
}

// FuzzAnswer holds any answer to this: what is accepted hands a credential out only
// for images that its own pattern matches, and what is refused is not repeated.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(answer("Global", "null", one("*.registry.example"))))
	f.Add([]byte(answer("Image", `"1h"`, one("registry.example:5000/path"))))
	f.Add([]byte(`{"kind":"CredentialProviderResponse"}`))
	f.Add([]byte(secret))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse(data)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error repeats the answer: %v", err)
			}
			return
		}
		for _, e := range r.auth {
			if e.matches("") || e.matches("/x") || e.matches("other.example.test.of.many.labels/x") && !strings.Contains(e.text, ".") {
				t.Errorf("%q matches too much", e.text)
			}
		}
	})
}
