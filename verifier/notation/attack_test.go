package notation_test

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

// Whoever can take a signature away must not bring back what a list withdrew.
func TestWithoutItsSignatureAManifestIsAsWithdrawnAsWithIt(t *testing.T) {
	p := testpki.New(t)
	for name, a := range map[string]*oci.Artifact{"agent": agent(t), "container": image(t)} {
		for want, denied := range map[fault.Reason]digest.Digest{fault.Withdrawn: a.Digest, "": digest.FromString("another manifest")} {
			dir := t.TempDir()
			list, err := verifier.SignReleases(verifier.Releases{Number: 1, NextUpdate: "2026-02-01T00:00:00Z", DeniedPayloads: []digest.Digest{denied}}, p.LeafKey, p.Chain(), testpki.Now)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "list"), list, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			policy := strings.Replace(judgePolicy, "unsigned_containers: deny", "unsigned_containers: allow\n    unsigned_agents: allow", 1)
			v := judges{
				pki:    p,
				policy: policy + "releases:\n  - {name: ours, file: " + filepath.Join(dir, "list") + ", stores: [agents], identities: [\"email:dev@example.com\"]}\n",
				config: func(c *verifier.Config) { c.State = dir },
			}.verifier(t)
			for _, all := range [][]verifier.Envelope{{good(t, p, a)}, nil} {
				if vd := judge(t, v, a, all...); vd.Reason != want {
					t.Errorf("%s with %d signatures: %q, want reason %q", name, len(all), vd.Line(), want)
				}
			}
		}
	}
}

// A level lets by that the chain ended, not that it is another one than it says.
func TestAnEndedChainToAnotherRootIsNotLetByAsEnded(t *testing.T) {
	a := agent(t)
	p := testpki.New(t, testpki.LeafExpired)
	other := testpki.New(t, func(r *testpki.Recipe) { r.Root.NotAfter = r.Root.NotAfter.AddDate(1, 0, 0) }).Root
	v := judges{pki: p, policy: strings.Replace(judgePolicy, "    binding", "    level: permissive\n    binding", 1)}.verifier(t)
	ended := good(t, p, a, func(o *signature.SignRequest) { o.SigningTime = testpki.Now.AddDate(0, 0, -2) })
	if vd := judge(t, v, a, ended); !vd.Allowed || len(vd.Overlooked) == 0 {
		t.Fatalf("it is no case of this level: %q", vd.Line())
	}
	expect(t, judge(t, v, a, rechained(t, ended, p.Leaf, p.Agent, other)), fault.ChainUntrusted)
}

// That an envelope counts does not make it pointless to ask about the signer of a
// release list.
func TestAResponderIsAskedAboutTheSignerOfAReleaseListBesideAnEnvelope(t *testing.T) {
	p, a, dir := testpki.New(t), agent(t), t.TempDir()
	keeper := testpki.New(t, testpki.LeafSerial(77), testpki.LeafEmails("keeper@example.com"))
	list, err := verifier.SignReleases(verifier.Releases{Number: 1, NextUpdate: "2026-02-01T00:00:00Z"}, keeper.LeafKey, keeper.Chain(), testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"trust/agents/root.pem": testpki.PEM(p.Root), "root.crl": p.RootCRL(), "list": list, "policy.yaml": []byte(judgePolicy + `revocation:
  crls: [{issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}]
  ocsp: [{issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", url: "http://ocsp.example"}]
releases: [{name: ours, file: list, stores: [agents], identities: ["email:keeper@example.com"]}]
`),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		*testpki.PKI
		made time.Duration
	}{{p, -time.Hour}, {keeper, -20 * time.Hour}} { // the second's is more than half over
		der := one.OCSP(func(r *ocsp.Response) {
			r.ThisUpdate, r.NextUpdate = testpki.Now.Add(one.made), testpki.Now.Add(one.made+24*time.Hour)
		})
		if err := verifier.StoreOCSP(state, one.Leaf, one.Agent, der, testpki.Now); err != nil {
			t.Fatal(err)
		}
	}
	v, err := verifier.Open(nodeconfig.Verify{Policy: filepath.Join(dir, "policy.yaml"), Trust: filepath.Join(dir, "trust"), State: state},
		testpki.Clock, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil {
		t.Fatal(err)
	}
	vd := judge(t, v, a, good(t, p, a))
	expect(t, vd, "")
	if len(vd.Questions) == 0 {
		t.Error("nobody is asked about the list's signer")
	}
	for _, q := range vd.Questions {
		if !q.Certificate.Equal(keeper.Leaf) {
			t.Errorf("asked about %s", q.Certificate.Subject)
		}
	}
}

// What is there and broken is refused, however much the scope lets by, and although it
// would run without any signature: no level and no stage is about that.
func TestNothingLetsABrokenEnvelopeBy(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	revoked := testpki.New(t, testpki.LeafSerial(9)).Leaf
	never := map[fault.Reason]bool{fault.SignatureInvalid: true, fault.AttestationFormat: true, fault.Unsupported: true, fault.Unavailable: true, fault.Revoked: true}
	all := hostile(t, p, a)
	for name, policy := range map[string]string{
		"permissive":       strings.Replace(judgePolicy, "    binding", "    level: permissive\n    binding", 1),
		"audit":            strings.Replace(judgePolicy, "    binding", "    level: audit\n    binding", 1),
		"unsigned agents":  strings.Replace(judgePolicy, "    binding", "    unsigned_agents: allow\n    binding", 1),
		"not required yet": judgePolicy + "attestation_required: {enabled: false}\n",
	} {
		v := judges{pki: p, policy: policy, revoke: []*x509.Certificate{revoked}}.verifier(t)
		for what, c := range all {
			if !never[c.want] {
				continue
			}
			if vd := judge(t, v, a, c.Envelope); vd.Reason != c.want || len(vd.GoodEnvelopes) > 0 || vd.Pending != nil {
				t.Errorf("%s, %s: %q, want reason %q", name, what, vd.Line(), c.want)
			}
		}
	}
}

// notation signs what a tag means: of an image of several platforms that is the index,
// and whoever did that is told.
func TestASignatureOverTheIndexIsNoneOfItsImages(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	v := judges{pki: p}.verifier(t)
	index := digest.FromString("index")
	vd := v.Verify(t.Context(), verifier.Input{Reference: agentRef, Artifact: a, Index: index})
	expect(t, vd, fault.Unsigned)
	if !strings.Contains(vd.Message, "sign "+a.Digest.String()+", the image itself: a signature over the index "+index.String()) {
		t.Error(vd.Message)
	}
	over := good(t, p, a, func(o *signature.SignRequest) {
		o.Payload.Content = []byte(strings.ReplaceAll(string(o.Payload.Content), a.Digest.String(), index.String()))
	})
	vd = v.Verify(t.Context(), verifier.Input{Reference: agentRef, Artifact: a, Index: index, Envelopes: []verifier.Envelope{over}})
	expect(t, vd, fault.SignatureInvalid)
	if vd := v.Verify(t.Context(), verifier.Input{Reference: agentRef, Artifact: a, Index: a.Digest}); !strings.Contains(vd.Message, "pull it again") {
		t.Error(vd.Message)
	}
}
