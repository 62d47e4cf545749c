package verifier

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"maps"
	"slices"
	"testing"

	corex509 "github.com/notaryproject/notation-core-go/x509"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
)

// chainOf takes the certificates out of a vector, as far as they are some.
func chainOf(raw []byte) (chain []*x509.Certificate) {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	var b Block
	if json.Unmarshal(raw, &m) != nil || json.Unmarshal([]byte(m.Annotations[oci.AnnotationAttestation]), &b) != nil {
		return nil
	}
	for _, text := range b.CertificateChain {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil
		}
		chain = append(chain, c)
	}
	return chain
}

// verdicts are those of three judges of a chain: of Go's crypto/x509 for code signing,
// of notation-core-go, and of this package.
type verdicts struct{ golang, notary, ours bool }

var (
	allAccept = verdicts{true, true, true}
	allRefuse = verdicts{false, false, false}

	goOnly     = verdicts{golang: true}
	notaryOnly = verdicts{notary: true}
	notOurs    = verdicts{golang: true, notary: true}
)

// differences is every chain of the corpus about which the judges do not agree, and
// why that is as it should be.
var differences = map[string]struct {
	verdicts
	why string
}{
	"certificate-beside-the-path":  {goOnly, "Go finds a path among what was sent; what was sent must be the path"},
	"chain-with-root":              {goOnly, "the path must be what was sent: an attestation carries no root"},
	"issuer-twice":                 {goOnly, "the path must be what was sent"},
	"six-certificates":             {goOnly, "the path must be what was sent"},
	"envelope, out of order":       {goOnly, "the agent CA is no signer; Go takes it for one, since it names no usage"},
	"envelope, root twice":         {goOnly, "the path must be what was sent"},
	"self-signed":                  {goOnly, "a root is no signer; Go takes it for one, since it names no usage"},
	"leaf-is-ca":                   {goOnly, "a CA may not sign code"},
	"signed-by-agent-ca-itself":    {goOnly, "a CA may not sign code"},
	"weak-key":                     {goOnly, "Go takes keys of 1024 bits"},
	"weak-curve":                   {goOnly, "Go takes P-224"},
	"wrong-key-usage":              {goOnly, "Go does not ask a leaf for the usage of digital signatures"},
	"wrong-usage-too-much":         {goOnly, "Go is content where code signing is among the usages; TLS beside it is refused"},
	"issuer-for-tls-only":          {notaryOnly, "notation-core-go does not ask an issuer for its extended usages"},
	"leaf-with-critical-extension": {notaryOnly, "notation-core-go does not look at critical extensions that nobody knows"},
	"name-constraint":              {notaryOnly, "notation-core-go does not look at name constraints"},
	"weak-agent-ca-key":            {notOurs, "both take issuers with keys of 1024 bits, as long as the leaf's is longer"},
	"wrong-usage-none":             {notOurs, "both take a leaf without extended usages for one that may do everything; here code signing must be written out"},
	"envelope, P-521":              {notOurs, "P-521 is none of the curves of the profile"},
}

func TestGoAndNotationCoreGoDifferOverChainsOnlyAsExpected(t *testing.T) {
	root, err := ParseChain("root.pem", mustRead(t, frozenDir+"/root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		chain []*x509.Certificate
		root  *x509.Certificate
	}
	corpus := map[string]row{}
	for name, vec := range frozen(t) {
		if chain := chainOf(vec.raw(t)); chain != nil {
			corpus[name] = row{chain, root[0]}
		}
	}
	if len(corpus) < 50 {
		t.Fatalf("%d vectors have a chain, want more", len(corpus))
	}
	// What envelopes carry beside them: their own roots.
	p := testpki.New(t)
	for name, chain := range map[string][]*x509.Certificate{
		"envelope":                 p.Chain(),
		"envelope, out of order":   {p.Agent, p.Leaf},
		"envelope, root twice":     {p.Leaf, p.Agent, p.Root},
		"envelope, by the root":    {p.Leaf},
		"envelope, no certificate": {},
	} {
		corpus[name] = row{chain, p.Root}
	}
	for name, knobs := range map[string][]testpki.Knob{
		"envelope, P-521":        {testpki.LeafKey(testpki.EC(t, "leaf", elliptic.P521()))},
		"envelope, root expired": {testpki.RootExpired},
	} {
		o := testpki.New(t, knobs...)
		corpus[name] = row{o.Chain(), o.Root}
	}
	used := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(corpus)) {
		got := judges(corpus[name].chain, corpus[name].root)
		want, differs := differences[name]
		used[name] = differs
		if differs && (got != want.verdicts || want.why == "") || !differs && got != allAccept && got != allRefuse {
			t.Errorf("%s: Go %t, notation-core-go %t, ours %t", name, got.golang, got.notary, got.ours)
		}
		if got.ours && !(got.golang && got.notary) {
			t.Errorf("%s: we accept what one of them refuses", name)
		}
	}
	for name := range differences {
		if !used[name] {
			t.Errorf("%s: no such chain", name)
		}
	}
}

func judges(chain []*x509.Certificate, root *x509.Certificate) verdicts {
	now := testpki.Now
	roots := x509.NewCertPool()
	roots.AddCert(root)
	var v verdicts
	if len(chain) > 0 {
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
		v.golang = err == nil
		_, err = verifyChain(chain, roots, now, nil)
		v.ours = err == nil
	}
	v.notary = corex509.ValidateCodeSigningCertChain(append(slices.Clone(chain), root), &now) == nil
	return v
}
