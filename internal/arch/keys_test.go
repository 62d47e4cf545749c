package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/verifier"
)

// flagRE matches a flag in a command's help.
var flagRE = regexp.MustCompile(`(?m)^ +(?:-[a-z], )?--([a-z-]+) `)

// flags are those of a command, by the generated documentation, which has a test
// of its own.
func flags(t *testing.T, command string) []string {
	t.Helper()
	data, err := os.ReadFile("../../docs/mentatctl.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(data), "\n## mentatctl "+command+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, section, _ = strings.Cut(section, "\nFlags:\n")
	var names []string
	for _, m := range flagRE.FindAllStringSubmatch(section, -1) {
		names = append(names, m[1])
	}
	return names
}

// Every key that a person can write, and every flag that gives an agent something,
// has a test that fails if the key is read and not enforced; see testdata/keys.txt.
func TestEveryKeyHasADenialTest(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "keys.txt"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	for i, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(fields) < 3 || fields[2] == "-" && len(fields) < 4 {
			t.Fatalf("keys.txt:%d: not of the form FILE KEY TEST...: %q", i+1, line)
		}
		name := fields[0] + " " + fields[1]
		if said[name] {
			t.Errorf("keys.txt:%d: %s again", i+1, name)
		}
		said[name] = true
		if fields[2] == "-" {
			continue
		}
		for _, test := range fields[2:] {
			if !isTest(t, test) {
				t.Errorf("keys.txt:%d: there is no test %s", i+1, test)
			}
		}
	}
	for file, keys := range map[string][]string{
		"manifest": manifest.Keys(), "policy.yaml": verifier.PolicyKeys(), "capabilities.yaml": policy.Keys(),
		"config.toml": nodeconfig.Keys(), "run": flags(t, "run"),
	} {
		if len(keys) < 10 {
			t.Fatalf("only %d keys of %s were found", len(keys), file)
		}
		for _, key := range keys {
			if name := file + " " + key; !said[name] {
				t.Errorf("%s has no test in keys.txt that fails when it is not enforced", name)
			} else {
				delete(said, name)
			}
		}
	}
	for name := range said {
		t.Errorf("keys.txt: there is no %s", name)
	}
}

// isTest tells whether a directory has a test, by DIRECTORY.TEST.
func isTest(t *testing.T, test string) bool {
	t.Helper()
	dir, name, _ := strings.Cut(test, ".")
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return name != "" && slices.ContainsFunc(files, func(file string) bool {
		data, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(data), "\nfunc "+name+"(t *testing.T) {\n")
	})
}
