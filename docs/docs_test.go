package docs

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/host/serve"
	"github.com/mentatlab/mentat/internal/arch"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
	"github.com/mentatlab/mentat/verifier"
)

var update = flag.Bool("update", false, "write the generated parts anew")

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// same holds what a file has against what the code says, or writes it.
func same(t *testing.T, name, old, want string) {
	t.Helper()
	if old == want {
		return
	}
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	o, w := strings.Split(old, "\n"), strings.Split(want, "\n")
	for i := range max(len(o), len(w)) {
		if i >= len(o) || i >= len(w) || o[i] != w[i] {
			t.Fatalf("%s:%d is stale: run go test ./docs -update", name, i+1)
		}
	}
}

// generated holds the part of a page between the two marks against what the
// code says.
func generated(t *testing.T, page, mark, want string) {
	t.Helper()
	begin, end := "<!-- generated: "+mark+" -->\n", "<!-- end: "+mark+" -->"
	old := read(t, page)
	head, rest, ok := strings.Cut(old, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no part %q", page, mark)
	}
	same(t, page, old, head+begin+want+end+tail)
}

// examples are the fenced blocks that follow a line "<!-- example: KIND -->".
func examples(t *testing.T, kind string) map[string]string {
	t.Helper()
	re := regexp.MustCompile("(?ms)^<!-- example: " + regexp.QuoteMeta(kind) + " -->\n```[a-z]*\n(.*?)^```")
	found := map[string]string{}
	for _, page := range pages(t) {
		for i, m := range re.FindAllStringSubmatch(read(t, page), -1) {
			found[fmt.Sprintf("%s#%d", page, i+1)] = m[1]
		}
	}
	if len(found) == 0 {
		t.Fatalf("no page has an example of kind %q", kind)
	}
	return found
}

// pages are all Markdown files of the repository, as paths from here.
func pages(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"bin", "_build", "testdata", "node_modules"}, d.Name())):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".md"):
			if rel, err := filepath.Rel("../docs", path); err == nil {
				path = rel
			}
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 5 {
		t.Fatalf("only %d pages found", len(out))
	}
	return out
}

func TestErrorTableIsTheCodes(t *testing.T) {
	var b strings.Builder
	b.WriteString("| reason | what happened | containerd error | agent exit status | mentatctl exit code |\n|---|---|---|---|---|\n")
	for _, r := range fault.Table {
		fmt.Fprintf(&b, "| `%s` | %s | %v | %d | %d |\n", r.Reason, r.Meaning, r.Class, r.Exit, r.CLI)
	}
	generated(t, "errors.md", "errors", b.String())
}

func TestStatusTableIsTheServers(t *testing.T) {
	var b strings.Builder
	b.WriteString("| reason | status | what happened |\n|---|---|---|\n")
	for _, s := range serve.Statuses {
		reason := "`" + string(s.Reason) + "`"
		if s.Reason == "" {
			reason = "`agent-failed`"
		}
		fmt.Fprintf(&b, "| %s | %d | %s |\n", reason, s.Code, s.Meaning)
	}
	fmt.Fprintf(&b, "| any other | %d | see [errors.md](errors.md) |\n", http.StatusInternalServerError)
	generated(t, "serving.md", "statuses", b.String())
}

func TestEverySeriesOfAServerIsDocumented(t *testing.T) {
	page := read(t, "serving.md")
	doc := &hostdoc.Document{Serve: &hostdoc.Serve{Concurrent: 1}}
	m := serve.NewMetrics(doc)
	m.Memory(func() int64 { return 0 })
	if _, err := serve.New(noProgram{}, serve.Options{Document: doc, Metrics: m}); err != nil {
		t.Fatal(err)
	}
	names := m.Names()
	if len(names) < 10 {
		t.Fatalf("only %v", names)
	}
	for _, name := range names {
		short, _ := strings.CutPrefix(name, "mentatlab_http")
		if !strings.Contains(page, "`"+name) && !strings.Contains(page, "`…"+short+"`") {
			t.Errorf("serving.md does not name %s", name)
		}
	}
}

type noProgram struct{}

func (noProgram) Run(context.Context, serve.Request) (hostdoc.Exit, error) {
	return hostdoc.Exit{}, nil
}

