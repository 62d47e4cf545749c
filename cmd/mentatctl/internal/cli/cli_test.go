package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
)

func testApp() *app {
	return &app{stdin: strings.NewReader(""), stdout: new(bytes.Buffer), stderr: new(bytes.Buffer), now: time.Now, format: display.Text, progress: display.ProgressNone}
}

func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		walk(c, visit)
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	n := 0
	walk(testApp().root(), func(c *cobra.Command) {
		if c.Name() == "help" || c.HasParent() && c.Parent().Name() == "completion" || c.Name() == "completion" {
			return
		}
		n++
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q", c.CommandPath(), c.Short)
		}
		if c.Runnable() && c.HasParent() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Runnable() && c.Args == nil && !strings.Contains(c.Use, "]...") {
			t.Errorf("%s does not check its arguments", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long+"\n"+c.Example, "\n") {
			if len(line) > 110 {
				t.Errorf("%s: a line of %d characters: %s", c.CommandPath(), len(line), line)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: usage %q", c.CommandPath(), f.Name, f.Usage)
			}
		})
	})
	if n < 20 {
		t.Fatalf("only %d commands were seen", n)
	}
}

func TestEveryExampleIsACommandWithItsFlags(t *testing.T) {
	walk(testApp().root(), func(c *cobra.Command) {
		text := strings.ReplaceAll(c.Example, "\\\n", "")
		for _, line := range strings.Split(text, "\n") {
			_, line, ok := strings.Cut(line, "mentatctl ")
			if !ok {
				continue
			}
			words := strings.Fields(line)
			found, rest, err := c.Root().Find(words)
			if err != nil || found == c.Root() {
				t.Errorf("%s: no command in %q: %v", c.CommandPath(), line, err)
				continue
			}
			for _, w := range rest {
				if w == "--" || w == "<" {
					break
				}
				if name, isFlag := strings.CutPrefix(w, "--"); isFlag {
					name, _, _ = strings.Cut(name, "=")
					if found.Flags().Lookup(name) == nil {
						t.Errorf("%s: the example uses --%s, which %s has not", c.CommandPath(), name, found.CommandPath())
					}
				}
			}
		}
	})
}

func TestEveryReasonIsInTheHelpOfExitCodes(t *testing.T) {
	text := exitCodesTopic().Long
	for _, r := range fault.Table {
		if !strings.Contains(text, string(r.Reason)) || !strings.Contains(text, r.Meaning) {
			t.Errorf("%s is missing", r.Reason)
		}
	}
}

func TestASecretIsOneLine(t *testing.T) {
	for input, want := range map[string]string{
		"s3cret": "s3cret", "s3cret\n": "s3cret", "s3cret\r\n": "s3cret", " spaces \n": " spaces ",
		"": "", "\n": "", "two\nlines": "", strings.Repeat("x", maxSecret+1): "",
	} {
		a := testApp()
		a.stdin = strings.NewReader(input)
		got, err := a.readSecret("password")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.20q: %q, %v", input, got, err)
		}
		if err != nil && input != "" && strings.Contains(err.Error(), strings.TrimSpace(input)) && len(strings.TrimSpace(input)) > 0 {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestGrantsOnTheCommandLineAreStrict(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("GIVEN", "value")
	for name, c := range map[string]struct {
		dirs, env []string
		reason    fault.Reason
	}{
		"directory":          {dirs: []string{dir + "::/data"}},
		"read-only":          {dirs: []string{dir + "::/data::ro"}},
		"relative guest":     {dirs: []string{dir + "::data"}, reason: fault.Usage},
		"no guest":           {dirs: []string{dir}, reason: fault.Usage},
		"unknown mode":       {dirs: []string{dir + "::/data::rw"}, reason: fault.Usage},
		"no such directory":  {dirs: []string{dir + "/none::/data"}, reason: fault.NotFound},
		"variable":           {env: []string{"A=b=c"}},
		"empty value":        {env: []string{"A="}},
		"passed on":          {env: []string{"GIVEN"}},
		"not there":          {env: []string{"SURELY_NOT_SET"}, reason: fault.Usage},
		"variable no name":   {env: []string{"=x"}, reason: fault.Usage},
		"variable all empty": {env: []string{""}, reason: fault.Usage},
	} {
		o := runOptions{dirs: c.dirs, env: c.env}
		g, err := o.given()
		if fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && len(g.Mounts)+len(g.Env) != 1 {
			t.Errorf("%s: %+v", name, g)
		}
	}
}

func TestAPathIsNeverTakenForAReference(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, want := range map[string]bool{
		".": true, "./a": true, "../a": true, "/a": true, "a/": true, "m.yaml": true, "x.wasm": true,
		"registry.example.com/a:1": false, "localhost:5000/a": false, "a": false,
	} {
		if got := isLocal(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestACancelledContextEndsWith130(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("MENTAT_CONFIG", "")
	var out, errs bytes.Buffer
	// Nothing listens there; that the caller gave up counts first.
	code := Main(ctx, []string{"inspect", "127.0.0.1:1/a:1"}, strings.NewReader(""), &out, &errs)
	if code != 130 || errs.String() != "mentatctl: interrupted\n" || out.Len() > 0 {
		t.Errorf("code %d: %q", code, errs.String())
	}
}
