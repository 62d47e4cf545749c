package verifier

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
)

// Words for what a cell may say besides a reason for a refusal.
const (
	cellOK      = "ok"      // allowed, nothing overlooked, nothing pending
	cellLet     = "let"     // allowed, loudly: the level overlooks a failed check
	cellPending = "pending" // allowed until attestations are required
)

// stages are what a policy may say of when attestations are required, and the stage
// that it means at testpki.Now. The columns of the table below.
var stages = []struct {
	name, text string
	stage      Stage
}{
	{"unstaged", "", StageEnforced},
	{"off", "attestation_required: {enabled: false}\n", StageOff},
	{"before", "attestation_required: {enabled: true, enforcement_date: \"2026-02-01\", grace_period_days: 90}\n", StageAnnounced},
	{"grace", "attestation_required: {enabled: true, enforcement_date: \"2026-01-01\", grace_period_days: 90}\n", StageGrace},
	{"after", "attestation_required: {enabled: true, enforcement_date: \"2025-06-01\", grace_period_days: 90}\n", StageEnforced},
}

// Every level by every failure by every date: five words for each level, in the order
// of the stages. Nothing is computed.
func TestEveryLevelByEveryFailureByEveryDate(t *testing.T) {
	p := testpki.New(t)
	pki := func(knobs ...testpki.Knob) []byte { return with(knobs...)(t) }
	block := func(change func(*Block)) []byte { return edited(change)(t) }
	good := pki()
	for _, row := range []struct {
		failure                   string
		raw                       []byte
		agentCRL                  []byte // nil: a current one; empty: none
		strict, permissive, audit string
	}{
		{"none", good, nil,
			"ok ok ok ok ok",
			"ok ok ok ok ok",
			"ok ok ok ok ok"},
		{"no attestation", wasmAgent(t), nil,
			"unsigned pending pending pending unsigned",
			"unsigned pending pending pending unsigned",
			"unsigned pending pending pending unsigned"},
		{"no attestation on a container", container(t), nil,
			"unsigned pending pending pending unsigned",
			"unsigned pending pending pending unsigned",
			"unsigned pending pending pending unsigned"},
		{"an attestation that cannot be read", annotate(t, good, "rubbish"), nil,
			"attestation-invalid attestation-invalid attestation-invalid attestation-invalid attestation-invalid",
			"attestation-invalid attestation-invalid attestation-invalid attestation-invalid attestation-invalid",
			"attestation-invalid attestation-invalid attestation-invalid attestation-invalid attestation-invalid"},
		{"an empty attestation", annotate(t, good, ""), nil,
			"attestation-invalid attestation-invalid attestation-invalid attestation-invalid attestation-invalid",
			"attestation-invalid attestation-invalid attestation-invalid attestation-invalid attestation-invalid",
			"attestation-invalid attestation-invalid attestation-invalid attestation-invalid attestation-invalid"},
		{"another content", []byte(strings.Replace(string(good), `"annotations":{`, `"annotations":{"a":"b",`, 1)), nil,
			"signature-invalid signature-invalid signature-invalid signature-invalid signature-invalid",
			"signature-invalid signature-invalid signature-invalid signature-invalid signature-invalid",
			"signature-invalid signature-invalid signature-invalid signature-invalid signature-invalid"},
		{"another algorithm", lying(func(_ testing.TB, b *Block) { b.Algorithm = AlgorithmECDSA })(t), nil,
			"signature-invalid signature-invalid signature-invalid signature-invalid signature-invalid",
			"signature-invalid signature-invalid signature-invalid signature-invalid signature-invalid",
			"signature-invalid signature-invalid signature-invalid signature-invalid signature-invalid"},
		{"an unknown root", pki(testpki.OtherRoot(t)), nil,
			"chain-untrusted chain-untrusted chain-untrusted chain-untrusted chain-untrusted",
			"chain-untrusted chain-untrusted chain-untrusted chain-untrusted chain-untrusted",
			"let let let let let"},
		{"a certificate for servers", pki(testpki.LeafForTLS), nil,
			"chain-untrusted chain-untrusted chain-untrusted chain-untrusted chain-untrusted",
			"chain-untrusted chain-untrusted chain-untrusted chain-untrusted chain-untrusted",
			"let let let let let"},
		{"another signer", pki(testpki.LeafEmails("mallory@example.com")), nil,
			"identity-untrusted identity-untrusted identity-untrusted identity-untrusted identity-untrusted",
			"identity-untrusted identity-untrusted identity-untrusted identity-untrusted identity-untrusted",
			"let let let let let"},
		{"another repository", block(func(b *Block) { b.Subject.Repository = "registry.example/agents/other" }), nil,
			"binding-mismatch binding-mismatch binding-mismatch binding-mismatch binding-mismatch",
			"binding-mismatch binding-mismatch binding-mismatch binding-mismatch binding-mismatch",
			"let let let let let"},
		{"an expired certificate", expiredSince(t), nil,
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"let let let let let",
			"let let let let let"},
		{"a signature after its certificate expired", pki(testpki.LeafExpired), nil,
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"let let let let let"},
		{"a certificate that is not yet valid", pki(testpki.LeafNotYetValid), nil,
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"let let let let let"},
		{"an attestation that ended", block(func(b *Block) { b.NotAfter = "2026-01-15T10:00:00Z" }), nil,
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"let let let let let",
			"let let let let let"},
		{"a time from the future", block(func(b *Block) { b.Timestamp = "2026-01-15T11:30:00Z" }), nil,
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"outside-validity outside-validity outside-validity outside-validity outside-validity",
			"let let let let let"},
		{"no revocation list", good, []byte{},
			"revocation-unknown revocation-unknown revocation-unknown revocation-unknown revocation-unknown",
			"let let let let let",
			"let let let let let"},
		{"a revocation list that is out of date", good, p.AgentCRL(testpki.Until(testpki.Now.AddDate(0, 0, -3))),
			"revocation-unknown revocation-unknown revocation-unknown revocation-unknown revocation-unknown",
			"let let let let let",
			"let let let let let"},
		{"a revocation list in its grace", good, p.AgentCRL(testpki.Until(testpki.Now.AddDate(0, 0, -1).Add(60e9))),
			"ok ok ok ok ok",
			"ok ok ok ok ok",
			"ok ok ok ok ok"},
		{"a revoked certificate", good, p.AgentCRL(testpki.Revoking(p.Leaf)),
			"revoked revoked revoked revoked revoked",
			"revoked revoked revoked revoked revoked",
			"revoked revoked revoked revoked revoked"},
		{"a version that is too low", agentBelow(t, p), nil,
			"version-too-low version-too-low version-too-low version-too-low version-too-low",
			"version-too-low version-too-low version-too-low version-too-low version-too-low",
			"version-too-low version-too-low version-too-low version-too-low version-too-low"},
	} {
		for level, cells := range map[Level]string{Strict: row.strict, Permissive: row.permissive, Audit: row.audit} {
			words := strings.Fields(cells)
			if len(words) != len(stages) {
				t.Fatalf("%s at %s: %d cells for %d stages", row.failure, level, len(words), len(stages))
			}
			for i, word := range words {
				t.Run(fmt.Sprintf("%s/%s/%s", row.failure, level, stages[i].name), func(t *testing.T) {
					n := newNode(p)
					n.policy = strings.ReplaceAll(n.policy, "    unsigned_containers", "    level: "+string(level)+"\n    unsigned_containers") +
						"minimum_versions: {mentatlab.old: 2.0.0}\n" + stages[i].text
					if row.agentCRL != nil {
						n.agent = row.agentCRL
					}
					if len(n.agent) == 0 {
						n.agent = nil
					}
					v := n.verifier(t)
					v.seen = &memorySeen{}
					if stage, _, err := v.Staging(); stage != stages[i].stage || err != nil {
						t.Fatalf("the stage is %s: %v", stage, err)
					}
					cell(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, row.raw)}), word)
				})
			}
		}
	}
}

