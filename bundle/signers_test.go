package bundle

import (
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// An agent with too few signatures does not start; one with enough does, and its
// record names everybody who signed.
func TestTheRunGateWantsEveryRequiredSigner(t *testing.T) {
	const bob = "bob@example.com"
	w := enforcing(t)
	w.enforce(strings.Replace(policy, "    unsigned_containers", `    required_signers: [{at_least: 2, of: ["email:dev@example.com", "email:`+bob+"\"]}]\n    unsigned_containers", 1))
	raw := w.sign(w.agent(""))
	w.create(ref, raw)
	if said := w.refusal(fault.SignersMissing); !strings.Contains(said, "mentatctl countersign "+ref) {
		t.Errorf("it says %q", said)
	}
	p := testpki.New(t, testpki.LeafEmails(bob), testpki.LeafSerial(77), testpki.LeafKey(testpki.RSA(t, bob, 2048)))
	signed, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now})
	if err != nil {
		t.Fatal(err)
	}
	w.create(ref, signed)
	if got := w.runs(true); got.Verdict.Trust != verifier.Signed || !slices.Equal(got.Verdict.Counted(), []string{bob}) {
		t.Errorf("verdict %s", got.Verdict.Line())
	}
	admissions, _ := w.records()
	if len(admissions) != 2 || admissions[0].Result != audit.Denied || admissions[0].Reason != string(fault.SignersMissing) || len(admissions[0].Countersigners) != 0 {
		t.Fatalf("recorded are %+v", admissions)
	}
	if last := admissions[1]; last.Result != audit.Allowed || last.Agent.Attestation.Signer != testpki.Email || !slices.Equal(last.Countersigners, []string{bob}) {
		t.Errorf("recorded is %+v", last)
	}
	w.file("agent.crl", w.pki.AgentCRL(testpki.Numbered(2), testpki.Revoking(p.Leaf)))
	w.refused(fault.SignersMissing)
}