func TestImportTableIsTheCheckers(t *testing.T) {
	var b strings.Builder
	b.WriteString("| part | what it is | may import |\n|---|---|---|\n")
	for _, p := range arch.Parts {
		imports := "–"
		switch {
		case slices.Contains(arch.Foundation, p.Path):
			imports = "foundation"
			if p.Path == "internal/fault" || p.Path == "internal/limits" {
				imports = "–"
			}
		case slices.Contains(p.Imports, arch.Anything):
			imports = "anything"
		case len(p.Imports) > 0:
			imports = "`" + strings.Join(p.Imports, "`, `") + "`"
		}
		name := p.Path + "/"
		if p.Path == "internal/test" {
			name = "internal/test…"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, p.What, imports)
	}
	generated(t, "architecture.md", "parts", b.String())

	b.Reset()
	for _, ban := range arch.Bans {
		from := make([]string, len(ban.From))
		for i, f := range ban.From {
			if from[i] = "`" + strings.TrimPrefix(f, "=") + "`"; f == "" {
				from[i] = "everything"
			}
		}
		line := strings.Join(from, ", ")
		if len(ban.Except) > 0 {
			line += " but `" + strings.Join(ban.Except, "`, `") + "`"
		}
		reach := "`" + strings.Join(ban.Reach, "`, `") + "`"
		if ban.Reach[0] == arch.Cgo {
			reach = "a package that needs cgo"
		}
		fmt.Fprintf(&b, "- %s → %s. Why: %s.\n", line, reach, ban.Why)
	}
	generated(t, "architecture.md", "bans", b.String())
}

func TestPublishedSchemaIsTheParsers(t *testing.T) {
	const name = "manifest.schema.json"
	old, err := os.ReadFile(name)
	if err != nil && !*update {
		t.Fatal(err)
	}
	same(t, name, string(old), string(manifest.Schema()))
}

func TestABIPageHasEveryFunctionWithItsSignatures(t *testing.T) {
	page := read(t, "abi.md")
	count := 0
	for _, f := range module.ABI {
		if f.Module != module.ModuleMentat {
			continue
		}
		count++
		types := make([]string, len(f.Types))
		for i, ft := range f.Types {
			types[i] = "`" + ft.String() + "`"
		}
		if row := "| `" + f.Name + "` | " + strings.Join(types, " or ") + " |"; !strings.Contains(page, row) {
			t.Errorf("abi.md has no row %s", row)
		}
	}
	if count == 0 {
		t.Fatal("the ABI has no functions")
	}
	if rows := strings.Count(page, "` | `("); rows != count {
		t.Errorf("abi.md has %d rows, the ABI has %d functions", rows, count)
	}
}

func TestLimitsOfTheABIAreTheCodes(t *testing.T) {
	var b strings.Builder
	b.WriteString("| what | at most |\n|---|---|\n")
	for _, row := range []struct {
		what string
		most int64
		unit string
	}{
		{"a module", limits.ModuleBytes, "bytes"},
		{"the input of a run", limits.InputBytes, "bytes"},
		{"the output of a run, streams included", limits.OutputBytes, "bytes"},
		{"open handles of a run, the input's included", limits.Handles, ""},
		{"the guest's call stack", limits.GuestStackBytes, "bytes"},
		{"elements of a table", limits.TableElements, ""},
		{"a message of `set_error`", limits.ErrorMessageBytes, "bytes"},
		{"a line of the log; what is longer is cut, and says so", limits.LogLineBytes, "bytes"},
		{"logged at once", limits.LogBurstBytes, "bytes"},
		{"logged in the long run", limits.LogBytesPerSecond, "bytes a second"},
		{"the id of a stream", limits.StreamIDBytes, "bytes"},
		{"the data of one event of a framed output", limits.ChunkBytes, "bytes"},
		{"the type of an object", limits.MediaTypeBytes, "bytes"},
		{"arguments of `request_capability`", limits.CapabilityArgsBytes, "bytes"},
		{"the name of an operation", limits.OperationBytes, "bytes"},
		{"the head of a request", limits.RequestHeadBytes, "bytes"},
		{"the bodies of the requests that are on their way", limits.RequestBytes, "bytes"},
		{"the head of an answer", limits.ResponseHeadBytes, "bytes"},
		{"calls of a run that go on at once", limits.Calls, ""},
		{"entries of a directory that is listed", limits.ListEntries, ""},
		{"names of an agent's metrics", limits.MetricNames, ""},
		{"combinations of a metric's name and attributes", limits.MetricSeries, ""},
		{"the name of a metric or attribute", limits.MetricNameBytes, "bytes"},
		{"attributes of a measurement", limits.MetricAttributes, ""},
		{"the attributes' JSON", limits.MetricAttributesBytes, "bytes"},
		{"the value of an attribute", limits.MetricValueBytes, "bytes"},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", row.what, strings.TrimSpace(amount(row.most, row.unit)))
	}
	b.WriteString("\nThe size of objects, and of all that a run stores, is the node's to set, as are\ntighter limits for input, output, memory and time.\n")
	generated(t, "abi.md", "abi-limits", b.String())
}

