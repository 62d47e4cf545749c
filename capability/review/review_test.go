package review

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
)

func agent(t testing.TB, more string, caps ...string) *manifest.Manifest {
	t.Helper()
	text := "id: test.agent\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\nwasm:\n  engine: wasmtime\n"
	if len(caps) > 0 {
		text += "  capabilities:\n"
		for _, c := range caps {
			text += fmt.Sprintf("    - %q\n", c)
		}
	}
	m, err := manifest.Parse("manifest.yaml", []byte(text+more))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// imports is a module that imports these, as "mentat.read_input".
func imports(names ...string) *module.Info {
	info := &module.Info{Entry: hostdoc.EntryProcess}
	for _, n := range names {
		mod, name, _ := strings.Cut(n, ".")
		if mod == "wasi" {
			mod = module.ModuleWASI
		}
		info.Imports = append(info.Imports, module.Import{Module: mod, Name: name, Kind: module.KindFunc})
	}
	return info
}

func findings(r *Report) string {
	var list []string
	for _, f := range r.Findings {
		list = append(list, f.Kind+" "+f.On)
	}
	return strings.Join(list, ", ")
}

func TestImportsAndAsksAreHeldAgainstEachOther(t *testing.T) {
	const temp = "sandbox:\n  filesystem:\n    temp_dirs:\n      - /tmp: 1MB\n"
	const full = "sandbox:\n  network:\n    mode: full\n"
	for _, c := range []struct {
		name    string
		more    string
		asks    []string
		imports []string
		want    string
	}{
		{"nothing at all", "", nil, []string{"mentat.read_input", "mentat.write_output"}, ""},
		{"a capability that is requested", "", []string{"network:https:a.example"}, []string{"mentat.request_capability", "mentat.invoke_capability"}, ""},
		{"requests without an ask", "", nil, []string{"mentat.request_capability", "mentat.invoke_capability"}, "missing mentat.request_capability, missing mentat.invoke_capability"},
		{"media alone are no capability to request", "", []string{"media:read"}, []string{"mentat.request_capability", "mentat.download_media"}, "missing mentat.request_capability"},
		{"an ask without requests", "", []string{"network:https:a.example", "llm:gpt-4o", "extension:x"}, []string{"mentat.read_input"}, "unused network:https:a.example, unused llm:gpt-4o, unused extension:x"},
		{"media", "", []string{"media:read"}, []string{"mentat.download_media"}, ""},
		{"media the other way", "", []string{"media:write"}, []string{"mentat.download_media"}, "unused media:write, missing mentat.download_media"},
		{"upload", "", nil, []string{"mentat.upload_media"}, "missing mentat.upload_media"},
		{"files", "", []string{"filesystem:read:/data"}, []string{"wasi.path_open", "wasi.path_open", "wasi.fd_readdir"}, ""},
		{"files without an ask", "", []string{"env:A"}, []string{"wasi.path_open", "wasi.environ_get"}, "missing wasi_snapshot_preview1.path_open"},
		{"files in a temporary directory", temp, nil, []string{"wasi.path_open"}, ""},
		{"files that nothing opens", "", []string{"filesystem:read:/data"}, []string{"wasi.fd_write"}, "unused filesystem:read:/data"},
		{"variables", "", []string{"env:A"}, []string{"wasi.environ_get"}, ""},
		{"variables that a toolchain reads", "", nil, []string{"wasi.environ_get"}, ""},
		{"variables by request", "", []string{"env:A"}, []string{"mentat.request_capability"}, ""},
		{"variables that nothing reads", "", []string{"env:A"}, []string{"mentat.log"}, "unused env:A"},
		{"sockets", "", []string{"network:https:a.example"}, []string{"wasi.sock_send", "mentat.request_capability"}, "missing wasi_snapshot_preview1.sock_send"},
		{"every host", full, nil, []string{"mentat.request_capability"}, ""},
		{"what is read can leave", "", []string{"filesystem:read:/data", "network:https:a.example"}, []string{"mentat.request_capability"}, "combination filesystem:read:/data"},
		{"a credential can leave", "", []string{"env:API_KEY", "network:https:a.example"}, []string{"mentat.request_capability"}, "combination env:API_KEY"},
		{"a setting may leave", "", []string{"env:LANG", "network:https:a.example"}, []string{"mentat.request_capability"}, ""},
		{"what is read can go everywhere", full, []string{"filesystem:read:/data"}, []string{"mentat.request_capability"}, "combination filesystem:read:/data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Review(agent(t, c.more, c.asks...), imports(c.imports...), nil)
			if got := findings(r); got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
			for _, f := range r.Findings {
				if f.Message == "" || f.Kind != Combined && f.Hint == "" {
					t.Errorf("%+v", f)
				}
			}
			for _, a := range r.Asks {
				if a.Why == "" || a.Risk == None || (a.Use == Used) != (len(a.By) > 0) {
					t.Errorf("%+v", a)
				}
			}
		})
	}
}

