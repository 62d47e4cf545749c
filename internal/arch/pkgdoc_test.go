package arch

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// checkDoc returns what is wrong with a package's doc.go.
func checkDoc(name, src string) []string {
	f, err := parser.ParseFile(token.NewFileSet(), "doc.go", src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return []string{"doc.go does not parse: " + err.Error()}
	}
	text := f.Doc.Text()
	want := "Package " + name + " "
	if name == "main" {
		want = "Command "
	}
	var out []string
	if !strings.HasPrefix(text, want) {
		out = append(out, "the package comment must be in doc.go and start with "+want)
	}
	for _, word := range []string{"Trusted:", "Hostile:", "Promise:"} {
		if strings.Count(text, word) != 1 {
			out = append(out, "the package comment must say once what is "+word)
		}
	}
	return out
}

func TestEveryPackageSaysWhatItTrustsWhatIsHostileAndWhatItPromises(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := list(t.Context(), root, "./...")
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) == 0 {
		t.Fatal("the package list is empty")
	}
	for _, p := range pkgs {
		src, err := os.ReadFile(filepath.Join(p.Dir, "doc.go"))
		if err != nil {
			t.Errorf("%s: %v", p.ImportPath, err)
			continue
		}
		for _, problem := range checkDoc(p.Name, string(src)) {
			t.Errorf("%s: %s", p.ImportPath, problem)
		}
		// A second package comment would be joined to the first by the
		// documentation tools, out of sight of this test.
		for _, file := range append(append(append(p.GoFiles, p.CgoFiles...), p.TestGoFiles...), p.XTestGoFiles...) {
			if file == "doc.go" {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Errorf("%s: %v", p.ImportPath, err)
			} else if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" {
				t.Errorf("%s: %s has a package comment of its own", p.ImportPath, file)
			}
		}
	}
}

func TestAPoorPackageCommentIsReported(t *testing.T) {
	const good = "// Package x does.\n//\n// Trusted: a. Hostile: b. Promise: c.\npackage x\n"
	if got := checkDoc("x", good); len(got) != 0 {
		t.Fatalf("the good one: %q", got)
	}
	for name, src := range map[string]string{
		"none":             "package x\n",
		"another name":     strings.Replace(good, "Package x", "Package y", 1),
		"no trust":         strings.Replace(good, "Trusted:", "", 1),
		"no hostile":       strings.Replace(good, "Hostile:", "", 1),
		"no promise":       strings.Replace(good, "Promise:", "", 1),
		"detached comment": strings.Replace(good, "package x", "\npackage x", 1),
		"not Go":           "Package x",
	} {
		if got := checkDoc("x", src); len(got) == 0 {
			t.Errorf("%s: nothing is reported", name)
		}
	}
	if got := checkDoc("main", good); len(got) == 0 {
		t.Error("a command must start with Command")
	}
}
