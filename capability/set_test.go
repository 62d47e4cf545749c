package capability

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// document is what a grant tells a host.
func document(g Grant) *hostdoc.Document {
	return &hostdoc.Document{Grants: g.Grants, Denials: g.Denials(), Holes: g.Holes, Network: g.Network}
}

func newSet(t testing.TB, doc *hostdoc.Document) *Set {
	t.Helper()
	s, err := NewSet(doc)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// one parses a capability.
func one(t testing.TB, s string) manifest.Capability {
	t.Helper()
	return capabilities(t, s)[0]
}

func TestAnAnswerNamesRuleAndTheLineThatWouldAsk(t *testing.T) {
	caps := func(list ...string) []manifest.Capability { return capabilities(t, list...) }
	rules := []Rule{
		{Name: "web", Allow: caps("network:https:*.example.com", "llm:gpt-4*", "filesystem:read:/data", "filesystem:write:/data")},
		{Name: "no-admin", Deny: caps("network:*:admin.example.com", "env:TOKEN", "network:https:*.example.com/internal")},
		{Name: "soon", DryRun: true, Deny: caps("network:https:api.example.com", "llm:gpt-4o")},
	}
	m := agent(t, "", "network:https:*.example.com", "network:https:*.example.org", "llm:*", "env:TOKEN", "env:X", "filesystem:read-write:/data")
	s := newSet(t, document(Effective(Request{Manifest: m, Trust: "verified", Rules: rules, Serving: everything()})))
	for _, c := range []struct {
		use    bool
		req    string
		allow  bool
		rule   string
		text   string
		counts string
	}{
		{false, "network:https:*.example.com", true, "web", "", ""},
		{false, "network:https:api.example.com", true, "web", "", "soon"},
		{true, "network:https:api.example.com/v1", true, "web", "", "soon"},
		{true, "network:https:www.example.com/v1", true, "web", "", ""},
		{false, "network:https:admin.example.com", false, "no-admin", `the rule "no-admin" of the node's policy denies it`, ""},
		{true, "network:https:admin.example.com/x", false, "no-admin", "denies it", ""},
		{true, "network:https:www.example.com/internal/x", false, "no-admin", "denies it", ""},
		{true, "network:http:www.example.com", false, RuleManifest, "add to wasm.capabilities: - network:http:www.example.com", ""},
		{true, "network:https:www.example.com:8443", false, RuleManifest, "add to wasm.capabilities", ""},
		{false, "network:https:a.example.org", false, RulePolicy, "a rule of the node's capabilities.yaml must allow network:https:a.example.org", ""},
		{false, "llm:*", false, RulePolicy, "only llm:gpt-4* of it is granted", ""},
		{false, "llm:gpt-4*", true, "web", "", ""},
		{true, "llm:gpt-4o", true, "web", "", "soon"},
		{true, "llm:claude", false, RulePolicy, "only llm:gpt-4* of it is granted", ""},
		{false, "env:TOKEN", false, "no-admin", "denies it", ""},
		{false, "env:X", false, RulePolicy, "must allow env:X", ""},
		{false, "env:Y", false, RuleManifest, "add to wasm.capabilities: - env:Y", ""},
		{true, "filesystem:read-write:/data/x", true, "web", "", ""},
		{true, "filesystem:read:/etc", false, RuleManifest, "- filesystem:read:/etc", ""},
		{false, "media:read", false, RuleManifest, "- media:read", ""},
	} {
		ask := s.Request
		if c.use {
			ask = s.Use
		}
		a := ask(one(t, c.req))
		if a.Allowed != c.allow || a.Rule != c.rule || !strings.Contains(a.Reason+" "+a.Hint, c.text) || strings.Join(a.DryRun, ",") != c.counts {
			t.Errorf("%s: %+v", c.req, a)
		}
		if a.Allowed && a.Reason+a.Hint != "" || !a.Allowed && a.Reason == "" {
			t.Errorf("%s: %+v", c.req, a)
		}
	}
}

func TestADeniedRangeHoldsForWhatANameResolvesTo(t *testing.T) {
	rules := []Rule{
		{Name: "web", Allow: capabilities(t, "network:*:*.example.com")},
		{Name: "no-lab", Deny: capabilities(t, "network:*:203.0.113.0/24", "network:https:[2001:db8::]/32")},
		{Name: "soon", DryRun: true, Deny: capabilities(t, "network:*:198.51.100.0/24")},
	}
	g := Effective(Request{Manifest: agent(t, "", "network:*:*.example.com"), Trust: "verified", Rules: rules, Serving: Defaults()})
	s := newSet(t, document(g))
	request := one(t, "network:https:api.example.com/v1")
	for addr, want := range map[string]string{
		"192.0.2.1": "", "203.0.113.9": "no-lab", "::ffff:203.0.113.9": "no-lab", "2001:db8::1": "no-lab", "2001:db9::1": "", "198.51.100.1": "",
	} {
		a := s.Address(request, netip.MustParseAddr(addr))
		if a.Allowed != (want == "") || a.Rule != want || (len(a.DryRun) > 0) != (addr == "198.51.100.1") {
			t.Errorf("%s: %+v", addr, a)
		}
	}
	// Whatever the port is: the denial names none.
	if a := s.Address(one(t, "network:http:api.example.com:8080"), netip.MustParseAddr("203.0.113.9")); a.Allowed {
		t.Errorf("%+v", a)
	}
	if a := s.Address(one(t, "network:http:api.example.com"), netip.MustParseAddr("2001:db8::1")); !a.Allowed {
		t.Errorf("a denial of https holds for http: %+v", a)
	}
}

func TestFullReachesWhatNoDenialNames(t *testing.T) {
	rules := []Rule{{Name: "crawler", FullNetwork: true, Deny: capabilities(t, "network:*:*.evil.example")}}
	s := newSet(t, document(Effective(Request{Manifest: agent(t, "sandbox:\n  network:\n    mode: full\n"), Trust: "verified", Rules: rules})))
	for req, want := range map[string]bool{
		"network:https:any.example/x": true, "network:http:any.example:8080": true, "network:https:192.0.2.1": true,
		"network:https:a.evil.example": false, "network:http:a.evil.example:81": false, "env:A": false, "filesystem:read:/": false,
	} {
		if a := s.Use(one(t, req)); a.Allowed != want || want && a.Rule != "crawler" {
			t.Errorf("%s: %+v", req, a)
		}
	}
}

func TestAStringThatCannotBeReadIsNoSet(t *testing.T) {
	for name, doc := range map[string]*hostdoc.Document{
		"grant":  {Grants: []hostdoc.Grant{{Capability: "network:nonsense"}}},
		"denial": {Denials: []hostdoc.Denial{{Capability: "env:"}}},
		"hole":   {Holes: []hostdoc.Hole{{Capability: ""}}},
	} {
		if s, err := NewSet(doc); err == nil || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	s := newSet(t, &hostdoc.Document{})
	if a := s.Request(manifest.Capability{}); a.Allowed {
		t.Errorf("the zero capability is allowed: %+v", a)
	}
}

// details are requests to the last detail, wishes what they are asked and
// granted by.
var details = []string{
	"network:https:a.com/v1/x", "network:http:a.com", "network:https:x.a.com", "network:http:x.a.com/v1", "network:https:x.a.com:8443/v1/y", "network:https:y.x.a.com/v1beta",
	"network:http:10.1.2.3", "network:https:10.9.9.9:8443", "network:http:[2001:db8::1]", "filesystem:read:/data/in/x", "filesystem:write:/data/in/x", "filesystem:read:/data",
	"filesystem:write:/data/out", "env:A", "env:B", "llm:gpt-4o", "llm:gpt-4-32k", "llm:llama", "media:read", "media:write", "extension:x.y", "extension:z",
}

var wishes = []string{
	"network:https:a.com", "network:*:a.com/v1", "network:*:*.a.com", "network:https:*.a.com/v1*", "network:http:*.a.com", "network:https:x.a.com:8443", "network:*:*.x.a.com",
	"network:http:10.0.0.0/8", "network:*:10.1.0.0/16", "network:https:10.0.0.0/8:8443", "network:*:[2001:db8::]/32", "filesystem:read:/data", "filesystem:read-write:/data", "filesystem:write:/data/in",
	"filesystem:read:/", "env:A", "env:B", "llm:*", "llm:gpt-4*", "llm:gpt-4o", "media:read", "media:write", "extension:x.y", "extension:z",
}

// TestAHostAllowsExactlyWhatEverySideDoes is the promise of policy, document and
// host together, on random sides and single requests: nothing more, nothing less.
func TestAHostAllowsExactlyWhatEverySideDoes(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(one int) []manifest.Capability {
		var some []string
		for _, s := range wishes {
			if random.IntN(one) == 0 {
				some = append(some, s)
			}
		}
		return capabilities(t, some...)
	}
	allowed, refused := 0, 0
	for range 150 {
		var asked []string
		for _, c := range pick(2) {
			asked = append(asked, c.String())
		}
		m := agent(t, "", asked...)
		rules := []Rule{{Name: "a", Allow: pick(3), Deny: pick(12)}, {Name: "b", Allow: pick(3)}, {Name: "c", Deny: pick(3), DryRun: true}}
		s := newSet(t, document(Effective(Request{Manifest: m, Trust: "verified", Rules: rules, Serving: everything()})))
		for _, text := range details {
			c := one(t, text)
			want := manifest.Allowed(m.Capabilities(), c) &&
				(manifest.Allowed(rules[0].Allow, c) || manifest.Allowed(rules[1].Allow, c)) &&
				!slices.ContainsFunc(rules[0].Deny, func(d manifest.Capability) bool { return d.DeniesPart(c) }) &&
				text != "extension:z" // the node has no such extension
			a := s.Use(c)
			if a.Allowed != want {
				t.Fatalf("%s: %+v, want %v\nasked %v\nrules %v", text, a, want, m.Capabilities(), rules)
			}
			counted := slices.ContainsFunc(rules[2].Deny, func(d manifest.Capability) bool { return d.DeniesPart(c) })
			if want != (len(a.DryRun) > 0) && want && counted {
				t.Fatalf("%s: the dry run was not counted: %+v", text, a)
			}
			if want {
				allowed++
			} else {
				refused++
			}
		}
	}
	if allowed < 200 || refused < 200 {
		t.Errorf("%d allowed, %d refused: the property was hardly tried", allowed, refused)
	}
}

func FuzzSet(f *testing.F) {
	f.Add("network:https:*.a.com", "network:*:x.a.com", "network:https:x.a.com/admin", "network:https:x.a.com/admin/1", true)
	f.Add("filesystem:read-write:/data", "filesystem:read:/", "filesystem:read:/data/x", "filesystem:read:/data/x/y", false)
	f.Add("llm:*", "llm:gpt*", "llm:gpt-4", "llm:gpt-4", true)
	f.Add("network:http:10.0.0.0/8", "network:*:10.1.0.0/16", "network:*:10.1.1.0/24", "network:http:10.1.1.1:80", false)
	f.Fuzz(func(t *testing.T, asks, allows, denies, uses string, dry bool) {
		var caps []manifest.Capability
		for _, s := range []string{asks, allows, denies, uses} {
			c, err := manifest.ParseCapability(s)
			if err != nil {
				return
			}
			caps = append(caps, c)
		}
		m := &manifest.Manifest{ID: "a", Version: "1.0.0", Runtime: manifest.RuntimeWASM, WASM: &manifest.WASM{Capabilities: caps[:1]}}
		rules := []Rule{{Name: "r", Allow: caps[1:2]}, {Name: "d", Deny: caps[2:3], DryRun: dry}}
		s := newSet(t, document(Effective(Request{Manifest: m, Trust: "verified", Rules: rules, Serving: everything()})))
		for _, a := range []Answer{s.Use(caps[3]), s.Request(caps[3])} {
			if a.Allowed && (!caps[0].Allows(caps[3]) || !caps[1].Allows(caps[3])) {
				t.Fatalf("%s is allowed: asked %s, granted %s", uses, asks, allows)
			}
			if a.Allowed && !dry && caps[2].Denies(caps[3]) {
				t.Fatalf("%s is allowed and denied by %s", uses, denies)
			}
		}
		if a := s.Use(caps[3]); a.Allowed && !dry && caps[2].DeniesPart(caps[3]) {
			t.Fatalf("%s is used and denied by %s", uses, denies)
		}
	})
}
