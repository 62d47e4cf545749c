package testcorpus

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

// Class is a way to attack.
type Class struct {
	Name string
	// Tried and Answer are for the documentation.
	Tried, Answer string
	// Tests show what no artifact on its own can, as DIRECTORY.TEST.
	Tests []string
}

// Vector is an artifact that every gate refuses.
type Vector struct {
	Class, Name string
	// Reason is the typed reason, Say a part of what a person reads, in lower case.
	Reason fault.Reason
	Say    string
	// Run is set where only the run gate sees what is wrong, because the others
	// read no layer: to them it is an artifact that is well signed.
	Run bool
}

// Read gives the lists to a test, which fails unless they are closed and whole.
func Read(tb testing.TB, root string) ([]Class, []Vector) {
	tb.Helper()
	if problems := check(root, classes, vectors); len(problems) > 0 {
		tb.Fatalf("the corpus is not whole:\n%s", strings.Join(problems, "\n"))
	}
	return slices.Clone(classes), slices.Clone(vectors)
}

// check finds what is wrong with the lists; root is the source tree.
func check(root string, classes []Class, vectors []Vector) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if len(vectors) == 0 || len(classes) == 0 {
		bad("there are %d classes and %d vectors", len(classes), len(vectors))
	}
	shown, names := map[string]int{}, map[string]bool{}
	for _, c := range classes {
		if _, twice := shown[c.Name]; twice || c.Name == "" || c.Tried == "" || c.Answer == "" {
			bad("class %q is there twice or says nothing", c.Name)
		}
		shown[c.Name] = len(c.Tests)
		for _, test := range c.Tests {
			if !isTest(root, test) {
				bad("class %s: there is no test %s", c.Name, test)
			}
		}
	}
	for _, v := range vectors {
		if _, known := shown[v.Class]; !known {
			bad("vector %s is of the unknown class %q", v.Name, v.Class)
		}
		shown[v.Class]++
		if names[v.Name] || !name.MatchString(v.Name) {
			bad("vector %q is there twice or is no part of a reference", v.Name)
		}
		names[v.Name] = true
		if v.Reason == "" || fault.RowOf(v.Reason).Reason != v.Reason {
			bad("vector %s has the unknown reason %q", v.Name, v.Reason)
		}
		if v.Say == "" || v.Say != strings.ToLower(v.Say) {
			bad("vector %s says nothing, or not in lower case", v.Name)
		}
	}
	for _, c := range classes {
		if shown[c.Name] == 0 {
			bad("nothing shows the answer to class %s", c.Name)
		}
	}
	return problems
}

var name = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// isTest tells whether a directory has a test, by DIRECTORY.TEST.
func isTest(root, test string) bool {
	dir, name, _ := strings.Cut(test, ".")
	files, _ := filepath.Glob(filepath.Join(root, dir, "*_test.go")) // the pattern is well formed
	return name != "" && slices.ContainsFunc(files, func(file string) bool {
		data, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(data), "\nfunc "+name+"(t *testing.T) {\n")
	})
}
