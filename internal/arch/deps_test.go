package arch

import (
	"slices"
	"strings"
	"testing"
)

func loadModule(t *testing.T) Graph {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	g, err := Load(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestTheModuleFollowsTheImportTableAndTheBans(t *testing.T) {
	for _, v := range Check(loadModule(t)) {
		t.Error(v)
	}
}

func TestEveryRowNamesAPackageThatExists(t *testing.T) {
	seen := map[string]bool{}
	for path := range loadModule(t) {
		if rel, ok := own(path); ok {
			part, _ := partOf(rel)
			seen[part.Path] = true
		}
	}
	if len(seen) == 0 {
		t.Fatal("the package list is empty")
	}
	for _, p := range Parts {
		if !seen[p.Path] {
			t.Errorf("the table names %s, which has no package", p.Path)
		}
	}
}

func TestTheTableAllowsOnlyRowsAndNoCycles(t *testing.T) {
	rows := map[string]Part{}
	for _, p := range Parts {
		if _, twice := rows[p.Path]; twice {
			t.Errorf("%s has two rows", p.Path)
		}
		rows[p.Path] = p
	}
	var walk func(path string, trail []string)
	walk = func(path string, trail []string) {
		if slices.Contains(trail, path) {
			t.Fatalf("the table allows a cycle: %s", strings.Join(append(trail, path), " -> "))
		}
		for _, to := range rows[path].Imports {
			if to == Anything {
				continue
			}
			if _, ok := rows[to]; !ok {
				t.Errorf("%s may import %s, which has no row", path, to)
			}
			walk(to, append(slices.Clone(trail), path))
		}
	}
	for path := range rows {
		walk(path, nil)
	}
}

// graph builds a synthetic graph from "a -> b" lines.
func graph(edges ...string) Graph {
	g := Graph{}
	add := func(path string) *Package {
		if strings.HasPrefix(path, "@") {
			path = Module + "/" + path[1:]
		}
		if g[path] == nil {
			g[path] = &Package{Path: path, Standard: !strings.Contains(strings.SplitN(path, "/", 2)[0], ".")}
		}
		return g[path]
	}
	for _, e := range edges {
		if from, to, test := strings.Cut(e, " ~> "); test {
			add(from).TestImports = append(add(from).TestImports, add(to).Path)
			continue
		}
		from, to, _ := strings.Cut(e, " -> ")
		add(from).Imports = append(add(from).Imports, add(to).Path)
	}
	return g
}

func TestEveryImportThatTheTableDoesNotAllowIsReported(t *testing.T) {
	for _, from := range Parts {
		for _, to := range Parts {
			if from.Path == to.Path {
				continue
			}
			test := to.Path == testPrefix
			anything := slices.Contains(from.Imports, Anything)
			ok := !leaf(to) && (anything || !test && (slices.Contains(from.Imports, to.Path) ||
				slices.Contains(Foundation, to.Path) && from.Path != "internal/fault" && from.Path != "internal/limits"))
			fromDir, toDir := from.Path, to.Path
			if fromDir == testPrefix {
				fromDir += "pki"
			}
			if test {
				toDir += "pki"
			}
			got := Check(graph("@" + fromDir + " -> @" + toDir))
			if ok && len(got) != 0 {
				t.Errorf("%s -> %s is allowed, got %q", from.Path, to.Path, got)
			}
			if !ok && len(got) == 0 {
				t.Errorf("%s -> %s must be reported", from.Path, to.Path)
			}
		}
	}
}

func TestViolationsAreReported(t *testing.T) {
	for _, c := range []struct {
		name  string
		edges []string
		want  string
	}{
		{"an unknown part", []string{"@newthing -> fmt"}, "newthing: no row"},
		{"an import of an unknown part", []string{"@shim -> @newthing"}, "shim imports newthing: no row"},
		{"a package in the root", []string{" -> fmt", Module + " -> fmt"}, "no row"},
		{"a subpackage goes by its own row", []string{"@oci -> @oci/remote"}, "oci imports oci/remote: oci may import only manifest"},
		{"a subpackage without a row goes by its parent's", []string{"@manifest/module -> @host"}, "manifest/module imports host"},
		{"a fixture in production code", []string{"@verifier -> @internal/testpki"}, "only tests may"},
		{"production code that imports the test node", []string{"@shim -> @integration/node"}, "shim may import only bundle"},
		{"a test that imports the integration tests", []string{"@shim ~> @integration"}, "a test of shim imports integration"},
		{"host to containerd over two others", []string{"@host -> example.com/a", "example.com/a -> example.com/b", "example.com/b -> github.com/containerd/containerd/v2/client"}, "client of the daemon"},
		{"the verifier to the network over oci", []string{"@verifier -> @oci", "@oci -> example.com/a", "example.com/a -> net/http"}, "it does not fetch"},
		{"a versioned module path", []string{"@bundle -> github.com/bytecodealliance/wasmtime-go/v39"}, "only mentat-host holds an engine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := strings.Join(Check(graph(c.edges...)), "\n"); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWhatIsAllowedIsNotReported(t *testing.T) {
	for _, edges := range [][]string{
		{"@verifier/fetch -> net/http"},
		{"@verifier ~> @internal/testpki"},
		{"@cmd/mentatctl/internal/display -> @manifest"},
		{"@cmd/mentatctl -> github.com/spf13/cobra"},
		{"@oci ~> @oci/remote"},
		{"@demo -> @integration/node"},
		{"@verifier -> crypto/x509", "crypto/x509 -> net"},
		{"@host -> github.com/containerd/errdefs"},
		{"@shim -> github.com/containerd/containerd/v2/pkg/shim"},
	} {
		if got := Check(graph(edges...)); len(got) != 0 {
			t.Errorf("%q: %q", edges, got)
		}
	}
}

func TestEveryBanFiresFromEveryStartToEveryEnd(t *testing.T) {
	if len(Bans) == 0 {
		t.Fatal("no bans")
	}
	for _, b := range Bans {
		for _, from := range b.From {
			start := strings.TrimPrefix(from, "=")
			if start == "" {
				start = "bundle"
			}
			for _, to := range b.Reach {
				for _, hops := range [][]string{{"@" + start, to}, {"@" + start, "example.com/a", "example.com/b", to}} {
					var edges []string
					for i := 1; i < len(hops); i++ {
						edges = append(edges, hops[i-1]+" -> "+hops[i])
					}
					g := graph(edges...)
					if to == Cgo {
						g[Cgo].Cgo, g[Cgo].Standard = true, false
					}
					if got := strings.Join(Check(g), "\n"); !strings.Contains(got, b.Why) {
						t.Errorf("%s -> %s over %d imports: the ban does not fire: %q", start, to, len(hops)-1, got)
					}
				}
			}
		}
	}
}

func TestEveryBanFiresOnTheRealGraphWithOneImportAdded(t *testing.T) {
	g := loadModule(t)
	for _, b := range Bans {
		fired := false
		for path, p := range g {
			rel, ok := own(path)
			if !ok || !b.applies(rel) {
				continue
			}
			to := b.Reach[0]
			if to == Cgo {
				to = "example.com/cgo"
			}
			imports, had := p.Imports, g[to]
			p.Imports = append(slices.Clone(imports), to)
			g[to] = &Package{Path: to, Cgo: true}
			if !strings.Contains(strings.Join(Check(g), "\n"), b.Why) {
				t.Errorf("%s -> %s: the ban does not fire", rel, to)
			}
			p.Imports = imports
			if delete(g, to); had != nil {
				g[to] = had
			}
			fired = true
			break
		}
		if !fired {
			t.Errorf("the ban %q is for no package that exists", b.Why)
		}
	}
}
