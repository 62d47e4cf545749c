package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
)

// full has every key.
const full = `version: 1
rules:
  - name: no-metadata
    deny: ["network:*:169.254.0.0/16"]
  - name: openai
    agents: ["acme.*"]
    trust: [community, verified]
    scopes: ["registry.example.com/agents/**"]
    allow: ["network:https:*.openai.com", "llm:gpt-4*"]
    deny: ["network:https:admin.openai.com"]
    private: ["10.1.0.0/16"]
    inject:
      - capability: network:https:api.openai.com
        header: Authorization
        prefix: "Bearer "
        secret: {file: secrets/openai}
      - capability: network:https:maps.openai.com
        query: key
        secret: {mount: /var/run/maps/key}
  - name: crawler
    agents: ["acme.crawler"]
    network: full
  - name: soon
    deny: ["llm:*"]
    dry_run: true
network:
  blocked_ports: [22, 25]
  ca: ca.pem
  concurrent: 4
  request: 1MB
  response: 2MB
  timeout: 5s
llm:
  tokens: 1000
  providers:
    - name: openai
      url: https://api.openai.com/v1/
      models: ["gpt-4*", "o3"]
      secret: {file: /etc/secret}
media:
  s3:
    endpoint: https://s3.example.com/
    region: eu
    bucket: agents
    prefix: media/
    access_key: {file: a}
    secret_key: {file: s}
  item: 8MB
  total: 16MB
extensions:
  - name: acme.search
    command: [/opt/search, --fast]
sandbox:
  memory: 128MB
  deadline: 1m
`

func parse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("/etc/mentat/capabilities.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func one(t testing.TB, s string) manifest.Capability {
	t.Helper()
	c, err := manifest.ParseCapability(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func names(rules []capability.Rule) string {
	var list []string
	for _, r := range rules {
		list = append(list, r.Name)
	}
	return strings.Join(list, " ")
}

func TestEveryKeyIsRead(t *testing.T) {
	p := parse(t, full)
	rules := p.Rules(Subject{Agent: "acme.summary", Trust: "verified", Reference: "registry.example.com/agents/summary:1"})
	if names(rules) != "no-metadata openai soon" {
		t.Fatalf("rules %s", names(rules))
	}
	r := rules[1]
	want := []capability.Injection{
		{Capability: one(t, "network:https:api.openai.com"), Header: "authorization", Prefix: "Bearer ", Secret: capability.Secret{File: "/etc/mentat/secrets/openai"}},
		{Capability: one(t, "network:https:maps.openai.com"), Query: "key", Secret: capability.Secret{Mount: "/var/run/maps/key"}},
	}
	if len(r.Allow) != 2 || len(r.Deny) != 1 || !slices.Equal(r.Private, []string{"10.1.0.0/16"}) || !reflect.DeepEqual(r.Inject, want) || r.DryRun || r.FullNetwork {
		t.Errorf("%+v", r)
	}
	if !rules[2].DryRun {
		t.Errorf("%+v", rules[2])
	}
	s := p.Serving()
	if got, want := s.Limits, (hostdoc.NetworkLimits{Concurrent: 4, RequestBytes: limits.MiB, ResponseBytes: 2 * limits.MiB, TimeoutMillis: 5000}); got != want {
		t.Errorf("limits %+v", got)
	}
	if !slices.Equal(s.BlockedPorts, []int{22, 25}) || s.CAFile != "/etc/mentat/ca.pem" || s.Tokens != 1000 ||
		s.MediaItemBytes != 8*limits.MiB || s.MediaTotalBytes != 16*limits.MiB || s.MemoryBytes != 128*limits.MiB || s.DeadlineMillis != time.Minute.Milliseconds() {
		t.Errorf("%+v", s)
	}
	if len(s.Providers) != 1 || s.Providers[0].URL != "https://api.openai.com/v1" || len(s.Providers[0].Models) != 2 || s.Providers[0].Secret.File != "/etc/secret" {
		t.Errorf("%+v", s.Providers)
	}
	if m := s.MediaS3; m == nil || *m != (capability.MediaS3{Endpoint: "https://s3.example.com", Region: "eu", Bucket: "agents", Prefix: "media/",
		AccessKey: capability.Secret{File: "/etc/mentat/a"}, SecretKey: capability.Secret{File: "/etc/mentat/s"}}) {
		t.Errorf("%+v", m)
	}
	if len(s.Extensions) != 1 || s.Extensions[0].Name != "acme.search" || len(s.Extensions[0].Command) != 2 {
		t.Errorf("%+v", s.Extensions)
	}
	for _, key := range Keys() {
		last := strings.TrimSuffix(key[strings.LastIndexByte(key, '.')+1:], "[]")
		if key != "media.dir" && key != "media.keep_days" && !strings.Contains(full, last+":") {
			t.Errorf("the full example says nothing of %s", key)
		}
	}
}

func TestARuleIsAboutWhomItNames(t *testing.T) {
	p := parse(t, full)
	for _, c := range []struct {
		s    Subject
		want string
	}{
		{Subject{"acme.summary", "verified", "registry.example.com/agents/summary:1"}, "no-metadata openai soon"},
		{Subject{"acme.summary", "community", "registry.example.com/agents/summary:1"}, "no-metadata openai soon"},
		{Subject{"acme.summary", "signed", "registry.example.com/agents/summary:1"}, "no-metadata soon"},
		{Subject{"other.summary", "verified", "registry.example.com/agents/summary:1"}, "no-metadata soon"},
		{Subject{"acme.summary", "verified", "registry.example.com/others/summary:1"}, "no-metadata soon"},
		{Subject{"acme.summary", "verified", ""}, "no-metadata soon"},
		{Subject{"acme.crawler", "signed", ""}, "no-metadata crawler soon"},
		{Subject{"acme.crawler", "untrusted", "registry.example.com/agents/x"}, ""},
		{Subject{"acme.crawler", "", "registry.example.com/agents/x"}, ""},
	} {
		if got := names(p.Rules(c.s)); got != c.want {
			t.Errorf("%+v: %q, want %q", c.s, got, c.want)
		}
	}
}

func TestAStarStandsForAnyText(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"a.b", []string{"a.b"}, []string{"a.bc", "xa.b", "a.B", ""}},
		{"*", []string{"", "a", "a.b"}, nil},
		{"a.*", []string{"a.", "a.b", "a.b.c"}, []string{"a", "ab.c", "x.a.b"}},
		{"*.b", []string{".b", "a.b", "a.b.b"}, []string{"b", "a.bc"}},
		{"a*b*c", []string{"abc", "a1b2c", "abbcc", "a.b.b.c"}, []string{"ab", "acb", "abcd", "bac"}},
		{"a*a", []string{"aa", "aba"}, []string{"a"}},
		{"**", []string{"", "x"}, nil},
	} {
		for _, name := range c.yes {
			if !matches(c.pattern, name) {
				t.Errorf("%q does not match %q", c.pattern, name)
			}
		}
		for _, name := range c.no {
			if matches(c.pattern, name) {
				t.Errorf("%q matches %q", c.pattern, name)
			}
		}
	}
}