func TestOfAnInterpreterNothingIsUnused(t *testing.T) {
	m := agent(t, "", "network:https:a.example", "media:read")
	for data, want := range map[string]string{
		"…[native code]…Async-from-Sync Iterator…QuickJS":     "QuickJS",
		"…[native code]…Async-from-Sync Iterator…toISOString": "a JavaScript engine",
		"…_frozen_importlib…BuiltinImporter…":                 "CPython",
		"…BuiltinImporter…[native code]":                      "",
	} {
		r := Review(m, imports("mentat.request_capability", "mentat.upload_media"), []byte(data))
		if r.Engine != want {
			t.Errorf("%q is %q", data, r.Engine)
		}
		if wantFound := "unused media:read, missing mentat.upload_media"; want != "" && findings(r) != "" || want == "" && findings(r) != wantFound {
			t.Errorf("%q: %s", data, findings(r))
		}
		for _, a := range r.Asks {
			if want != "" && a.Use != Unknown {
				t.Errorf("%q: %+v", data, a)
			}
		}
	}
}

func TestACommandMayCallTheHostByItsStreams(t *testing.T) {
	info := imports("wasi.fd_read", "wasi.fd_write")
	info.Entry = hostdoc.EntryCommand
	r := Review(agent(t, "", "network:https:a.example", "media:read"), info, nil)
	if findings(r) != "unused media:read" || r.Asks[0].Use != Unknown {
		t.Errorf("%s, %+v", findings(r), r.Asks)
	}
}

func TestWithoutAModuleOnlyTheAsksAreRated(t *testing.T) {
	r := Review(agent(t, "", "network:https:*.com", "media:read"), nil, nil)
	if r.Risk != Critical || findings(r) != "" || r.Asks[0].Use != Unknown || len(r.Needs) != 0 {
		t.Errorf("%+v", r)
	}
	data, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(data), `"risk":"critical"`) || strings.Contains(string(data), "null") {
		t.Errorf("%s, %v", data, err)
	}
}

func TestRatings(t *testing.T) {
	for s, want := range map[string]Risk{
		"filesystem:read:/data": Low, "filesystem:read-write:/data": Medium, "filesystem:write:/out": Medium, "filesystem:read:/": Critical, "filesystem:read:/etc/ssl": High, "filesystem:read:/etcetera": Low,
		"network:https:api.example.com": Low, "network:http:api.example.com": Medium, "network:https:*.example.com": Medium, "network:*:*.example.com": High, "network:https:*.com": Critical, "network:http:localhost": Critical,
		"network:https:203.0.113.7": Medium, "network:http:10.1.2.3": High, "network:http:169.254.169.254": Critical, "network:https:0.0.0.0/0": Critical, "network:https:[::1]": Critical, "network:https:[2001:db8::]/32": Medium, "network:http:100.64.0.1": High,
		"env:LANG": Low, "env:OPENAI_API_KEY": High, "env:GITHUB_TOKEN": High, "env:DB_PASSWORD": High, "env:KEYBOARD": Low, "env:MONKEY": Low, "env:secret": High,
		"llm:*": High, "llm:gpt-4*": Medium, "llm:gpt-4o": Low, "media:read": Low, "media:write": Low, "extension:a.b": Medium,
	} {
		c, err := manifest.ParseCapability(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, why := Rate(c); got != want || why == "" {
			t.Errorf("%s is %s (%s), want %s", s, got, why, want)
		}
	}
	if got, _ := Rate(manifest.Capability{}); got != Critical {
		t.Errorf("what is unknown is %s", got)
	}
	for r := None; r <= Critical; r++ {
		if got, err := ParseRisk(r.String()); err != nil || got != r {
			t.Errorf("%s: %v, %v", r, got, err)
		}
	}
	if _, err := ParseRisk("scary"); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("%v", err)
	}
	if Risk(9).String() != "unknown" {
		t.Error(Risk(9))
	}
}

// A broader capability is never rated lower than a narrower one.
func FuzzRate(f *testing.F) {
	f.Add("network:https:*.example.com", "network:https:a.example.com")
	f.Add("network:*:10.0.0.0/8", "network:http:10.1.2.3")
	f.Add("filesystem:read-write:/", "filesystem:read:/etc/x")
	f.Add("llm:*", "llm:gpt-4*")
	f.Add("network:*:localhost", "network:https:localhost")
	f.Fuzz(func(t *testing.T, broad, narrow string) {
		b, errB := manifest.ParseCapability(broad)
		n, errN := manifest.ParseCapability(narrow)
		if errB != nil || errN != nil || !b.Allows(n) {
			return
		}
		rb, _ := Rate(b)
		rn, _ := Rate(n)
		if rb < rn {
			t.Fatalf("%s is %s, and %s, which it covers, is %s", b, rb, n, rn)
		}
	})
}
