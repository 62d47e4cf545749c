package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
)

type vector struct {
	name          string
	ok            bool
	bad           []string // "LINE: TEXT"
	schemaAccepts bool
	text          []byte
}

func manifestVectors(t testing.TB) []vector {
	t.Helper()
	data, err := os.ReadFile("testdata/manifests.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	for _, part := range strings.Split(string(data), "\n=== ")[1:] {
		head, text, ok := strings.Cut(part, "\n---\n")
		if !ok {
			t.Fatalf("no text in %q", part)
		}
		lines := strings.Split(head, "\n")
		v := vector{name: lines[0], text: []byte(text)}
		for _, line := range lines[1:] {
			switch verb, rest, _ := strings.Cut(line, " "); {
			case line == "ok":
				v.ok, v.schemaAccepts = true, true
			case verb == "bad":
				v.bad = append(v.bad, rest)
			case line == "schema accepts":
				v.schemaAccepts = true
			default:
				t.Fatalf("%s: unknown expectation %q", v.name, line)
			}
		}
		if v.ok == (len(v.bad) > 0) {
			t.Fatalf("%s expects nothing, or both", v.name)
		}
		all = append(all, v)
	}
	if len(all) < 60 {
		t.Fatalf("only %d vectors", len(all))
	}
	return all
}

// each lists the errors that were joined.
func each(err error) []error {
	if _, single := err.(*fault.Error); !single { //nolint:errorlint // a list has to be told from its members
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			return many.Unwrap()
		}
	}
	return []error{err}
}

func TestTheParserSaysWhatTheVectorsSay(t *testing.T) {
	for _, v := range manifestVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			m, err := Parse("m.yaml", v.text)
			if v.ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if m != nil {
				t.Error("a refused manifest was returned")
			}
			got := each(err)
			for _, e := range got {
				var fe *fault.Error
				if !errors.As(e, &fe) || fe.Reason != fault.ManifestInvalid || strings.Contains(e.Error(), "\n") || !strings.HasPrefix(e.Error(), "m.yaml:") {
					t.Errorf("malformed error %q", e)
				}
			}
			for _, want := range v.bad {
				line, text, _ := strings.Cut(want, ": ")
				prefix := "m.yaml:" + line + ": "
				if line == "0" {
					prefix = "m.yaml: "
				}
				found := false
				for i, e := range got {
					if e != nil && strings.HasPrefix(e.Error(), prefix) && strings.Contains(e.Error(), text) {
						got[i], found = nil, true
						break
					}
				}
				if !found {
					t.Errorf("no error like %q", want)
				}
			}
			for _, e := range got {
				if e != nil {
					t.Errorf("unexpected: %v", e)
				}
			}
		})
	}
}

func compileSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// schemaAccepts reads YAML as an editor does; what is no YAML, or what the
// schema's data model has no word for, never reaches the schema.
func schemaAccepts(t testing.TB, s *jsonschema.Schema, text []byte) (accepted, readable bool) {
	t.Helper()
	var value any
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&value); err != nil {
		return false, false
	}
	data, err := json.Marshal(value)
	if err != nil {
		return false, false
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return false, false
	}
	return s.Validate(doc) == nil, true
}

func TestSchemaAndParserAgree(t *testing.T) {
	s := compileSchema(t)
	for _, v := range manifestVectors(t) {
		accepted, readable := schemaAccepts(t, s, v.text)
		switch {
		case v.ok && !accepted:
			t.Errorf("%s: the schema refuses what the parser accepts", v.name)
		case !v.ok && !v.schemaAccepts && readable && accepted:
			t.Errorf("%s: the schema accepts what the parser refuses", v.name)
		}
	}
}

func TestTheSpecificationsExamplesParse(t *testing.T) {
	s := compileSchema(t)
	files, err := filepath.Glob("testdata/spec/*.yaml")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		m, err := load(t, file)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		data, err := m.Canonical()
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := ParseCanonical(data); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if accepted, _ := schemaAccepts(t, s, text); !accepted {
			t.Errorf("%s: the schema refuses it", file)
		}
	}
}

func load(t *testing.T, file string) (*Manifest, error) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(file, text)
}

func lintText(m *Manifest) string {
	var all []string
	for _, err := range m.Lint() {
		all = append(all, err.Error())
	}
	return strings.Join(all, "\n")
}

