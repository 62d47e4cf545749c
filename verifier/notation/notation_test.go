package notation_test

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	notationgo "github.com/notaryproject/notation-go"
	notationverifier "github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/notation"
)

// roots is notation's trust store, in memory.
type roots []*x509.Certificate

func (r roots) GetCertificates(context.Context, truststore.Type, string) ([]*x509.Certificate, error) {
	return r, nil
}

const reference = "registry.example/agents/echo"

// accepts is notation-go's verdict.
func accepts(t *testing.T, root *x509.Certificate, target ocispec.Descriptor, envelope []byte) error {
	t.Helper()
	v, err := notationverifier.New(&trustpolicy.Document{
		Version: "1.0",
		TrustPolicies: []trustpolicy.TrustPolicy{{
			Name: "agents", RegistryScopes: []string{reference}, TrustStores: []string{"ca:agents"}, TrustedIdentities: []string{"*"},
			// The certificates' lists are at addresses of this test.
			SignatureVerification: trustpolicy.SignatureVerification{
				VerificationLevel: "strict",
				Override:          map[trustpolicy.ValidationType]trustpolicy.ValidationAction{trustpolicy.TypeRevocation: trustpolicy.ActionSkip},
			},
		}},
	}, roots{root}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(t.Context(), target, envelope, notationgo.VerifierVerifyOptions{
		ArtifactReference: reference + "@" + target.Digest.String(), SignatureMediaType: notation.MediaType,
	})
	return err
}

func describe(data string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(data), Size: int64(len(data))}
}

// began is one moment for all: two authorities of the same keys have the same root only
// if it is of the same time.
var began = time.Now()

// now moves the authority's certificates to where notation's clock is.
func now(r *testpki.Recipe) {
	shift := began.Sub(testpki.Now)
	for _, c := range []*x509.Certificate{r.Root, r.Agent, r.Leaf} {
		c.NotBefore, c.NotAfter = c.NotBefore.Add(shift), c.NotAfter.Add(shift)
	}
}

func request(p *testpki.PKI, target ocispec.Descriptor) notation.Request {
	return notation.Request{Target: target, Key: p.LeafKey, Chain: append(p.Chain(), p.Root), Time: time.Now().Add(-time.Minute)}
}

func TestNotationAcceptsWhatIsSigned(t *testing.T) {
	for name, knobs := range map[string][]testpki.Knob{
		"RSA":         {now},
		"RSA 3072":    {now, testpki.LeafKey(testpki.RSA(t, "leaf", 3072))},
		"ECDSA P-256": {now, testpki.LeafKey(testpki.EC(t, "leaf", elliptic.P256()))},
		"ECDSA P-384": {now, testpki.LeafKey(testpki.EC(t, "leaf", elliptic.P384()))},
	} {
		t.Run(name, func(t *testing.T) {
			p := testpki.New(t, knobs...)
			target := describe("manifest")
			req := request(p, target)
			req.Expiry = time.Now().Add(time.Hour)
			envelope, err := notation.Sign(req)
			if err != nil {
				t.Fatal(err)
			}
			if err := accepts(t, p.Root, target, envelope); err != nil {
				t.Errorf("notation refuses it: %v", err)
			}
			// And it judges: another artifact, another root, a changed envelope.
			if accepts(t, p.Root, describe("another manifest"), envelope) == nil {
				t.Error("notation accepts it for another artifact")
			}
			if accepts(t, testpki.New(t, now, testpki.OtherRoot(t)).Root, target, envelope) == nil {
				t.Error("notation accepts it for another root")
			}
			if accepts(t, p.Root, target, []byte(strings.Replace(string(envelope), `"payload":"`, `"payload":"A`, 1))) == nil {
				t.Error("notation accepts a changed envelope")
			}
			chain, _, err := notation.Chain(envelope, target)
			if err != nil || len(chain) != 3 || !chain[0].Equal(p.Leaf) {
				t.Errorf("%d certificates, %v", len(chain), err)
			}
			if _, _, err := notation.Chain(envelope, describe("another manifest")); fault.ReasonOf(err) != fault.SignatureInvalid {
				t.Errorf("for another artifact: %v", err)
			}
		})
	}
}

func TestWhatNotationWouldRefuseIsNotSigned(t *testing.T) {
	p := testpki.New(t, now)
	target := describe("manifest")
	for _, c := range []struct {
		name string
		edit func(*notation.Request)
		want fault.Reason
	}{
		{"no root", func(r *notation.Request) { r.Chain = p.Chain() }, fault.Usage},
		{"no chain", func(r *notation.Request) { r.Chain = nil }, fault.Usage},
		{"another key", func(r *notation.Request) { r.Key = p.AgentKey }, fault.SignatureInvalid},
		{"out of order", func(r *notation.Request) { r.Chain = []*x509.Certificate{p.Agent, p.Leaf, p.Root} }, fault.ChainUntrusted},
		{"for TLS", func(r *notation.Request) {
			tls := testpki.New(t, now, testpki.LeafForTLS)
			r.Chain = append(tls.Chain(), tls.Root)
		}, fault.ChainUntrusted},
		{"expired when signed", func(r *notation.Request) { r.Time = p.Leaf.NotAfter.Add(time.Hour) }, fault.ChainUntrusted},
		{"ends before it begins", func(r *notation.Request) { r.Expiry = r.Time.Add(-time.Hour) }, fault.ChainUntrusted},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := request(p, target)
			c.edit(&req)
			if out, err := notation.Sign(req); out != nil || fault.ReasonOf(err) != c.want {
				t.Errorf("%d bytes, %v, want %s", len(out), err, c.want)
			}
		})
	}
}
