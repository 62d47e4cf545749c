package arch

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Module is the path that the paths in [Parts] and [Bans] are relative to.
const Module = "github.com/mentatlab/mentat"

// Part is one row of the import table: a directory, the directories below it
// that have no row of their own included.
type Part struct {
	// Path is relative to the module; "" is the root.
	Path string
	// What is the sentence that docs/architecture.md prints.
	What string
	// Imports are the parts whose packages this one may import besides
	// [Foundation]; [Anything] stands for all but commands and their like, which
	// nobody may import.
	Imports []string
}

// Anything in [Part.Imports] allows every importable part.
const Anything = "*"

// Foundation may be imported by every part.
var Foundation = []string{"internal/fault", "internal/limits", "internal/hostdoc", "internal/nodeconfig", "internal/version", "internal/atomicfile", "internal/owndir"}

// leaf tells whether a part may be imported by nobody: commands, and what only
// tests, shows or measures.
func leaf(p Part) bool {
	return slices.Contains([]string{"integration", "demo", "bench", "docs", "scripts"}, p.Path) || strings.HasPrefix(p.Path, "cmd/")
}

// testPrefix marks packages that only test files may import, and parts that may
// import [Anything].
const testPrefix = "internal/test"

// Parts is the import table.
var Parts = []Part{
	{"internal/fault", "the one error table: reason, containerd class, exit status, CLI code", nil},
	{"internal/limits", "every bound on input from outside", nil},
	{"internal/hostdoc", "the document a run is started with", nil},
	{"internal/nodeconfig", "the node's config.toml", nil},
	{"internal/version", "which build this is", nil},
	{"internal/atomicfile", "files that appear whole or not at all", nil},
	{"internal/owndir", "small files in a directory of the user's own", nil},
	{"manifest", "manifest.yaml: types, strict parsing, capability strings, canonical JSON, reading a module without an engine", nil},
	{"oci", "the artifact as bytes: build, read, layout on disk", []string{"manifest"}},
	{"oci/remote", "registries", []string{"oci"}},
	{"oci/remote/provider", "the kubelet's credential providers", []string{"manifest"}},
	{"verifier", "sign and verify, as a function of bytes, policy and clock", []string{"manifest", "oci"}},
	{"verifier/pki", "the certificate authority on disk", nil},
	{"verifier/pki/remote", "the certificate authority over HTTPS: server and client", []string{"verifier/pki"}},
	{"verifier/pki/pkcs11", "keys in a PKCS #11 token, over a program of their own", nil},
	{"verifier/notation", "Notary Project signatures, for those who verify with notation and those who accept them", []string{"oci", "verifier"}},
	{"verifier/timestamp", "RFC 3161 tokens, read with a library that could also fetch them", []string{"verifier"}},
	{"verifier/fetch", "revocation lists and time stamps over the network", []string{"verifier", "verifier/timestamp"}},
	{"capability", "the effective grant: manifest, policy and trust level", []string{"manifest"}},
	{"host", "the WASM side: engine, ABI, WASI, runs, and what serves capabilities", []string{"manifest", "capability", "host/media"}},
	{"host/media", "media references and a store in a directory", nil},
	{"aot", "the cache of compiled modules and the compiler child", nil},
	{"bundle", "one OCI bundle made ready: find, classify, verify, grant, rewrite", []string{"manifest", "oci", "verifier", "verifier/timestamp", "verifier/notation", "verifier/fetch", "capability", "aot"}},
	{"shim", "containerd's task service, wrapped", []string{"bundle"}},
	{"node", "the node service: audit log, revocation lists, old media, metrics", []string{"manifest", "capability", "host/media", "verifier", "verifier/timestamp", "verifier/fetch"}},
	{"node/doctor", "whether a node really verifies: its containerd, its files, canaries for its gates", []string{"manifest", "oci", "verifier", "verifier/timestamp", "verifier/notation", "verifier/fetch"}},
	{"sdk", "the guest SDKs' sources, carried by mentatctl", nil},
	{"cmd/containerd-shim-mentat-v1", "what containerd runs, the shim's first step", []string{"shim"}},
	{"cmd/mentat-shim", "the shim", []string{"shim"}},
	{"cmd/mentat", "an OCI runtime command line over the same bundle", []string{"bundle"}},
	{"cmd/mentat-host", "the static binary that becomes the container's process", []string{"host"}},
	{"cmd/mentat-host-net", "the same for agents that reach a network", []string{"host"}},
	{"cmd/mentat-verifier", "containerd's image verifier executable", []string{"manifest", "oci", "oci/remote", "oci/remote/provider", "verifier", "verifier/timestamp", "verifier/notation", "verifier/fetch"}},
	{"cmd/mentatctl", "the tool people hold in their hands", []string{"manifest", "oci", "oci/remote", "verifier", "verifier/pki", "verifier/pki/remote", "verifier/pki/pkcs11", "verifier/notation", "verifier/timestamp", "verifier/fetch", "capability", "aot", "node", "node/doctor", "sdk"}},
	{"cmd/mentat-pkcs11", "the program that loads a token's library", []string{"verifier/pki/pkcs11"}},
	{"integration", "end-to-end tests against a real containerd and registry", []string{Anything}},
	{"integration/node", "a private containerd and registry for them", []string{Anything}},
	{"demo", "the first command of the README", []string{Anything}},
	{"bench", "what is measured, side by side", []string{Anything}},
	{"scripts", "what the Makefile runs", nil},
	{"docs", "the documentation and its tests", []string{Anything}},
	{"internal/arch", "this table and its tests", []string{Anything}},
	{"internal/test", "fixtures for tests", []string{Anything}},
}