func TestTheSpecificationsWASMExampleNamesWhatItForgot(t *testing.T) {
	m, err := load(t, "testdata/spec/1.4-wasm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := `testdata/spec/1.4-wasm.yaml:23: the directory /data (read-write) has no capability that allows it (add to wasm.capabilities: - filesystem:read-write:/data)
testdata/spec/1.4-wasm.yaml:25: the variable RUST_LOG has no capability that allows it (add to wasm.capabilities: - env:RUST_LOG)`
	if got := lintText(m); got != want {
		t.Errorf("got:\n%s", got)
	}
	if m.MemoryLimit() != 100*limits.MiB || len(m.Capabilities()) != 3 || !m.WASMAgent() {
		t.Errorf("%+v", m)
	}
}

func TestTheSpecificationsAttestationIsReadAsItIsWritten(t *testing.T) {
	m, err := load(t, "testdata/spec/2.2-attestation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if m.Runtime != DefaultRuntime || m.WASMAgent() || len(m.Attestations) != 1 {
		t.Fatalf("%+v", m)
	}
	var block struct {
		Version   string `json:"version"`
		Timestamp string `json:"timestamp"`
		Signature string `json:"signature"`
		Signer    struct {
			Subject string `json:"subject"`
		} `json:"signer"`
		Chain []string `json:"certificate_chain"`
	}
	if err := json.Unmarshal(m.Attestations[0], &block); err != nil {
		t.Fatal(err)
	}
	if block.Version != "1.0" || block.Timestamp != "2026-01-15T10:30:00Z" || block.Signature != "MEUCIQDxxx...base64...xxxIgYyy\n" ||
		!strings.HasPrefix(block.Signer.Subject, "CN=john.doe") || len(block.Chain) != 2 || !strings.HasSuffix(block.Chain[1], "-----END CERTIFICATE-----\n") {
		t.Errorf("%+v", block)
	}
}

const lintHead = `id: a
version: 1.0.0
runtime: wasm
module: a.wasm
wasm:
  capabilities: [filesystem:read:/in, filesystem:read:/rw, filesystem:write:/rw, "network:https:*.openai.com", "network:http:10.0.0.0/8:22", env:A]
`

func TestLintFindsWhatContradicts(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"covered", "  wasi: {preopens: {/in/x: read-only, /rw: read-write}, env: [A=1]}\n", ""},
		{"preopen mode", "  wasi: {preopens: {/in: read-write}}\n", "m:7: the directory /in (read-write) has no capability"},
		{"preopen nowhere", "  wasi: {preopens: {/inner: read-only}}\n", "m:7: the directory /inner (read-only) has no"},
		{"variable", "  wasi: {env: [B=1]}\n", "m:7: the variable B has no capability"},
		{"sandbox preopen", "sandbox:\n  filesystem:\n    preopens:\n      - /out: read-only\n", "m:10: the directory /out (read-only) has no"},
		{"modes differ", "  wasi: {preopens: {/rw: read-write}}\nsandbox: {filesystem: {preopens: {/rw: read-only}}}\n", "m:8: the directory /rw is read-only here and read-write in wasm.wasi.preopens"},
		{"host", "sandbox:\n  network:\n    allowed_hosts: [api.openai.com, 10.1.0.0/16, evil.com]\n", "m:9: the host evil.com has no capability that allows it (add to wasm.capabilities: - network:https:evil.com)"},
		{"no host left", "sandbox: {network: {allowed_hosts: [api.openai.com]}}\n", "m:6: capability network:http:10.0.0.0/8:22 reaches no host"},
		{"mode none", "sandbox: {network: {mode: none}}\n", "m:6: capability network:https:*.openai.com contradicts sandbox.network.mode none\nm:6: capability network:http:10.0.0.0/8:22 contradicts"},
		{"blocked port", "sandbox: {network: {blocked_ports: [22]}}\n", "m:6: capability network:http:10.0.0.0/8:22 needs a port of sandbox.network.blocked_ports"},
	} {
		m, err := Parse("m", []byte(lintHead+c.text))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := lintText(m); !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s:\n%s", c.name, got)
		}
		for _, err := range m.Lint() {
			if fault.ReasonOf(err) != fault.ManifestInvalid {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	m, err := Parse("m", []byte("id: a\nversion: 1.0.0\nimage: a:1\nsandbox: {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := lintText(m); !strings.HasPrefix(got, "m:4: sandbox has no effect on runtime python3.12") {
		t.Error(got)
	}
}

func TestCanonicalKeepsTheMeaning(t *testing.T) {
	for _, v := range manifestVectors(t) {
		if !v.ok {
			continue
		}
		m, err := Parse("m", v.text)
		if err != nil {
			t.Fatal(err)
		}
		checkRoundTrip(t, m)
	}
}

// checkRoundTrip proves that the canonical form says all that m says, but for
// what is left out on purpose.
func checkRoundTrip(t testing.TB, m *Manifest) {
	t.Helper()
	data, err := m.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCanonical(data)
	if err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	twice, err := again.Canonical()
	if err != nil || !bytes.Equal(data, twice) {
		t.Fatalf("%s\nbecomes\n%s\n%v", data, twice, err)
	}
	if len(again.Lint()) != len(m.Lint()) || again.MemoryLimit() != m.MemoryLimit() || again.Deadline() != m.Deadline() ||
		!reflect.DeepEqual(again.Capabilities(), m.Capabilities()) && len(m.Capabilities()) > 0 {
		t.Fatalf("%s means something else than\n%+v", data, m)
	}
	if again.Container != "" || again.Attestations != nil {
		t.Fatalf("%s holds what only matters to the build", data)
	}
}

func TestCanonicalFormIsStable(t *testing.T) {
	var every []byte
	for _, v := range manifestVectors(t) {
		if v.name == "every key" {
			every = v.text
		}
	}
	m, err := Parse("m", every)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/every-key.json")
	if err != nil {
		t.Fatal(err)
	}
	if want = bytes.TrimSpace(want); !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestParseCanonicalRefusesEverythingElse(t *testing.T) {
	const good = `{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`
	if _, err := ParseCanonical([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {"", "not acceptable as JSON: JSON is empty"},
		"a blank":           {" " + good, "not in canonical form at byte 0"},
		"a line end":        {good + "\n", "not in canonical form"},
		"order":             {`{"module":"a.wasm","id":"a","runtime":"wasm","version":"1.0.0"}`, "not in canonical form"},
		"duplicate":         {`{"id":"a","id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`, `key "id" occurs twice`},
		"hidden duplicate":  {`{"id":"a","\u0069d":"b","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`, `key "id" occurs twice`},
		"another case":      {`{"ID":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`, "not in canonical form"},
		"unknown":           {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","x":1}`, `unknown field "x"`},
		"attestation":       {`{"attestation":{},"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`, "unknown field"},
		"container":         {`{"container":"x","id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`, "unknown field"},
		"null":              {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","wasm":null}`, "not in canonical form"},
		"explicit zero":     {`{"id":"a","module":"a.wasm","runtime":"wasm","sandbox":{"resources":{"process_count":0}},"version":"1.0.0"}`, "not in canonical form"},
		"no runtime":        {`{"id":"a","image":"a:1","version":"1.0.0"}`, `runtime ""`},
		"rule":              {`{"id":"A","module":"a.wasm","runtime":"wasm","version":"1.0.0"}`, `breaks a rule: id: id "A"`},
		"capability":        {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","wasm":{"capabilities":["x"]}}`, "unknown kind"},
		"spelling":          {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","wasm":{"capabilities":["filesystem:read:/a/"]}}`, "not in canonical form"},
		"size as a number":  {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","wasm":{"memory":{"maximum":100}}}`, "malformed"},
		"size in two ways":  {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","wasm":{"memory":{"maximum":"1024MB"}}}`, "not in canonical form"},
		"an array":          {`[]`, "malformed"},
		"null itself":       {`null`, "breaks a rule"},
		"over the limit":    {`{"id":"` + strings.Repeat("a", limits.AgentManifestBytes) + `"}`, "over 262144 bytes"},
		"walls taken down":  {`{"id":"a","module":"a.wasm","runtime":"wasm","sandbox":{"process":{"namespace":false}},"version":"1.0.0"}`, "sandbox.process.namespace is false"},
		"preopen of root":   {`{"id":"a","module":"a.wasm","runtime":"wasm","version":"1.0.0","wasm":{"wasi":{"preopens":{"/":"read-only"}}}}`, `"/" cannot be given`},
		"not UTF-8":         {"{\"id\":\"a\xff\"}", "not UTF-8"},
		"module and python": {`{"id":"a","image":"a:1","module":"a.wasm","runtime":"python3.12","version":"1.0.0"}`, "module does not go with runtime python3.12"},
	} {
		m, err := ParseCanonical([]byte(c.text))
		if err == nil || m != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "agent manifest: ") ||
			fault.ReasonOf(err) != fault.ManifestInvalid || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheSmallestMemoryCounts(t *testing.T) {
	for text, want := range map[string]int64{
		"":                                     0,
		"wasm: {memory: {initial: 5}}":         0,
		"wasm: {memory: {maximum: 5}}":         5 * limits.MiB,
		"wasm: {memory: {maximum: \"512KB\"}}": 512 * limits.KiB,
		"sandbox: {resources: {memory_limit: 3MiB}}":                                  3 * limits.MiB,
		"wasm: {memory: {maximum: 5}}\nsandbox: {resources: {memory_limit: 512MB}}":   5 * limits.MiB,
		"wasm: {memory: {maximum: 4096}}\nsandbox: {resources: {memory_limit: 1GiB}}": 1024 * limits.MiB,
	} {
		m, err := Parse("m", []byte("id: a\nversion: 1.0.0\nruntime: wasm\nmodule: a.wasm\n"+text))
		if err != nil {
			t.Error(err)
		} else if got := m.MemoryLimit(); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestValuesReadBack(t *testing.T) {
	m, err := Parse("m", []byte("id: a\nversion: 1.0.0\nruntime: wasm\nmodule: a.wasm\nwasm: {deadline: 90s}\nsandbox: {resources: {cpu_quota: 1500ms/s}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if m.Deadline() != 90*time.Second || m.Sandbox.Resources.CPUQuotaMillis() != 1500 {
		t.Errorf("%v, %v", m.Deadline(), m.Sandbox.Resources)
	}
	if (*Resources)(nil).CPUQuotaMillis() != 0 || new(Manifest).Deadline() != 0 || new(Manifest).Capabilities() != nil {
		t.Error("nothing said is not zero")
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range manifestVectors(f) {
		f.Add(v.text)
	}
	files, err := filepath.Glob("testdata/spec/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	schema := compileSchema(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse("m", text)
		if err != nil {
			if m != nil || fault.ReasonOf(err) != fault.ManifestInvalid {
				t.Fatalf("%v, %v", m, err)
			}
			for _, e := range each(err) {
				if strings.ContainsAny(e.Error(), "\n\r\x00") || !strings.HasPrefix(e.Error(), "m") {
					t.Fatalf("malformed error %q", e)
				}
			}
			return
		}
		if data, err := m.Canonical(); err != nil || len(data) > limits.AgentManifestBytes {
			t.Skip("accepted, and too large for an artifact")
		}
		checkRoundTrip(t, m)
		if accepted, readable := schemaAccepts(t, schema, text); readable && !accepted && !exotic(text) {
			t.Fatal("the schema refuses what the parser accepts")
		}
		signed, err := SetAttestation("m", text, [][]byte{[]byte(`{"version":"1.0"}`)})
		if err != nil {
			return
		}
		again, err := Parse("m", signed)
		if err != nil || len(again.Attestations) != 1 {
			t.Fatalf("%v, %v", again, err)
		}
		before, _ := m.Canonical()
		if after, err := again.Canonical(); err != nil || !bytes.Equal(before, after) {
			t.Fatal("signing changed the manifest")
		}
	})
}

// exotic reports values that YAML has and JSON has not, and that only free text
// of the manifest (config, attestation) may be.
func exotic(text []byte) bool {
	var doc struct {
		Config      map[string]yaml.Node `yaml:"config"`
		Attestation yaml.Node            `yaml:"attestation"`
	}
	if yaml.Unmarshal(text, &doc) != nil {
		return true
	}
	for _, n := range doc.Config {
		if n.Tag != "!!str" && n.Tag != "!!int" && n.Tag != "!!bool" && n.Tag != "!!float" {
			return true
		}
	}
	return false
}

func FuzzParseCanonical(f *testing.F) {
	for _, v := range manifestVectors(f) {
		if m, err := Parse("m", v.text); err == nil {
			data, err := m.Canonical()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseCanonical(data)
		if err != nil {
			if m != nil || fault.ReasonOf(err) != fault.ManifestInvalid || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		own, err := canonical.JSON(data)
		if err != nil || !bytes.Equal(own, data) {
			t.Fatalf("accepted, and not canonical: %v", err)
		}
		checkRoundTrip(t, m)
	})
}

func TestAValueIsFoundWhereItWasWritten(t *testing.T) {
	m, err := Parse("agent/manifest.yaml", []byte("id: a\nversion: 1.0.0\nruntime: wasm\nmodule: a.wasm\nwasm:\n  capabilities:\n    - media:read\n    - media:write\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Where("wasm.capabilities[1]"); got != "agent/manifest.yaml:8" {
		t.Error(got)
	}
	data, err := m.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = ParseCanonical(data); err != nil || m.Where("wasm.capabilities[1]") != "wasm.capabilities[1]" {
		t.Errorf("%v, %v", m, err)
	}
}
