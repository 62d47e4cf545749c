package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
	"github.com/mentatlab/mentat/verifier/notation"
)

var acceptingPolicy = strings.Replace(policy, "    unsigned_containers: deny\n", "    unsigned_containers: deny\n    binding: none\n    notation: accept\n", 1)

// envelope is a Notary Project signature of a manifest.
func (w *world) envelope(p *testpki.PKI, raw []byte) verifier.Envelope {
	w.Helper()
	data, err := notation.Sign(notation.Request{
		Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Key:    p.LeafKey, Chain: append(p.Chain(), p.Root), Time: testpki.Now.Add(-time.Hour),
	})
	if err != nil {
		w.Fatal(err)
	}
	return verifier.Envelope{MediaType: notation.MediaType, Data: data}
}

// keep is what the pull gate does after its verdict.
func (w *world) keep(raw []byte, all ...verifier.Envelope) {
	w.Helper()
	if err := envelopes.In(w.config.Verify.State).Keep(digest.FromBytes(raw), all); err != nil {
		w.Fatal(err)
	}
}

func TestAnAgentRunsByTheSignatureThatThePullGateKept(t *testing.T) {
	w := enforcing(t)
	w.enforce(acceptingPolicy)
	raw := w.agent(asking)
	w.create(ref, raw)
	w.refused(fault.Unsigned)
	w.keep(raw, w.envelope(w.pki, raw))
	got := w.runs(true)
	if vd := got.Verdict; vd.Trust != verifier.Signed || vd.Signature != verifier.NotationSignature || vd.Signer.Email != testpki.Email {
		t.Errorf("%+v", vd)
	}
	if doc := w.document(); doc.Agent.Signer != testpki.Email || doc.Agent.Trust != "signed" {
		t.Errorf("the host is told %+v", doc.Agent)
	}
	admissions, _ := w.records()
	last := admissions[len(admissions)-1]
	if last.Signature != "notation" || last.Agent.Attestation.Signer != testpki.Email || !last.Agent.Attestation.Verified || last.Reason != "" {
		t.Errorf("%+v", last)
	}
}

func TestWhatIsKeptIsVerifiedAnewAtEveryStart(t *testing.T) {
	stranger := testpki.New(t, testpki.OtherRoot(t))
	for name, c := range map[string]struct {
		change func(w *world, raw []byte)
		want   fault.Reason
	}{
		"the scope refuses": {func(w *world, _ []byte) { w.enforce(policy) }, fault.Unsigned},
		"the signer is revoked": {func(w *world, _ []byte) {
			w.file("agent.crl", w.pki.AgentCRL(testpki.Numbered(99), testpki.Revoking(w.pki.Leaf)))
		}, fault.Revoked},
		"another root signed":   {func(w *world, raw []byte) { w.keep(raw, w.envelope(stranger, raw)) }, fault.ChainUntrusted},
		"it is another agent's": {func(w *world, raw []byte) { w.keep(raw, w.envelope(w.pki, []byte("another"))) }, fault.SignatureInvalid},
		"somebody wrote rubbish": {func(w *world, raw []byte) {
			w.keep(raw, verifier.Envelope{MediaType: notation.MediaType, Data: []byte("trust me")})
		}, fault.AttestationFormat},
		"the file is no list": {func(w *world, raw []byte) {
			w.file("state/notation/"+digest.FromBytes(raw).Encoded()+".json", []byte("yes"))
		}, fault.AttestationFormat},
		"the certificate has ended": {func(w *world, _ []byte) { w.clock = func() time.Time { return testpki.Now.AddDate(2, 0, 0) } }, fault.OutsideValidity},
		"it was removed": {func(w *world, _ []byte) {
			if err := os.RemoveAll(filepath.Join(w.etc, "state", "notation")); err != nil {
				w.Fatal(err)
			}
		}, fault.Unsigned},
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			w.enforce(acceptingPolicy)
			raw := w.agent(asking)
			w.create(ref, raw)
			w.keep(raw, w.envelope(w.pki, raw))
			if _, err := w.prepare(); err != nil { // and it is remembered
				t.Fatal(err)
			}
			c.change(w, raw)
			w.write(plain())
			w.refused(c.want)
		})
	}
}

func TestABrokenAttestationIsRefusedWhateverIsKept(t *testing.T) {
	w := enforcing(t)
	w.enforce(acceptingPolicy)
	signed := w.sign(w.agent(asking))
	raw := []byte(strings.Replace(string(signed), "2026-01-15T", "2026-01-14T", 1))
	if string(raw) == string(signed) {
		t.Fatal("nothing was changed")
	}
	w.create(ref, raw)
	w.keep(raw, w.envelope(w.pki, raw))
	w.refused(fault.SignatureInvalid)
}