// expiredSince is an agent whose certificate has expired since it was signed.
func expiredSince(tb testing.TB) []byte {
	p := testpki.New(tb, testpki.LeafExpired)
	return mustSign(tb, wasmAgent(tb), p.LeafKey, p.Chain(), func(b *Block) { b.Timestamp = testpki.Now.AddDate(0, 0, -2).Format(timeLayout) })
}

// agentBelow is the release 1.0.0 of an agent whose minimum is 2.0.0.
func agentBelow(tb testing.TB, p *testpki.PKI) []byte {
	return mustSign(tb, agentOf(tb, "old", "\x00asm\x01\x00\x00\x00"), p.LeafKey, []*x509.Certificate{p.Leaf, p.Agent}, func(b *Block) { b.Subject.ID = "mentatlab.old" })
}

// cell holds a verdict to a cell's word.
func cell(t *testing.T, vd *Verdict, word string) {
	t.Helper()
	switch word {
	case cellOK:
		expect(t, vd, "")
		if len(vd.Overlooked) > 0 || vd.Pending != nil {
			t.Errorf("overlooked %v, pending %v", vd.Overlooked, vd.Pending)
		}
	case cellLet:
		expect(t, vd, "")
		if len(vd.Overlooked) == 0 || vd.Pending != nil || len(vd.Warnings) == 0 {
			t.Errorf("overlooked %v, pending %v, warnings %q", vd.Overlooked, vd.Pending, vd.Warnings)
		}
	case cellPending:
		expect(t, vd, "")
		if len(vd.Overlooked) > 0 || vd.Pending == nil || vd.Pending.Reason != fault.Unsigned || vd.Trust != Untrusted {
			t.Errorf("overlooked %v, pending %v, trust %s", vd.Overlooked, vd.Pending, vd.Trust)
		}
	default:
		reason := fault.Reason(word)
		if fault.RowOf(reason).Reason != reason {
			t.Fatalf("the unknown word %q", word)
		}
		expect(t, vd, reason)
	}
}