// Ban says that no package of From may reach a package of Reach, over any
// number of imports.
type Ban struct {
	// From are paths relative to the module, with everything below them; a
	// leading "=" means exactly that package.
	From []string
	// Except are paths below From that the ban is not for.
	Except []string
	// Reach are full import paths, with everything below them; [Cgo] stands for
	// every package outside the standard library that needs cgo.
	Reach []string
	// Why is the reason, printed when the ban fires.
	Why string
}

// Cgo in [Ban.Reach] is every non-standard package with cgo files.
const Cgo = "cgo"

// Bans are the transitive rules.
var Bans = []Ban{
	{
		From:  []string{"host", "cmd/mentat-host", "cmd/mentat-host-net"},
		Reach: []string{"github.com/containerd/containerd", "github.com/containerd/ttrpc", "google.golang.org/grpc"},
		Why:   "the host runs hostile code inside the container: it must not hold a client of the daemon outside",
	},
	{
		From:  []string{"cmd/mentat-host", "=host", "=host/process"},
		Reach: []string{"net/http", "crypto/tls"},
		Why:   "the lean host stays lean: what reaches a network is in mentat-host-net",
	},
	{
		From:  []string{"shim", "bundle", "verifier", "oci", "manifest", "capability", "aot", "cmd/containerd-shim-mentat-v1", "cmd/mentat-shim", "cmd/mentat", "cmd/mentat-verifier", "cmd/mentatctl"},
		Reach: []string{"github.com/bytecodealliance/wasmtime-go"},
		Why:   "only mentat-host holds an engine: root processes never parse or compile a module natively",
	},
	{
		From:  []string{"shim/launch", "cmd/containerd-shim-mentat-v1"},
		Reach: []string{"github.com/containerd/containerd", "google.golang.org", "net", "regexp"},
		Why:   "every start waits for this program to be loaded",
	},
	{
		From:  []string{"=verifier"},
		Reach: []string{"net/http", "net/rpc", "net/smtp", "crypto/tls", "golang.org/x/net", "google.golang.org/grpc", "oras.land/oras-go/v2/registry/remote", "os/exec"},
		Why:   "verification is a function of bytes, policy and clock: it takes bytes, it does not fetch them",
	},
	{
		From:  []string{"capability", "manifest"},
		Reach: []string{"net/http", "crypto/tls"},
		Why:   "what an agent may do is decided without a network, and the lean host links it",
	},
	{
		From:  []string{"shim", "bundle", "cmd/containerd-shim-mentat-v1", "cmd/mentat"},
		Reach: []string{"github.com/prometheus/client_golang"},
		Why:   "one shim runs for each pod: metrics are the node service's",
	},
	{
		From:   []string{""},
		Except: []string{"cmd/mentatctl", "integration", "demo", "bench"},
		Reach:  []string{"github.com/spf13/cobra", "github.com/spf13/pflag"},
		Why:    "flags live in cmd/mentatctl",
	},
	{
		From:  []string{"cmd/mentatctl", "cmd/mentat-verifier", "verifier", "oci", "manifest", "capability"},
		Reach: []string{Cgo},
		Why:   "mentatctl is built for macOS and Windows too, without a C compiler",
	},
}

