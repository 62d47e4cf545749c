package verifier

import (
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testpki"
)

// fullPolicy has every key there is.
const fullPolicy = `version: 1
scopes:
  - name: agents
    match: ["127.0.0.1:5000/agents/**", "r.example/one"]
    stores: [agents]
    timestamp_stores: [time]
    timestamp: required
    identities: ["email:dev@example.com"]
    unsigned_containers: deny
    unsigned_agents: deny
    binding: repository
outside: {ordinary_images: allow}
exempt: ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
trust: {community: ["email:a@example.com"], publishers: ["email:b@example.com"]}
revocation:
  crls:
    - {issuer: "CN=R", file: "agent.crl"}
    - {issuer: "CN=A", certificate: "a.pem", url: "http://pki.example/agent.crl"}
  ocsp:
    - {issuer: "CN=A", url: "http://ocsp.example"}
    - {issuer: "CN=B", hosts: ["ocsp.example", "ocsp.example:8080"]}
  grace: 24h
on_unfetchable: deny
`

func TestParsePolicyReadsEveryKey(t *testing.T) {
	p, err := ParsePolicy("/etc/mentat/policy.yaml", []byte(fullPolicy))
	if err != nil {
		t.Fatal(err)
	}
	dir := func(name string) string { return filepath.Join("/etc/mentat", name) }
	want := []CRLSource{{Issuer: "CN=R", File: dir("agent.crl")}, {Issuer: "CN=A", Certificate: dir("a.pem"), URL: "http://pki.example/agent.crl"}}
	if got := p.CRLs(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("lists %+v", got)
	}
	if p.OnUnfetchable() != Deny || p.grace != 24*time.Hour || len(p.stores()) != 2 || !p.scopes[0].stampRequired {
		t.Errorf("%+v", p)
	}
	if !p.Exempt("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") || p.Exempt("") {
		t.Error("exempt is wrong")
	}
	if d := policy(t, "version: 1\noutside: {ordinary_images: deny}\n"); d.OnUnfetchable() != Defer || d.grace != 0 {
		t.Errorf("defaults %+v", d)
	}
}