// FuzzNoPolicyAllowsWhatIsBroken: whatever a policy says, at whatever level and stage
// and by whatever name, an attestation that cannot be read or does not fit what it
// signs is refused; and the same policy says the same again.
func FuzzNoPolicyAllowsWhatIsBroken(f *testing.F) {
	f.Add(testPolicy, ref)
	f.Add(fullPolicy, ref)
	f.Add(remapPolicy, "127.0.0.1:5000/agents/a:1")
	for _, s := range stages {
		f.Add(testPolicy+s.text, ref)
		f.Add(strings.ReplaceAll(testPolicy, "    unsigned_containers", "    level: audit\n    unsigned_containers")+s.text, "elsewhere.example/a:1")
	}
	f.Add("version: 1\nscopes: [{name: a, match: ['*'], stores: [a], identities: [any], unsigned_containers: allow, unsigned_agents: allow, binding: none, level: audit}]\noutside: {ordinary_images: allow}\n", "")
	_, p := frozenNode(f)
	root, err := NewStore("a", p.Root)
	if err != nil {
		f.Fatal(err)
	}
	vectors := frozen(f)
	broken := map[string]*oci.Artifact{}
	for _, name := range []string{"annotation-added", "signature-empty", "empty", "null", "rubbish", "algorithm-none", "signed-by-another-key", "re-spaced-manifest", "certificate-damaged", "without-payload-type"} {
		broken[name] = read(f, vectors[name].raw(f))
	}
	agent, state := read(f, vectors["good"].raw(f)), f.TempDir()
	f.Fuzz(func(t *testing.T, text, reference string) {
		p, err := ParsePolicy("p", []byte(text))
		if err != nil {
			return
		}
		stores := map[string]*Store{}
		for _, name := range p.stores() {
			stores[name] = root
		}
		open := func(p *Policy) *Verifier {
			v, err := New(Config{Policy: p, Stores: stores, Revocation: Indexes{}, Stamps: noStamps{}, State: state, Seen: &memorySeen{}, Clock: testpki.Clock})
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		v := open(p)
		for name, a := range broken {
			if vd := v.Verify(t.Context(), Input{Reference: reference, Artifact: a}); vd.Allowed {
				t.Fatalf("%s as %q: %s", name, reference, vd.Line())
			}
		}
		again, err := ParsePolicy("p", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		one, two := v.Verify(t.Context(), Input{Reference: reference, Artifact: agent}), open(again).Verify(t.Context(), Input{Reference: reference, Artifact: agent})
		if one.Line() != two.Line() || one.Reason != two.Reason || one.Trust != two.Trust || v.Rules() != open(again).Rules() {
			t.Fatalf("%s and then %s", one.Line(), two.Line())
		}
	})
}
