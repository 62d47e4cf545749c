package testpki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"sync"
	"testing"
	"time"
)

// Email is the identity of every leaf that no knob changes.
const Email = "dev@example.com"

// Now is the time at which everything is valid: the one in the specification's
// example.
var Now = time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC)

// Clock always says [Now].
func Clock() time.Time { return Now }

// PKI is a root, an agent CA and a leaf, with their keys.
type PKI struct {
	tb testing.TB

	Root, Agent, Leaf          *x509.Certificate
	RootKey, AgentKey, LeafKey crypto.Signer
}

// Recipe is what a PKI is made from. Knobs change it before anything is signed.
type Recipe struct {
	Root, Agent, Leaf          *x509.Certificate
	RootKey, AgentKey, LeafKey crypto.Signer
}

// Knob makes one thing different.
type Knob func(*Recipe)

// New makes a PKI.
func New(tb testing.TB, knobs ...Knob) *PKI {
	tb.Helper()
	r := &Recipe{
		Root: &x509.Certificate{
			SerialNumber:          big.NewInt(1),
			Subject:               Name("MentatLab Root CA"),
			NotBefore:             Now.AddDate(-1, 0, 0),
			NotAfter:              Now.AddDate(9, 0, 0),
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
			MaxPathLen:            1,
		},
		Agent: &x509.Certificate{
			SerialNumber:          big.NewInt(2),
			Subject:               Name("MentatLab Agent CA"),
			NotBefore:             Now.AddDate(0, -6, 0),
			NotAfter:              Now.AddDate(4, 6, 0),
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
			MaxPathLenZero:        true,
			CRLDistributionPoints: []string{"http://pki.example/crl/root.crl"},
		},
		Leaf: &x509.Certificate{
			SerialNumber:          big.NewInt(0x1001),
			Subject:               Name(Email),
			NotBefore:             Now.AddDate(0, -1, 0),
			NotAfter:              Now.AddDate(0, 11, 0),
			KeyUsage:              x509.KeyUsageDigitalSignature,
			ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
			BasicConstraintsValid: true,
			EmailAddresses:        []string{Email},
			CRLDistributionPoints: []string{"http://pki.example/crl/agent.crl"},
		},
		RootKey:  RSA(tb, "root", 2048),
		AgentKey: RSA(tb, "agent", 2048),
		LeafKey:  RSA(tb, "leaf", 2048),
	}
	for _, k := range knobs {
		k(r)
	}
	p := &PKI{tb: tb, RootKey: r.RootKey, AgentKey: r.AgentKey, LeafKey: r.LeafKey}
	p.Root = Issue(tb, r.Root, r.Root, r.RootKey.Public(), r.RootKey)
	p.Agent = Issue(tb, r.Agent, p.Root, r.AgentKey.Public(), r.RootKey)
	p.Leaf = Issue(tb, r.Leaf, p.Agent, r.LeafKey.Public(), r.AgentKey)
	return p
}

// Chain is what a block carries: leaf and agent CA.
func (p *PKI) Chain() []*x509.Certificate { return []*x509.Certificate{p.Leaf, p.Agent} }

// AgentCRL is a current list of the agent CA.
func (p *PKI) AgentCRL(knobs ...CRLKnob) []byte {
	p.tb.Helper()
	return CRL(p.tb, p.Agent, p.AgentKey, knobs...)
}

// RootCRL is a current list of the root.
func (p *PKI) RootCRL(knobs ...CRLKnob) []byte {
	p.tb.Helper()
	return CRL(p.tb, p.Root, p.RootKey, knobs...)
}

// Name is a subject with the common name cn.
func Name(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"MentatLab"}, Country: []string{"US"}}
}

// Issue signs a certificate.
func Issue(tb testing.TB, template, issuer *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, pub, key)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// PEM encodes certificates one after the other.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// KeyPEM encodes a key as PKCS #8.
func KeyPEM(tb testing.TB, key crypto.Signer) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// CRLKnob makes one thing of a list different.
type CRLKnob func(*x509.RevocationList)

// CRL signs a list.
func CRL(tb testing.TB, issuer *x509.Certificate, key crypto.Signer, knobs ...CRLKnob) []byte {
	tb.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: Now.Add(-time.Hour), NextUpdate: Now.Add(23 * time.Hour)}
	for _, k := range knobs {
		k(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// Revoking lists certificates as compromised an hour ago.
func Revoking(certs ...*x509.Certificate) CRLKnob {
	return func(l *x509.RevocationList) {
		for _, c := range certs {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: Now.Add(-time.Hour), ReasonCode: 1})
		}
	}
}

// Numbered gives the list another number.
func Numbered(n int64) CRLKnob {
	return func(l *x509.RevocationList) { l.Number = big.NewInt(n) }
}

