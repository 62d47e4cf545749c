package memory

import (
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/notation"
)

const acceptingPolicy = `version: 1
scopes:
  - {name: agents, match: ["registry.example/agents/**"], stores: [agents], identities: ["email:dev@example.com"], unsigned_containers: deny, binding: none, notation: accept}
outside: {ordinary_images: deny}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: agent.crl}
`

func TestAVerdictByEnvelopesHoldsForThoseEnvelopesAndWhileTheyLast(t *testing.T) {
	n := newNode(t)
	n.put("policy.yaml", []byte(acceptingPolicy))
	n.agent(false)
	sign := func(chain []*x509.Certificate, expiry time.Time) verifier.Envelope {
		data, err := notation.Sign(notation.Request{
			Target: verifier.Target(n.in.Artifact), Key: n.pki.LeafKey, Chain: append(chain, n.pki.Root), Time: testpki.Now.Add(-time.Hour), Expiry: expiry,
		})
		if err != nil {
			t.Fatal(err)
		}
		return verifier.Envelope{MediaType: notation.MediaType, Data: data}
	}
	good := sign(n.pki.Chain(), testpki.Now.Add(time.Hour))
	verify := func(want fault.Reason, remembered bool, all ...verifier.Envelope) {
		t.Helper()
		cfg := nodeconfig.Verify{Policy: filepath.Join(n.dir, "policy.yaml"), Trust: filepath.Join(n.dir, "trust"), State: filepath.Join(n.dir, "state")}
		v, err := verifier.Open(cfg, func() time.Time { return n.now }, nil, verifier.Reading(notation.Reader{}))
		if err != nil {
			t.Fatal(err)
		}
		in := n.in
		in.Envelopes = all
		if vd := n.memory.Verify(t.Context(), v, in); vd.Reason != want || vd.Remembered != remembered || vd.Allowed && vd.Signature != verifier.NotationSignature {
			t.Errorf("%q, remembered %t, %q; want %q, %t", vd.Line(), vd.Remembered, vd.Signature, want, remembered)
		}
	}
	verify("", false, good)
	verify("", true, good)
	verify(fault.Unsigned, false)
	verify(fault.AttestationFormat, false, verifier.Envelope{MediaType: "text/plain", Data: good.Data})
	verify(fault.AttestationFormat, false, verifier.Envelope{MediaType: good.MediaType, Data: good.Data[1:]})
	verify("", false, good, good)
	// The signature ends before anything else does.
	n.now = testpki.Now.Add(time.Hour - time.Second)
	verify("", true, good)
	n.now = testpki.Now.Add(time.Hour + time.Second)
	verify(fault.OutsideValidity, false, good)
	n.now = testpki.Now
	n.put("agent.crl", n.pki.AgentCRL(testpki.Revoking(n.pki.Leaf), testpki.Numbered(99)))
	verify(fault.Revoked, false, good)
}