// Package is what the rules need to know of a package.
type Package struct {
	Path        string
	Imports     []string
	TestImports []string
	Standard    bool
	Cgo         bool
}

// Graph is packages by import path.
type Graph map[string]*Package

func below(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// own returns a path relative to the module, and whether it is in it.
func own(path string) (string, bool) {
	if path == Module {
		return "", true
	}
	return strings.CutPrefix(path, Module+"/")
}

// partOf finds the row of a package: the longest path that it is below.
// Packages under internal/test… share one row.
func partOf(rel string) (Part, bool) {
	if strings.HasPrefix(rel, testPrefix) {
		rel = testPrefix
	}
	best, found := Part{}, false
	for _, p := range Parts {
		if below(rel, p.Path) && (!found || len(p.Path) > len(best.Path)) {
			best, found = p, true
		}
	}
	return best, found
}

func anyBelow(rel string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return below(rel, d) })
}

// Check returns every violation of the import table and of the bans, sorted,
// each as a sentence.
func Check(g Graph) []string {
	var out []string
	for _, p := range g {
		rel, ok := own(p.Path)
		if !ok {
			continue
		}
		out = append(out, checkImports(rel, p)...)
		for _, b := range Bans {
			if chain := b.violation(g, rel); chain != nil {
				out = append(out, fmt.Sprintf("%s: %s", strings.Join(chain, " -> "), b.Why))
			}
		}
	}
	sort.Strings(out)
	return out
}

func checkImports(rel string, p *Package) []string {
	part, ok := partOf(rel)
	if !ok {
		return []string{fmt.Sprintf("%s: no row of the import table names it", rel)}
	}
	var out []string
	for _, imp := range p.Imports {
		to, ok := own(imp)
		if !ok {
			continue
		}
		if why := refuse(part, to); why != "" {
			out = append(out, fmt.Sprintf("%s imports %s: %s", rel, to, why))
		}
	}
	for _, imp := range p.TestImports {
		// Tests may import what their package may not, but no leaf.
		to, ours := own(imp)
		if dst, _ := partOf(to); ours && leaf(dst) && dst.Path != part.Path {
			out = append(out, fmt.Sprintf("a test of %s imports %s: nothing imports it", rel, to))
		}
	}
	return out
}

// refuse says why a package of part may not import to; "" means it may.
func refuse(part Part, to string) string {
	dst, ok := partOf(to)
	switch {
	case !ok:
		return "no row of the import table names it"
	case dst.Path == part.Path:
		return ""
	case strings.HasPrefix(to, testPrefix) && !slices.Contains(part.Imports, Anything):
		return "only tests may"
	case leaf(dst):
		return "nothing imports it"
	case slices.Contains(Foundation, dst.Path) && part.Path != "internal/fault" && part.Path != "internal/limits":
		return ""
	case slices.Contains(part.Imports, dst.Path), slices.Contains(part.Imports, Anything):
		return ""
	}
	return fmt.Sprintf("%s may import only %s", part.Path, allowed(part))
}

func allowed(p Part) string {
	if len(p.Imports) == 0 {
		return "the foundation"
	}
	return strings.Join(p.Imports, ", ") + " and the foundation"
}

// violation returns the chain of imports by which the package reaches what
// the ban names, nil when it does not.
func (b Ban) violation(g Graph, rel string) []string {
	if !b.applies(rel) {
		return nil
	}
	start := Module
	if rel != "" {
		start += "/" + rel
	}
	from := map[string]string{start: ""}
	queue := []string{start}
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		p := g[path]
		if path != start && b.hits(path, p) {
			var chain []string
			for at := path; at != ""; at = from[at] {
				chain = append(chain, at)
			}
			slices.Reverse(chain)
			return chain
		}
		if p == nil {
			continue
		}
		for _, imp := range p.Imports {
			if _, seen := from[imp]; !seen {
				from[imp] = path
				queue = append(queue, imp)
			}
		}
	}
	return nil
}

func (b Ban) applies(rel string) bool {
	if anyBelow(rel, b.Except) {
		return false
	}
	return slices.ContainsFunc(b.From, func(f string) bool {
		if exact, ok := strings.CutPrefix(f, "="); ok {
			return rel == exact
		}
		return below(rel, f)
	})
}

func (b Ban) hits(path string, p *Package) bool {
	return slices.ContainsFunc(b.Reach, func(r string) bool {
		if r == Cgo {
			return p != nil && p.Cgo && !p.Standard
		}
		return below(path, r) || strings.HasPrefix(path, r+"/v")
	})
}