// amount writes a number as people do.
func amount(n int64, unit string) string {
	rest, bytes := strings.CutPrefix(unit, "bytes")
	switch {
	case bytes && n >= limits.MiB:
		return fmt.Sprintf("%d MiB%s", n/limits.MiB, rest)
	case bytes && n >= limits.KiB:
		return fmt.Sprintf("%d KiB%s", n/limits.KiB, rest)
	}
	return fmt.Sprint(n, " ", unit)
}

func TestExamplePoliciesAreAccepted(t *testing.T) {
	for at, text := range examples(t, "policy") {
		if _, err := verifier.ParsePolicy("policy.yaml", []byte(text)); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func TestExampleCapabilityPoliciesAreAcceptedAndHaveNoFindings(t *testing.T) {
	for at, text := range examples(t, "capabilities") {
		p, err := policy.Parse("capabilities.yaml", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		for _, f := range p.Check() {
			t.Errorf("%s: %+v", at, f)
		}
	}
}

func TestPolicyPageNamesEveryKeyOfCapabilities(t *testing.T) {
	page := read(t, "policy.md")
	for _, key := range policy.Keys() {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !strings.Contains(page, name+":") && !strings.Contains(page, "`"+name+"`") && !strings.Contains(page, "."+name+"`") {
			t.Errorf("policy.md says nothing of %s", key)
		}
	}
}

func TestTheExecutionRecordOfThePageIsOne(t *testing.T) {
	for at, text := range examples(t, "execution") {
		var e audit.Execution
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		again, err := json.MarshalIndent(&e, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if json.Unmarshal(again, &a) != nil || json.Unmarshal([]byte(text), &b) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("%s: the program writes\n%s", at, again)
		}
	}
}

func TestTheServicesUnitRunsACommandThatIsThere(t *testing.T) {
	unit := read(t, "../deploy/systemd/mentat-node.service")
	m := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/mentatctl (.*)$`).FindStringSubmatch(unit)
	if m == nil {
		t.Fatal("the unit starts nothing of ours")
	}
	help := read(t, "mentatctl.md")
	if !strings.Contains(help, "\n## mentatctl "+m[1]+"\n") {
		t.Errorf("there is no command mentatctl %s", m[1])
	}
	config, err := nodeconfig.Parse("/etc/mentat/config.toml", []byte(""))
	if err != nil {
		t.Fatal(err)
	}
	// What it writes by default it may write under ProtectSystem=strict.
	for _, path := range []string{config.Audit.Spool, config.Audit.Log, config.Verify.State} {
		if !strings.HasPrefix(path, "/var/lib/mentat/") || !strings.Contains(unit, "StateDirectory=mentat\n") {
			t.Errorf("the unit keeps the service from writing %s", path)
		}
	}
	if !strings.HasPrefix(config.Service.Listen, "unix:/run/mentat/") || !strings.Contains(unit, "RuntimeDirectory=mentat\n") {
		t.Errorf("the unit keeps the service from listening at %s", config.Service.Listen)
	}
}

func TestExampleManifestsAreAcceptedAndBuild(t *testing.T) {
	for at, text := range examples(t, "manifest") {
		m, err := manifest.Parse("manifest.yaml", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		for _, err := range m.Lint() {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func TestExampleNodeConfigurationsAreAccepted(t *testing.T) {
	for at, text := range examples(t, "config") {
		if _, err := nodeconfig.Parse("/etc/mentat/config.toml", []byte(text)); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func TestNodeConfigurationPageNamesEveryKey(t *testing.T) {
	page := read(t, "node-install.md")
	_, err := nodeconfig.Parse("config.toml", []byte("no-such-key = 1"))
	_, keys, ok := strings.Cut(fmt.Sprint(err), "allowed are ")
	if !ok {
		t.Fatalf("no list of keys in %v", err)
	}
	for _, key := range strings.Split(keys, ", ") {
		if !strings.Contains(page, "`"+key+"`") {
			t.Errorf("node-install.md says nothing of %s", key)
		}
	}
}

// mentatctl builds the command once and returns its path.
func mentatctl(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "mentatctl")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/mentatctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// subcommandRE matches a line of a help page's lists of commands.
var subcommandRE = regexp.MustCompile(`(?m)^  (?:mentatctl )?([a-z][a-z-]*) +\S`)

func TestCommandPageHasTheHelpOfEveryCommand(t *testing.T) {
	bin := mentatctl(t)
	var b strings.Builder
	var walk func(args ...string)
	walk = func(args ...string) {
		cmd := exec.CommandContext(t.Context(), bin, append([]string{"help"}, args...)...)
		// Defaults that a page shows must not be those of whoever runs the test.
		cmd.Env = []string{"HOME=/home/you", "PATH=/usr/bin"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("mentatctl help %v: %v", args, err)
		}
		text := strings.TrimRight(string(out), "\n")
		fmt.Fprintf(&b, "## %s\n\n```text\n%s\n```\n\n", strings.Join(append([]string{"mentatctl"}, args...), " "), text)
		for _, list := range strings.Split(text, "\n\n") {
			title, body, _ := strings.Cut(list, "\n")
			if !slices.ContainsFunc(commandLists, func(s string) bool { return strings.HasSuffix(title, s) }) {
				continue
			}
			for _, m := range subcommandRE.FindAllStringSubmatch(body, -1) {
				// What completion prints for each shell is the library's affair.
				if m[1] != "help" && !slices.Contains(args, "completion") {
					walk(append(slices.Clone(args), m[1])...)
				}
			}
		}
	}
	walk()
	if n := strings.Count(b.String(), "\n## "); n < 10 {
		t.Fatalf("only %d commands found", n)
	}
	generated(t, "mentatctl.md", "help", "\n"+b.String())
}

// commandLists end the headings under which a help page lists commands.
var commandLists = []string{"Commands:", "help topics:", "way:", "access:"}

// commandRE matches a command line of mentatctl in a page.
var commandRE = regexp.MustCompile(`(?m)\bmentatctl ((?:[a-z][a-z-]*[ \x60\n])+)([^\n\x60#|]*)`)

func TestCommandLinesInThePagesExist(t *testing.T) {
	help := map[string]string{}
	for _, section := range strings.Split(read(t, "mentatctl.md"), "\n## mentatctl ")[1:] {
		name, text, _ := strings.Cut(section, "\n")
		help[name] = text
	}
	lines := 0
	for _, page := range pages(t) {
		if page == "mentatctl.md" {
			continue
		}
		for _, block := range fenceRE.FindAllString(read(t, page), -1) {
			for _, m := range commandRE.FindAllStringSubmatch(strings.ReplaceAll(block, "\\\n", " "), -1) {
				lines++
				words := strings.Fields(m[1])
				name := words[0]
				if len(words) > 1 && help[name+" "+words[1]] != "" {
					name += " " + words[1]
				}
				text, ok := help[name]
				if !ok {
					t.Errorf("%s: there is no command mentatctl %s", page, name)
				}
				for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(m[2], -1) {
					if flag != "--" && !strings.Contains(text, flag+" ") {
						t.Errorf("%s: mentatctl %s has no flag %s", page, name, flag)
					}
				}
			}
		}
	}
	if lines == 0 {
		t.Error("no command lines found")
	}
}

func TestCapabilityPageHasTheParsersVectors(t *testing.T) {
	generated(t, "capabilities.md", "vectors", vectors(t))
}

func vectors(t *testing.T) string {
	t.Helper()
	return "```text\n" + read(t, "../manifest/testdata/capabilities.txt") + "```\n"
}

var (
	linkRE    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	headingRE = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	fenceRE   = regexp.MustCompile("(?ms)^```.*?^```")
	slugRE    = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names that a page's headings have as link targets.
func anchors(page string) map[string]bool {
	out := map[string]bool{}
	for _, m := range headingRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(page, ""), -1) {
		slug := slugRE.ReplaceAllString(strings.ToLower(m[1]), "")
		out[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return out
}

func checkLinks(t *testing.T, page, text string) (problems []string, links int) {
	t.Helper()
	for _, m := range linkRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(text, ""), -1) {
		if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
			continue
		}
		links++
		target, anchor, _ := strings.Cut(m[1], "#")
		body := text
		if target != "" {
			path := filepath.Join(filepath.Dir(page), target)
			info, err := os.Stat(path)
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s: %s leads nowhere", page, m[1]))
				continue
			}
			if info.IsDir() {
				continue
			}
			body = read(t, path)
		}
		if anchor != "" && !anchors(body)[anchor] {
			problems = append(problems, fmt.Sprintf("%s: %s names no heading", page, m[1]))
		}
	}
	return problems, links
}

func TestEveryRelativeLinkResolves(t *testing.T) {
	total := 0
	for _, page := range pages(t) {
		problems, n := checkLinks(t, page, read(t, page))
		total += n
		for _, p := range problems {
			t.Error(p)
		}
	}
	if total == 0 {
		t.Error("no links found")
	}
}

func TestABrokenLinkIsReported(t *testing.T) {
	for text, want := range map[string]int{
		"[a](errors.md)": 0, "[a](errors.md#no-such-heading)": 1, "[a](no-such.md)": 1, "# Top it\n[a](#top-it)": 0,
		"[a](#top)": 1, "[a](https://example.com/x)": 0, "```\n[a](no-such.md)\n```": 0,
	} {
		if got, _ := checkLinks(t, "page.md", text); len(got) != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestEveryPageIsReachedFromTheIndex(t *testing.T) {
	index := read(t, "README.md")
	own, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range own {
		if page != "README.md" && !strings.Contains(index, "("+page+")") {
			t.Errorf("docs/README.md does not link to %s", page)
		}
	}
}