func TestParsePolicyRefusesWhatIsNotClear(t *testing.T) {
	replace := func(old, with string) string {
		out := strings.Replace(fullPolicy, old, with, 1)
		if out == fullPolicy {
			t.Fatalf("%q is not in the policy", old)
		}
		return out
	}
	for name, c := range map[string]struct{ text, says string }{
		"empty":                       {"", "empty"},
		"not YAML":                    {"a: [", "policy.yaml"},
		"unknown key":                 {replace("binding:", "bindings:"), "bindings"},
		"unknown top key":             {fullPolicy + "enforce: false\n", "enforce"},
		"duplicate key":               {fullPolicy + "version: 1\n", "version"},
		"alias":                       {replace("[agents]", "&a [agents]"), "anchor"},
		"second document":             {fullPolicy + "---\nversion: 1\n", "document"},
		"version missing":             {replace("version: 1\n", ""), "version"},
		"version unknown":             {replace("version: 1", "version: 2"), "version"},
		"version as text":             {replace("version: 1", `version: "1"`), "version"},
		"scope without name":          {replace("name: agents", `name: ""`), "name"},
		"scope without match":         {replace(`match: ["127.0.0.1:5000/agents/**", "r.example/one"]`, "match: []"), "match"},
		"match with tag":              {replace("r.example/one", "r.example/one:1"), "match[1]"},
		"match with upper case":       {replace("r.example/one", "r.example/One"), "match[1]"},
		"match without host":          {replace("r.example/one", "library/alpine"), "match[1]"},
		"match with star":             {replace("r.example/one", "r.example/*"), "match[1]"},
		"match with inner stars":      {replace("r.example/one", "r.example/**/a"), "match[1]"},
		"match twice":                 {replace("r.example/one", "127.0.0.1:5000/agents/**"), "twice"},
		"match twice with port":       {replace("r.example/one", "r.example/one\", \"r.example:443/one"), "twice"},
		"stores missing":              {replace("    stores: [agents]\n", ""), "stores"},
		"stamps by signers":           {replace("timestamp_stores: [time]", "timestamp_stores: [agents]"), "one of their own"},
		"stamps required of nobody":   {replace("    timestamp_stores: [time]\n", ""), "needs timestamp_stores"},
		"stamp store outside":         {replace("[time]", `["../time"]`), "timestamp_stores[0]"},
		"stamps perhaps":              {replace("timestamp: required", "timestamp: always"), "timestamp"},
		"store outside":               {replace("stores: [agents]", `stores: ["../agents"]`), "stores"},
		"store twice":                 {replace("stores: [agents]", "stores: [agents, agents]"), "stores"},
		"identities missing":          {replace("    identities: [\"email:dev@example.com\"]\n", ""), "identities"},
		"identities empty":            {replace(`identities: ["email:dev@example.com"]`, "identities: []"), "identities"},
		"any beside another":          {replace(`identities: ["email:`, `identities: [any, "email:`), "identities"},
		"identity without kind":       {replace("email:dev@example.com", "dev@example.com"), "identities"},
		"identity without domain":     {replace("email:dev@example.com", "email:dev@"), "identities"},
		"identity as pattern of many": {replace("email:dev@example.com", "email:@example.com"), "identities"},
		"any as publisher":            {replace("email:b@example.com", "any"), "publishers"},
		"containers missing":          {replace("    unsigned_containers: deny\n", ""), "unsigned_containers"},
		"containers unknown":          {replace("unsigned_containers: deny", "unsigned_containers: warn"), "unsigned_containers"},
		"containers as bool":          {replace("unsigned_containers: deny", "unsigned_containers: false"), "unsigned_containers"},
		"binding unknown":             {replace("binding: repository", "binding: loose"), "binding"},
		"outside missing":             {replace("outside: {ordinary_images: allow}\n", ""), "ordinary_images"},
		"exempt by name":              {replace("sha256:e3b0", "pause:e3b0"), "exempt"},
		"grants":                      {fullPolicy + "grants: {signed: [media:read]}\n", "by the rules of capabilities.yaml"},
		"grace negative":              {replace("grace: 24h", "grace: -1h"), "grace"},
		"grace too long":              {replace("grace: 24h", "grace: 9000h"), "grace"},
		"grace without unit":          {replace("grace: 24h", `grace: "24"`), "grace"},
		"list without issuer":         {replace(`issuer: "CN=R", `, ""), "issuer"},
		"list without source":         {replace(`, file: "agent.crl"`, ""), "file"},
		"list with two sources":       {replace(`file: "agent.crl"`, `file: "agent.crl", url: "http://x/y"`), "exactly one"},
		"list by ftp":                 {replace("http://pki", "ftp://pki"), "url"},
		"issuer twice":                {replace(`CN=A", cert`, `CN=R", cert`), "twice"},
		"responder without issuer":    {replace(`issuer: "CN=B", `, ""), "issuer"},
		"responder twice":             {replace("CN=B", "CN=A"), "twice"},
		"responder nowhere":           {replace(`, url: "http://ocsp.example"`, ""), "exactly one"},
		"responder in two places":     {replace(`url: "http://ocsp.example"`, `url: "http://ocsp.example", hosts: [a]`), "exactly one"},
		"responder by ftp":            {replace("http://ocsp", "ftp://ocsp"), "url"},
		"host with a path":            {replace(`"ocsp.example"`, `"ocsp.example/x"`), "hosts[0]"},
		"host with a user":            {replace(`"ocsp.example"`, `"me@ocsp.example"`), "hosts[0]"},
		"host with a star":            {replace(`"ocsp.example"`, `"*.example"`), "hosts[0]"},
		"on_unfetchable unknown":      {replace("on_unfetchable: deny", "on_unfetchable: allow"), "on_unfetchable"},
		"oversized":                   {fullPolicy + "# " + strings.Repeat("x", limits.PolicyBytes), "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePolicy("policy.yaml", []byte(c.text))
			if p != nil || fault.ReasonOf(err) != fault.PolicyInvalid {
				t.Fatalf("got %v, %v", p, err)
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "policy.yaml") {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

func TestSameScopeNameTwiceIsRefused(t *testing.T) {
	const scope = "  - {name: a, match: [\"r.example/%\"], stores: [a], identities: [any], unsigned_containers: deny}\n"
	text := "version: 1\nscopes:\n" + strings.Replace(scope, "%", "x", 1) + strings.Replace(scope, "%", "y", 1) + "outside: {ordinary_images: deny}\n"
	if _, err := ParsePolicy("p", []byte(text)); err == nil || !strings.Contains(err.Error(), "p:4") {
		t.Error(err)
	}
}

func TestNewRefusesHalfAConfiguration(t *testing.T) {
	p := policy(t, testPolicy)
	agents, err := NewStore("agents", testpki.New(t).Root)
	if err != nil {
		t.Fatal(err)
	}
	stores := map[string]*Store{"agents": agents}
	for name, c := range map[string]Config{
		"no clock":      {Policy: p, Stores: stores, Revocation: Indexes{}},
		"no stores":     {Policy: p, Revocation: Indexes{}, Clock: testpki.Clock},
		"no revocation": {Policy: p, Stores: stores, Clock: testpki.Clock},
	} {
		if v, err := New(c); err == nil || v != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewStore("agents"); err == nil {
		t.Error("a store without roots is accepted")
	}
}

// FuzzParsePolicy: a policy that parses never allows an unsigned agent unless
// its text says so, and parsing it again gives the same decisions.
func FuzzParsePolicy(f *testing.F) {
	f.Add(fullPolicy)
	f.Add(testPolicy)
	f.Add("version: 1\noutside: {ordinary_images: deny}\n")
	f.Add(testPolicy + stagedPolicy)
	f.Add(testPolicy + "attestation_required: {enabled: false}\n")
	f.Add(testPolicy + "attestation_required: {enabled: true, enforcement_date: \"2026-04-01\"}\n")
	f.Add("version: 1\nscopes: [{name: a, match: ['*'], stores: [a], identities: [any], unsigned_containers: allow}]\noutside: {ordinary_images: allow}\n")
	agent, image := read(f, wasmAgent(f)), read(f, container(f))
	_, p := frozenNode(f)
	root, err := NewStore("a", p.Root)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(remapPolicy + "minimum_versions: {mentatlab.echo: 1.0.0}\n")
	f.Add(testPolicy + "releases: [{name: a, file: a.json, stores: [a], identities: [\"email:a@example.com\"]}]\n")
	f.Add(strings.Replace(testPolicy, "    binding: exact", "    level: audit\n    identity_patterns: [{issuer: \"CN=A\", email: \"*@b.example\"}]", 1))
	f.Add(requiring(twoOfThree))
	state := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy("p", []byte(text))
		if err != nil {
			if p != nil || fault.ReasonOf(err) != fault.PolicyInvalid {
				t.Fatalf("%v beside %v", p, err)
			}
			return
		}
		if p.unfetchable != Defer && p.unfetchable != Deny || p.grace < 0 || p.grace > maxGrace {
			t.Fatalf("%+v", p)
		}
		stores := map[string]*Store{}
		for _, name := range p.stores() {
			stores[name] = root
		}
		v, err := New(Config{Policy: p, Stores: stores, Revocation: Indexes{}, Stamps: noStamps{}, State: state, Clock: testpki.Clock})
		if err != nil {
			t.Fatal(err)
		}
		for _, reference := range []string{ref, "", "docker.io/library/alpine", "127.0.0.1:5000/agents/a:1"} {
			if v.Verify(t.Context(), Input{Reference: reference, Artifact: agent}).Allowed && !strings.Contains(text, "unsigned_agents") && !p.staging.set {
				t.Fatalf("an unsigned agent is allowed as %q", reference)
			}
			if p.staging == (staging{}) && v.Verify(t.Context(), Input{Reference: reference, Artifact: agent}).Pending != nil {
				t.Fatalf("something is put off as %q, and the policy says nothing of that", reference)
			}
			if v.Verify(t.Context(), Input{Reference: reference, Artifact: image}).Allowed && !strings.Contains(text, "allow") && !p.staging.set && len(p.exempt) == 0 {
				t.Fatalf("an unsigned image is allowed as %q", reference)
			}
		}
	})
}

// noStamps believes no time stamp.
type noStamps struct{}

func (noStamps) Inspect([]byte, []byte) error { return malformed("never") }

func (noStamps) Verify([]byte, []byte, *x509.CertPool) (*TimeStamp, error) {
	return nil, malformed("never")
}
