//go:build linux && amd64

package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/bundle"
	"github.com/mentatlab/mentat/host/lock"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
)

// callNames are the names of system calls by their numbers, from the constants of
// golang.org/x/sys.
func callNames(t *testing.T) map[uint32]string {
	t.Helper()
	dir := moduleDir(t, "golang.org/x/sys")
	data, err := os.ReadFile(filepath.Join(dir, "unix", "zsysnum_linux_amd64.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint32]string{}
	for _, m := range regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s+= (\d+)$`).FindAllStringSubmatch(string(data), -1) {
		var n uint32
		if _, err := fmt.Sscan(m[2], &n); err != nil {
			t.Fatal(err)
		}
		names[n] = strings.ToLower(m[1])
	}
	if names[unix.SYS_OPENAT2] != "openat2" {
		t.Fatal("the numbers of system calls were not found")
	}
	return names
}

func TestSandboxPageHasTheFilter(t *testing.T) {
	names := callNames(t)
	says := map[lock.Verdict]string{lock.Allow: "allowed", lock.Refuse: "EPERM", lock.Unknown: "ENOSYS", lock.Kill: "ends the run"}
	var b strings.Builder
	b.WriteString("| for | calls | answer |\n|---|---|---|\n")
	for _, c := range lock.Calls {
		list := make([]string, len(c.Numbers))
		for i, n := range c.Numbers {
			list[i] = names[n]
		}
		answer := says[c.Verdict]
		if c.Only != "" {
			answer += ", " + c.Only
		}
		if c.When != "" {
			answer += ", with " + string(c.When)
		}
		if c.Else != "" {
			answer += "; else " + says[c.Else]
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c.What, strings.Join(list, ", "), answer)
	}
	fmt.Fprintf(&b, "| everything else | | %s |\n", says[lock.Unknown])
	generated(t, "sandbox.md", "filter", b.String())
}

func TestSandboxPageHasTheDefaults(t *testing.T) {
	var b strings.Builder
	b.WriteString("| what | manifest | container | node | default | held by | beyond it | test |\n|---|---|---|---|---|---|---|---|\n")
	key := func(s string) string {
		if s == "" {
			return ""
		}
		return "`" + s + "`"
	}
	for _, d := range bundle.Defaults {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | `%s` |\n", d.What, key(d.Manifest), d.Container, key(d.Node), d.Value, d.Wall, d.Beyond, d.Test)
	}
	generated(t, "sandbox.md", "sandbox", b.String())
}

// keysOf are the keys of a configuration's type, dotted.
func keysOf(t reflect.Type, tag, prefix string) []string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var keys []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get(tag), ",")
		if name == "" || name == "-" {
			continue
		}
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, keysOf(inner, tag, prefix+name+".")...)
			continue
		}
		keys = append(keys, prefix+name)
	}
	return keys
}

func TestEveryKeyOfTheSandboxHasItsRow(t *testing.T) {
	var said, node []string
	for _, d := range bundle.Defaults {
		said, node = append(said, d.Manifest), append(node, d.Node)
		if d.Test == "" {
			t.Errorf("%s has no test", d.What)
		}
	}
	keys := keysOf(reflect.TypeFor[manifest.Sandbox](), "yaml", "sandbox.")
	if len(keys) < 12 {
		t.Fatalf("only the keys %q were found", keys)
	}
	for _, key := range keys {
		if !slices.Contains(said, key) {
			t.Errorf("%s has no row", key)
		}
	}
	keys = keysOf(reflect.TypeFor[nodeconfig.Sandbox](), "toml", "sandbox.")
	if len(keys) < 7 {
		t.Fatalf("only the keys %q were found", keys)
	}
	for _, key := range keys {
		if !slices.Contains(node, key) {
			t.Errorf("%s has no row", key)
		}
	}
}

// A page that names a test promises that there is one, and a subtest that it is
// run.
func TestTheTestsThatTheSandboxPageNamesExist(t *testing.T) {
	var code strings.Builder
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "..":
			return filepath.SkipDir
		case strings.HasSuffix(path, "_test.go"):
			code.WriteString(read(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)(?:/([^`]+))?`").FindAllStringSubmatch(read(t, "sandbox.md"), -1)
	if len(named) < 30 {
		t.Fatalf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !strings.Contains(code.String(), "func "+m[1]+"(t *testing.T)") {
			t.Errorf("there is no %s", m[1])
		}
		if m[2] == "" {
			continue
		}
		if m[1] == "TestNoGuestEscapes" {
			guest := filepath.Join("../integration/testdata/escapes", m[2])
			_, errText := os.Stat(guest + ".wat")
			_, errDir := os.Stat(filepath.Join(guest, "main.go"))
			if errText != nil && errDir != nil {
				t.Errorf("there is no escape %s", m[2])
			}
		} else if !strings.Contains(code.String(), `t.Run("`+m[2]+`"`) && !strings.Contains(code.String(), `{"`+m[2]+`", `) {
			t.Errorf("%s has no subtest %q", m[1], m[2])
		}
	}
}

func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