func TestWithoutAFileThereAreNoRules(t *testing.T) {
	p, err := Open(nodeconfig.Capability{Media: "/var/media"})
	if err != nil || len(p.Rules(Subject{Agent: "a", Trust: "verified"})) != 0 || p.Serving().MediaDir != "/var/media" || p.File() != "" {
		t.Errorf("%+v, %v", p, err)
	}
	for name, make := range map[string]func(path string){
		"missing":     func(string) {},
		"a directory": func(path string) { _ = os.Mkdir(path, 0o700) },
		"malformed":   func(path string) { _ = os.WriteFile(path, []byte("rules: ["), 0o600) },
		"empty":       func(path string) { _ = os.WriteFile(path, nil, 0o600) },
	} {
		path := filepath.Join(t.TempDir(), "capabilities.yaml")
		make(path)
		if p, err := Open(nodeconfig.Capability{Policy: path}); p != nil || fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v, %v", name, p, err)
		}
		if there, err := Exists(path); err != nil || there != (name != "missing") {
			t.Errorf("%s: there %v, %v", name, there, err)
		}
	}
	path := filepath.Join(t.TempDir(), "capabilities.yaml")
	if err := os.WriteFile(path, []byte("version: 1\nmedia: {dir: m, keep_days: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Open(nodeconfig.Capability{Policy: path, Media: "/var/media"}); err != nil || p.Serving().MediaDir != filepath.Join(filepath.Dir(path), "m") || p.Serving().MediaKeepDays != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := Open(nodeconfig.Capability{Policy: filepath.Join(t.TempDir(), "gone")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestMistakesAreRefusedWithTheirLine changes the full policy in one place.
func TestMistakesAreRefusedWithTheirLine(t *testing.T) {
	replace := func(old, by string) string {
		if !strings.Contains(full, old) {
			t.Fatalf("the policy has no %q", old)
		}
		return strings.Replace(full, old, by, 1)
	}
	for name, c := range map[string]struct{ text, want string }{
		"version":             {replace("version: 1", "version: 2"), ":1: version: is 2"},
		"no version":          {replace("version: 1\n", ""), "version: is 0"},
		"unknown key":         {replace("dry_run: true", "dryrun: true"), `unknown key "dryrun" in rules[3], allowed are agents, allow`},
		"unknown table":       {full + "grants: {}\n", `unknown key "grants"`},
		"a key twice":         {replace("    dry_run: true", "    dry_run: true\n    dry_run: false"), "there twice"},
		"no name":             {replace("  - name: no-metadata\n    deny", "  - deny"), ":3: rules[0].name"},
		"a name with blanks":  {replace("name: no-metadata", "name: no metadata"), "is no name"},
		"a reserved name":     {replace("name: no-metadata", "name: policy"), "choose another name"},
		"a name twice":        {replace("name: no-metadata", "name: soon"), `two rules "soon"`},
		"agent":               {replace(`agents: ["acme.*"]`, `agents: ["Acme.*"]`), ":6: rules[1].agents[0]"},
		"no agents":           {replace(`agents: ["acme.*"]`, `agents: []`), "rules[1].agents: is empty"},
		"trust":               {replace("[community, verified]", "[untrusted]"), "allowed are signed, community, verified"},
		"scope":               {replace("registry.example.com/agents/**", "agents/**"), "is none of HOST/REPOSITORY"},
		"allow":               {replace("llm:gpt-4*", "llm:*gpt"), ":9: rules[1].allow[1]"},
		"deny":                {replace("network:https:admin.openai.com", "network:https:*"), "rules[1].deny[0]"},
		"a rule of nothing":   {replace("    network: full\n", ""), "the rule does nothing"},
		"network":             {replace("network: full", "network: half"), "allowed is full"},
		"a dry run allows":    {replace(`    deny: ["llm:*"]`, "    deny: [\"llm:*\"]\n    allow: [\"env:A\"]"), "no effect in a dry run"},
		"a dry run reaches":   {replace("    dry_run: true", "    dry_run: true\n    network: full"), "no effect in a dry run"},
		"private":             {replace("10.1.0.0/16", "10.1.2.0/16"), "write 10.1.0.0/16"},
		"private no range":    {replace("10.1.0.0/16", "intranet"), "no address range"},
		"private twice":       {replace(`["10.1.0.0/16"]`, `["10.1.0.0/16", "10.1.0.0/16"]`), "there twice"},
		"private for nothing": {replace(`["network:*:169.254.0.0/16"]`, "[\"env:A\"]\n    private: [\"10.0.0.0/8\"]"), "allows no network capability"},
		"inject elsewhere":    {replace("capability: network:https:api.openai.com", "capability: network:https:api.example.com"), "the secret would go where the rule does not"},
		"inject in clear":     {strings.ReplaceAll(strings.ReplaceAll(full, "https:*.openai.com", "*:*.openai.com"), "https:api.openai.com\n", "http:api.openai.com\n"), "only sent by https"},
		"inject no network":   {replace("capability: network:https:api.openai.com", "capability: env:A"), "must be of the network"},
		"inject two places":   {replace("query: key", "query: key\n        header: x"), "exactly one of header and query"},
		"inject no place":     {replace("        query: key\n", ""), "exactly one of header and query"},
		"inject a query":      {replace("query: key", `query: "a&b"`), "no name of a query value"},
		"inject a header":     {replace("header: Authorization", `header: "a b"`), "no name of a header"},
		"inject framing":      {replace("header: Authorization", "header: Content-Length"), "belongs to the connection"},
		"inject a prefix":     {replace(`prefix: "Bearer "`, `prefix: "Bearer\n"`), "printable ASCII"},
		"prefix of a query":   {replace("query: key", "query: key\n        prefix: x"), "goes with a header only"},
		"no secret":           {replace("        secret: {mount: /var/run/maps/key}\n", ""), "exactly one of file"},
		"two secrets":         {replace("{mount: /var/run/maps/key}", "{mount: /var/run/maps/key, file: x}"), "exactly one of file"},
		"a secret's mount":    {replace("/var/run/maps/key", "var/run/maps/key"), "no absolute, clean path"},
		"a mount with dots":   {replace("/var/run/maps/key", "/var/run/../key"), "no absolute, clean path"},
		"port":                {replace("[22, 25]", "[22, 70000]"), "70000 is no port"},
		"a port twice":        {replace("[22, 25]", "[22, 22]"), "22 is there twice"},
		"concurrent":          {replace("concurrent: 4", "concurrent: 0"), "allowed is 1 to 1024"},
		"request":             {replace("request: 1MB", "request: 5GB"), "network.request: is 5GB"},
		"response":            {replace("response: 2MB", "response: 0"), "network.response"},
		"timeout":             {replace("timeout: 5s", "timeout: 1h"), "allowed is at most 15m"},
		"tokens":              {replace("tokens: 1000", "tokens: -1"), "llm.tokens: is -1"},
		"tokens for nothing":  {"version: 1\nllm: {tokens: 1}\n", "no effect without providers"},
		"provider's name":     {replace("    - name: openai\n      url", "    - name: \"open ai\"\n      url"), "llm.providers[0].name"},
		"provider's address":  {replace("https://api.openai.com/v1/", "ftp://api.openai.com"), "no http or https address"},
		"a user in it":        {replace("https://api.openai.com/v1/", "https://u:p@api.openai.com"), "must not have a user"},
		"a query in it":       {replace("https://api.openai.com/v1/", "https://api.openai.com/?x=1"), "must not have a user"},
		"a key in clear":      {replace("https://api.openai.com/v1/", "http://api.openai.com/v1"), "only sent by https"},
		"models":              {replace(`["gpt-4*", "o3"]`, `["gpt*4"]`), "llm.providers[0].models[0]"},
		"no models":           {replace(`      models: ["gpt-4*", "o3"]`+"\n", ""), "models: is required"},
		"provider twice":      {replace("    - name: openai\n      url", "    - {name: openai, url: 'https://a.example', models: [x]}\n    - name: openai\n      url"), `two providers "openai"`},
		"media twice":         {replace("media:\n", "media:\n  dir: /x\n"), "dir and s3 exclude each other"},
		"item over total":     {replace("total: 16MB", "total: 4MB"), "one item may have"},
		"item":                {replace("item: 8MB", "item: 5GB"), "media.item: is 5GB"},
		"kept too long":       {"version: 1\nmedia: {keep_days: 4000}\n", "media.keep_days: is 4000"},
		"kept for no time":    {"version: 1\nmedia: {keep_days: 0}\n", "media.keep_days: is 0"},
		"kept in a bucket":    {replace("media:\n", "media:\n  keep_days: 1\n"), "set at the bucket"},
		"endpoint":            {replace("https://s3.example.com/", "s3.example.com"), "media.s3.endpoint"},
		"bucket":              {replace("bucket: agents", "bucket: A"), "no name of a bucket"},
		"prefix":              {replace("prefix: media/", "prefix: /media"), "media.s3.prefix"},
		"access key":          {replace("    access_key: {file: a}\n", ""), "media.s3.access_key"},
		"secret key":          {replace("secret_key: {file: s}", "secret_key: {mount: s}"), "media.s3.secret_key.mount"},
		"extension":           {replace("name: acme.search", "name: Acme"), "extensions[0].name"},
		"extension twice":     {replace("extensions:\n", "extensions:\n  - {name: acme.search, command: [/x]}\n"), "two extensions"},
		"command":             {replace("[/opt/search, --fast]", "[search]"), "extensions[0].command"},
		"no command":          {replace("    command: [/opt/search, --fast]\n", ""), "extensions[0].command"},
		"memory":              {replace("memory: 128MB", "memory: 8GB"), "sandbox.memory: is 8GB"},
		"deadline":            {replace("deadline: 1m", "deadline: 25h"), "sandbox.deadline"},
		"an alias":            {replace("version: 1", "version: &v 1"), "anchor"},
		"too large":           {full + strings.Repeat("#", limits.PolicyBytes), "over"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse("/etc/mentat/capabilities.yaml", []byte(c.text))
			if p != nil || fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(fmt.Sprint(err), c.want) || !strings.Contains(fmt.Sprint(err), "capabilities.yaml") {
				t.Errorf("got %v, %v, want %s", p, err, c.want)
			}
		})
	}
}

func TestASecretMayGoInClearToThisMachineOnly(t *testing.T) {
	for host, ok := range map[string]bool{"localhost": true, "127.0.0.1": true, "127.0.0.0/8": true, "127.0.0.0/7": false, "126.0.0.0/7": false, "[::1]": true, "[::]/127": false, "10.0.0.1": false, "localhost.example": false} {
		text := fmt.Sprintf("version: 1\nrules:\n  - name: r\n    allow: [\"network:http:%[1]s\"]\n    inject: [{capability: \"network:http:%[1]s\", header: x, secret: {file: f}}]\n", host)
		if _, err := Parse("p", []byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestExplainSaysOfEveryRuleWhatItDoes(t *testing.T) {
	p := parse(t, full)
	s := Subject{Agent: "acme.summary", Trust: "verified", Reference: "registry.example.com/agents/summary:1"}
	for capability, want := range map[string]string{
		"network:https:api.openai.com":    "no-metadata says nothing, openai allows network:https:*.openai.com, crawler is not about it, soon says nothing",
		"network:https:admin.openai.com":  "no-metadata says nothing, openai denies network:https:admin.openai.com, crawler is not about it, soon says nothing",
		"network:https:*.openai.com":      "no-metadata says nothing, openai denies a part network:https:admin.openai.com, crawler is not about it, soon says nothing",
		"network:*:api.openai.com":        "no-metadata says nothing, openai allows a part network:https:*.openai.com, crawler is not about it, soon says nothing",
		"network:http:169.254.169.254/32": "no-metadata denies network:*:169.254.0.0/16, openai says nothing, crawler is not about it, soon says nothing",
		"llm:gpt-4o":                      "no-metadata says nothing, openai allows llm:gpt-4*, crawler is not about it, soon would deny llm:*",
	} {
		var got []string
		for _, step := range p.Explain(s, one(t, capability)) {
			if step.Line == 0 || (step.Effect == NotAbout) != (step.Why != "") {
				t.Errorf("%s: %+v", capability, step)
			}
			got = append(got, strings.TrimSpace(step.Rule+" "+step.Effect+" "+strings.Join(step.Of, " ")))
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: %s\nwant %s", capability, text, want)
		}
	}
}

func TestCheckFindsWhatHasNoEffect(t *testing.T) {
	if found := parse(t, full).Check(); len(found) > 0 {
		t.Errorf("%+v", found)
	}
	p := parse(t, `version: 1
rules:
  - name: none
    agents: ["acme.*"]
    deny: ["network:*:*.example.com", "network:https:a.example.com"]
  - name: web
    agents: [acme.web]
    allow: ["network:https:a.example.com", "llm:*", "llm:gpt-4"]
  - name: others
    allow: ["network:https:a.example.com"]
  - name: dry
    deny: ["llm:*"]
    dry_run: true
`)
	var got []string
	for _, f := range p.Check() {
		got = append(got, fmt.Sprintf("%d %s: %s", f.Line, f.Rule, f.Message))
	}
	want := []string{
		"3 none: deny network:https:a.example.com says nothing more than network:*:*.example.com",
		"6 web: allow network:https:a.example.com has no effect: the rule none denies all of it",
		"6 web: allow llm:gpt-4 says nothing more than llm:*",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestReferencesAreTheFilesThatAPolicyNames(t *testing.T) {
	var got []string
	for _, r := range parse(t, full).References() {
		got = append(got, fmt.Sprintf("%s %v %v", r.Path, r.Secret, r.Program))
	}
	want := []string{"/etc/mentat/secrets/openai true false", "/etc/secret true false", "/etc/mentat/a true false", "/etc/mentat/s true false", "/etc/mentat/ca.pem false false", "/opt/search false true"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("version: 1\nrules: [{name: a, deny: ['network:*:*.example.com']}]\n"))
	f.Add([]byte("version: 1\nrules: [{name: a, trust: [signed], network: full, private: ['::/0']}]\nmedia: {dir: x}\n"))
	f.Add([]byte("version: 1\nllm: {providers: [{name: a, url: 'http://127.0.0.1', models: ['*'], secret: {mount: /a}}]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("/etc/mentat/capabilities.yaml", data)
		if err != nil {
			if p != nil || fault.ReasonOf(err) != fault.PolicyInvalid {
				t.Fatalf("%v, %v", p, err)
			}
			return
		}
		p.Check()
		s := Subject{Agent: "a", Trust: "verified", Reference: "registry.example.com/a"}
		rules := p.Rules(s)
		for _, r := range rules {
			if r.DryRun && (len(r.Allow) > 0 || r.FullNetwork) || slices.Contains(capability.Reserved, r.Name) {
				t.Fatalf("%+v", r)
			}
			for _, in := range r.Inject {
				if (in.Header == "") == (in.Query == "") || (in.Secret.File == "") == (in.Secret.Mount == "") {
					t.Fatalf("%+v", in)
				}
			}
		}
		if len(p.Rules(Subject{Agent: "a", Trust: "untrusted"})) > 0 {
			t.Fatal("a rule is about the untrusted")
		}
		g := capability.Effective(capability.Request{Manifest: &manifest.Manifest{WASM: &manifest.WASM{Capabilities: []manifest.Capability{{Kind: manifest.KindEnv, Name: "A"}}}}, Trust: s.Trust, Rules: rules, Serving: p.Serving()})
		if _, err := json.Marshal(g); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse("/etc/mentat/capabilities.yaml", []byte(full)); err != nil {
			b.Fatal(err)
		}
	}
}