// Until gives the list another end, and a beginning a day before it.
func Until(t time.Time) CRLKnob {
	return func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = t.Add(-24*time.Hour), t }
}

// WithExtension adds an extension to the list.
func WithExtension(id []int, critical bool, value []byte) CRLKnob {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

// The knobs. Each makes a PKI that a verifier must refuse, unless it says
// otherwise.

// LeafExpired ends the leaf a day ago.
func LeafExpired(r *Recipe) { r.Leaf.NotAfter = Now.AddDate(0, 0, -1) }

// LeafNotYetValid begins the leaf tomorrow.
func LeafNotYetValid(r *Recipe) { r.Leaf.NotBefore = Now.AddDate(0, 0, 1) }

// AgentExpired ends the agent CA a day ago.
func AgentExpired(r *Recipe) { r.Agent.NotAfter = Now.AddDate(0, 0, -1) }

// RootExpired ends the root a day ago.
func RootExpired(r *Recipe) { r.Root.NotAfter = Now.AddDate(0, 0, -1) }

// LeafWithoutUsage leaves out the extended key usage.
func LeafWithoutUsage(r *Recipe) { r.Leaf.ExtKeyUsage = nil }

// LeafForTLS is for servers instead of code.
func LeafForTLS(r *Recipe) { r.Leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

// LeafForEverything is for code and for servers.
func LeafForEverything(r *Recipe) {
	r.Leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageServerAuth}
}

// LeafWithoutKeyUsage leaves out the key usage.
func LeafWithoutKeyUsage(r *Recipe) { r.Leaf.KeyUsage = 0 }

// LeafIsCA makes the leaf an authority.
func LeafIsCA(r *Recipe) {
	r.Leaf.IsCA, r.Leaf.KeyUsage = true, r.Leaf.KeyUsage|x509.KeyUsageCertSign
}

// LeafWithoutCRL names no revocation list. It is fine if the policy does.
func LeafWithoutCRL(r *Recipe) { r.Leaf.CRLDistributionPoints = nil }

// LeafEmails gives the leaf other addresses.
func LeafEmails(emails ...string) Knob {
	return func(r *Recipe) { r.Leaf.EmailAddresses = emails }
}

// LeafSerial gives the leaf another serial number. It is fine.
func LeafSerial(n int64) Knob {
	return func(r *Recipe) { r.Leaf.SerialNumber = big.NewInt(n) }
}

// LeafCritical adds a critical extension that nobody knows.
func LeafCritical(r *Recipe) {
	r.Leaf.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
}

// AgentNotCA takes the right to issue from the agent CA.
func AgentNotCA(r *Recipe) { r.Agent.IsCA, r.Agent.MaxPathLenZero = false, false }

// AgentForTLS narrows the agent CA to server certificates.
func AgentForTLS(r *Recipe) { r.Agent.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

// AgentForOthers lets the agent CA speak for another mail domain only.
func AgentForOthers(r *Recipe) {
	r.Agent.PermittedEmailAddresses, r.Agent.PermittedDNSDomainsCritical = []string{"elsewhere.example"}, true
}

// LeafKey gives the leaf another key. It is fine if the key is.
func LeafKey(key crypto.Signer) Knob {
	return func(r *Recipe) { r.LeafKey = key }
}

// AgentKey gives the agent CA another key. It is fine if the key is.
func AgentKey(key crypto.Signer) Knob {
	return func(r *Recipe) { r.AgentKey = key }
}

// OtherRoot makes a root of the same name with another key. It is fine where it
// is trusted.
func OtherRoot(tb testing.TB) Knob {
	return func(r *Recipe) { r.RootKey = RSA(tb, "other root", 2048) }
}

var (
	keysMu sync.Mutex
	keys   = map[string]crypto.Signer{} // guarded by keysMu
)

// RSA is a key for a purpose, made once.
func RSA(tb testing.TB, purpose string, bits int) crypto.Signer {
	return once(tb, "rsa "+purpose+" "+big.NewInt(int64(bits)).String(), func() (crypto.Signer, error) {
		return rsa.GenerateKey(rand.Reader, bits)
	})
}

// EC is a key for a purpose, made once.
func EC(tb testing.TB, purpose string, curve elliptic.Curve) crypto.Signer {
	return once(tb, "ec "+purpose+" "+curve.Params().Name, func() (crypto.Signer, error) {
		return ecdsa.GenerateKey(curve, rand.Reader)
	})
}

func once(tb testing.TB, name string, generate func() (crypto.Signer, error)) crypto.Signer {
	tb.Helper()
	keysMu.Lock()
	defer keysMu.Unlock()
	if keys[name] == nil {
		key, err := generate()
		if err != nil {
			tb.Fatal(err)
		}
		keys[name] = key
	}
	return keys[name]
}
