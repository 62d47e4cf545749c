package verifier

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// What each level says of each failure at each date. A row without a level's word is
// refused at every level.
func TestLevelsFailureByFailureAndDateByDate(t *testing.T) {
	p := testpki.New(t)
	stranger := testpki.New(t, func(r *testpki.Recipe) { r.RootKey = testpki.RSA(t, "stranger", 2048) })
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	ends := testpki.Now.Add(time.Hour)
	ending := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) { b.NotAfter = ends.Format(timeLayout) })
	early := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) {
		b.Timestamp = p.Leaf.NotBefore.Add(-time.Hour).Format(timeLayout)
	})
	elsewhere := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) { b.Subject.Repository = "registry.example/agents/other" })
	strange := mustSign(t, wasmAgent(t), stranger.LeafKey, stranger.Chain())
	broken := slices.Clone(signed)
	broken = []byte(strings.Replace(string(broken), `"signature\":\"`, `"signature\":\"AAAA`, 1))
	past, now, future := p.Leaf.NotBefore.Add(-2*time.Hour), testpki.Now, p.Leaf.NotAfter.Add(time.Hour)
	revoked := p.AgentCRL(testpki.Revoking(p.Leaf))
	const ok = fault.Reason("")
	for _, c := range []struct {
		name string
		raw  []byte
		at   time.Time
		crl  []byte // nil: a current one
		// what strict, permissive and audit say
		want [3]fault.Reason
		// trust at the two lenient levels, where they let it by
		trust [2]TrustLevel
	}{
		{"nothing", signed, now, nil, [3]fault.Reason{ok, ok, ok}, [2]TrustLevel{Signed, Signed}},
		{"nothing, late", signed, future, nil, [3]fault.Reason{fault.OutsideValidity, ok, ok}, [2]TrustLevel{Signed, Untrusted}},
		{"nothing, early", signed, past, nil, [3]fault.Reason{fault.OutsideValidity, fault.OutsideValidity, ok}, [2]TrustLevel{"", Untrusted}},
		{"signed before its certificate", early, now, nil, [3]fault.Reason{fault.OutsideValidity, fault.OutsideValidity, ok}, [2]TrustLevel{"", Untrusted}},
		{"signed before its certificate, late", early, future, nil, [3]fault.Reason{fault.OutsideValidity, fault.OutsideValidity, ok}, [2]TrustLevel{"", Untrusted}},
		{"attestation that ends", ending, now, nil, [3]fault.Reason{ok, ok, ok}, [2]TrustLevel{Signed, Signed}},
		{"attestation that ended", ending, ends.Add(time.Second), nil, [3]fault.Reason{fault.OutsideValidity, ok, ok}, [2]TrustLevel{Signed, Untrusted}},
		{"no revocation list", signed, now, []byte{}, [3]fault.Reason{fault.RevocationUnknown, ok, ok}, [2]TrustLevel{Signed, Untrusted}},
		{"old revocation list", signed, now.AddDate(0, 6, 0), nil, [3]fault.Reason{fault.RevocationUnknown, ok, ok}, [2]TrustLevel{Signed, Untrusted}},
		{"unknown root", strange, now, nil, [3]fault.Reason{fault.ChainUntrusted, fault.ChainUntrusted, ok}, [2]TrustLevel{"", Untrusted}},
		{"unknown root, late", strange, future, nil, [3]fault.Reason{fault.OutsideValidity, fault.OutsideValidity, ok}, [2]TrustLevel{"", Untrusted}},
		{"another repository", elsewhere, now, nil, [3]fault.Reason{fault.BindingMismatch, fault.BindingMismatch, ok}, [2]TrustLevel{"", Untrusted}},
		{"another repository, late", elsewhere, future, nil, [3]fault.Reason{fault.OutsideValidity, fault.BindingMismatch, ok}, [2]TrustLevel{"", Untrusted}},
		{"revoked", signed, now, revoked, [3]fault.Reason{fault.Revoked, fault.Revoked, fault.Revoked}, [2]TrustLevel{}},
		{"revoked, late", signed, future, revoked, [3]fault.Reason{fault.OutsideValidity, fault.Revoked, fault.Revoked}, [2]TrustLevel{}},
		{"revoked, another repository", elsewhere, now, revoked, [3]fault.Reason{fault.Revoked, fault.Revoked, fault.Revoked}, [2]TrustLevel{}},
		{"broken", broken, now, nil, [3]fault.Reason{fault.SignatureInvalid, fault.SignatureInvalid, fault.SignatureInvalid}, [2]TrustLevel{}},
		{"broken, late", broken, future, nil, [3]fault.Reason{fault.SignatureInvalid, fault.SignatureInvalid, fault.SignatureInvalid}, [2]TrustLevel{}},
		{"unsigned", wasmAgent(t), now, nil, [3]fault.Reason{fault.Unsigned, fault.Unsigned, fault.Unsigned}, [2]TrustLevel{}},
	} {
		for i, level := range append([]Level{""}, levels...) {
			t.Run(fmt.Sprintf("%s/%s", c.name, level), func(t *testing.T) {
				place := max(0, i-1) // no level is the first
				n := newNode(p)
				n.clock = func() time.Time { return c.at }
				if c.crl != nil {
					n.agent = c.crl
				}
				if len(n.agent) == 0 {
					n.agent = nil
				}
				if level != "" {
					n.policy = strings.Replace(n.policy, "    unsigned_containers", "    level: "+string(level)+"\n    unsigned_containers", 1)
				}
				var trace Trace
				vd := n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, c.raw), Trace: &trace})
				want := c.want[place]
				expect(t, vd, want)
				let := want == "" && c.want[0] != ""
				if let != (len(vd.Overlooked) > 0) && want == "" || place == 0 && len(vd.Overlooked) > 0 {
					t.Fatalf("overlooked %+v", vd.Overlooked)
				}
				if want == "" && place > 0 && vd.Trust != c.trust[place-1] {
					t.Errorf("trust %s, want %s", vd.Trust, c.trust[place-1])
				}
				if !let {
					return
				}
				if !slices.ContainsFunc(vd.Warnings, func(w string) bool { return strings.Contains(w, "level "+string(level)) }) || !strings.Contains(vd.Line(), "overlooked") {
					t.Errorf("it is not loud: %q, %v", vd.Line(), vd.Warnings)
				}
				if !slices.ContainsFunc(trace.Steps, func(s Step) bool {
					return s.Name == vd.Overlooked[0].Check && s.Outcome == LetBy && s.Reason == c.want[0]
				}) {
					t.Errorf("the explanation does not show it: %+v", trace.Steps)
				}
			})
		}
	}
}

func TestNothingOverlookedMakesAPublisher(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	n := newNode(p)
	n.policy = strings.Replace(n.policy, "publisher@example.com", "dev@example.com", 1)
	n.policy = strings.Replace(n.policy, "    unsigned_containers", "    level: permissive\n    unsigned_containers", 1)
	if vd := n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, signed)}); vd.Trust != Verified {
		t.Fatal(vd.Line())
	}
	n.agent = nil
	if vd := n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, signed)}); !vd.Allowed || vd.Trust != Signed {
		t.Error(vd.Line())
	}
}

func TestAnIdentityPatternIsForOneIssuersAddresses(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	const issuer = "CN=MentatLab Agent CA,O=MentatLab,C=US"
	for _, c := range []struct {
		issuer, email, store string
		want                 fault.Reason
	}{
		{issuer, "dev@example.com", "", ""},
		{issuer, "*@example.com", "", ""},
		{issuer, "*@Example.COM", "agents", ""},
		{issuer, "d*v@example.com", "", ""},
		{issuer, "d*e*v@example.com", "", ""},
		{issuer, "dev*@example.com", "", ""},
		{issuer, "*@example.com", "others", fault.IdentityUntrusted},
		{issuer, "*@xample.com", "", fault.IdentityUntrusted},
		{issuer, "*@com", "", fault.IdentityUntrusted},
		{issuer, "D*@example.com", "", fault.IdentityUntrusted},
		{issuer, "de@example.com", "", fault.IdentityUntrusted},
		{issuer, "dev*v@example.com", "", fault.IdentityUntrusted},
		{issuer, "*e*e*@example.com", "", fault.IdentityUntrusted},
		{"CN=MentatLab Root CA,O=MentatLab,C=US", "*@example.com", "", fault.IdentityUntrusted},
		{"CN=MentatLab Agent CA", "*@example.com", "", fault.IdentityUntrusted},
	} {
		t.Run(c.issuer+" "+c.email+" "+c.store, func(t *testing.T) {
			text := strings.Replace(testPolicy, "stores: [agents]", "stores: [others, agents]", 1)
			text = strings.Replace(text, `    identities: ["email:dev@Example.com"]`, fmt.Sprintf("    identity_patterns:\n      - {issuer: %q, email: %q}", c.issuer, c.email), 1)
			if c.store != "" {
				text = strings.Replace(text, "email: \""+c.email+"\"", "email: \""+c.email+"\", store: "+c.store, 1)
			}
			vd := twoStores(t, p, text).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, signed)})
			expect(t, vd, c.want)
		})
	}
}

// twoStores is a verifier that knows p as the store agents, and a stranger as
// others.
func twoStores(t *testing.T, p *testpki.PKI, text string) *Verifier {
	t.Helper()
	stranger := testpki.New(t, func(r *testpki.Recipe) { r.RootKey = testpki.RSA(t, "stranger", 2048) })
	stores := map[string]*Store{}
	for name, root := range map[string]*x509.Certificate{"agents": p.Root, "others": stranger.Root} {
		s, err := NewStore(name, root)
		if err != nil {
			t.Fatal(err)
		}
		stores[name] = s
	}
	var lists Indexes
	for _, one := range []*testpki.PKI{p, stranger} {
		for issuer, der := range map[*x509.Certificate][]byte{one.Root: one.RootCRL(), one.Agent: one.AgentCRL()} {
			ix, err := CompileCRL(der, issuer, CRLOrigin{}, testpki.Now)
			if err != nil {
				t.Fatal(err)
			}
			lists = append(lists, ix)
		}
	}
	v, err := New(Config{Policy: policy(t, text), Stores: stores, Revocation: lists, Clock: testpki.Clock})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestEveryStoreOfAScopeCountsAndNoOther(t *testing.T) {
	p := testpki.New(t)
	stranger := testpki.New(t, func(r *testpki.Recipe) { r.RootKey = testpki.RSA(t, "stranger", 2048) })
	ours := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	theirs := mustSign(t, wasmAgent(t), stranger.LeafKey, stranger.Chain())
	for stores, want := range map[string][2]fault.Reason{
		"[agents]":         {"", fault.ChainUntrusted},
		"[others]":         {fault.ChainUntrusted, ""},
		"[agents, others]": {"", ""},
	} {
		v := twoStores(t, p, strings.Replace(testPolicy, "stores: [agents]", "stores: "+stores, 1))
		for i, raw := range [][]byte{ours, theirs} {
			expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, raw)}), want[i])
		}
	}
}

func TestScopesThatAreNotClearAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ key, says string }{
		"unknown level":          {"level: skip", "level"},
		"level in capitals":      {"level: Audit", "level"},
		"pattern without email":  {`identity_patterns: [{issuer: "CN=A"}]`, "email"},
		"pattern without issuer": {`identity_patterns: [{email: "*@example.com"}]`, "issuer"},
		"star in the domain":     {`identity_patterns: [{issuer: "CN=A", email: "dev@*.com"}]`, "email"},
		"only a star":            {`identity_patterns: [{issuer: "CN=A", email: "*"}]`, "email"},
		"store of another":       {`identity_patterns: [{issuer: "CN=A", email: "*@example.com", store: other}]`, "store"},
	} {
		text := strings.Replace(testPolicy, "    unsigned_containers", "    "+c.key+"\n    unsigned_containers", 1)
		if _, err := ParsePolicy("p", []byte(text)); fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	both := strings.Replace(testPolicy, "identities: [any]", `identities: [any]`+"\n    identity_patterns: [{issuer: \"CN=A\", email: \"*@example.com\"}]", 1)
	if _, err := ParsePolicy("p", []byte(both)); err == nil || !strings.Contains(err.Error(), "no effect") {
		t.Error(err)
	}
}
