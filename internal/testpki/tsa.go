package testpki

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"
)

// TSA is a time stamp authority with a root of its own.
type TSA struct {
	tb testing.TB

	Root, Cert *x509.Certificate
	RootKey    crypto.Signer
	Key        crypto.Signer
}

// NewTSA makes a time stamp authority that is valid around now. Authorities for
// different purposes have the same names and different keys. Knobs change its
// certificate before it is signed.
func NewTSA(tb testing.TB, purpose string, now time.Time, knobs ...func(*x509.Certificate)) *TSA {
	tb.Helper()
	t := &TSA{tb: tb, RootKey: RSA(tb, purpose+" root", 2048), Key: RSA(tb, purpose, 2048)}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: Name("Time Root CA"),
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(0x77), Subject: Name("Time Stamps"),
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		CRLDistributionPoints: []string{"http://pki.example/crl/time.crl"},
		ExtraExtensions:       []pkix.Extension{criticalUsage(8)},
	}
	for _, k := range knobs {
		k(cert)
	}
	t.Root = Issue(tb, root, root, t.RootKey.Public(), t.RootKey)
	t.Cert = Issue(tb, cert, t.Root, t.Key.Public(), t.RootKey)
	return t
}

// criticalUsage is an extended key usage of id-kp-N.
func criticalUsage(n int) pkix.Extension {
	return usageExtension(n, true)
}

func usageExtension(n int, critical bool) pkix.Extension {
	return pkix.Extension{
		Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: critical,
		Value: seq(oid(1, 3, 6, 1, 5, 5, 7, 3, n)),
	}
}

// ForCode makes the authority's certificate one for code.
func ForCode(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{criticalUsage(3)} }

// UsageNotCritical makes its usage one that may be ignored.
func UsageNotCritical(c *x509.Certificate) {
	c.ExtraExtensions = []pkix.Extension{usageExtension(8, false)}
}

// CRL is a current list of the authority's root.
func (t *TSA) CRL(knobs ...CRLKnob) []byte {
	t.tb.Helper()
	return CRL(t.tb, t.Root, t.RootKey, knobs...)
}

// Stamp is what a token is made of. Knobs change it before it is signed.
type Stamp struct {
	Time     time.Time
	Message  []byte
	Seconds  int // of accuracy
	Critical bool
	Cert     *x509.Certificate
	Key      crypto.Signer
	Certs    []*x509.Certificate
}

// Token stamps a message at a time.
func (t *TSA) Token(message []byte, at time.Time, knobs ...func(*Stamp)) []byte {
	t.tb.Helper()
	s := &Stamp{Time: at, Message: message, Cert: t.Cert, Key: t.Key, Certs: []*x509.Certificate{t.Cert}}
	for _, k := range knobs {
		k(s)
	}
	info := s.info()
	digest, certDigest := sha256.Sum256(info), sha256.Sum256(s.Cert.Raw)
	attributes := [][]byte{
		seq(oid(1, 2, 840, 113549, 1, 9, 3), der(0x31, oid(1, 2, 840, 113549, 1, 9, 16, 1, 4))),
		seq(oid(1, 2, 840, 113549, 1, 9, 4), der(0x31, der(0x04, digest[:]))),
		seq(oid(1, 2, 840, 113549, 1, 9, 16, 2, 47), der(0x31, seq(seq(seq(der(0x04, certDigest[:])))))),
	}
	signed := sha256.Sum256(der(0x31, attributes...))
	signature, err := s.Key.Sign(rand.Reader, signed[:], crypto.SHA256)
	if err != nil {
		t.tb.Fatal(err)
	}
	sha256ID := seq(oid(2, 16, 840, 1, 101, 3, 4, 2, 1), []byte{5, 0})
	signer := seq(
		integer(1), seq(s.Cert.RawIssuer, bigInteger(s.Cert.SerialNumber)), sha256ID, der(0xa0, attributes...),
		seq(oid(1, 2, 840, 113549, 1, 1, 1), []byte{5, 0}), der(0x04, signature),
	)
	var certs []byte
	for _, c := range s.Certs {
		certs = append(certs, c.Raw...)
	}
	return seq(oid(1, 2, 840, 113549, 1, 7, 2), der(0xa0, seq(
		integer(3), der(0x31, sha256ID),
		seq(oid(1, 2, 840, 113549, 1, 9, 16, 1, 4), der(0xa0, der(0x04, info))),
		der(0xa0, certs), der(0x31, signer),
	)))
}

func (s *Stamp) info() []byte {
	imprint := sha256.Sum256(s.Message)
	parts := [][]byte{
		integer(1), oid(1, 3, 6, 1, 4, 1, 99999, 1),
		seq(seq(oid(2, 16, 840, 1, 101, 3, 4, 2, 1), []byte{5, 0}), der(0x04, imprint[:])),
		integer(4711), der(0x18, []byte(s.Time.UTC().Format("20060102150405Z"))),
	}
	if s.Seconds != 0 {
		parts = append(parts, seq(integer(s.Seconds)))
	}
	if s.Critical {
		parts = append(parts, der(0xa1, seq(oid(1, 2, 3, 4), []byte{1, 1, 0xff}, der(0x04, []byte{5, 0}))))
	}
	return seq(parts...)
}

func der(tag byte, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	out, err := asn1.Marshal(asn1.RawValue{Class: int(tag >> 6), Tag: int(tag & 0x1f), IsCompound: tag&0x20 != 0, Bytes: body})
	if err != nil {
		panic(err) // a fixture that cannot be written
	}
	return out
}

func seq(parts ...[]byte) []byte { return der(0x30, parts...) }

func oid(n ...int) []byte { return plain(asn1.ObjectIdentifier(n)) }

func integer(n int) []byte { return plain(n) }

func bigInteger(n *big.Int) []byte { return plain(n) }

func plain(v any) []byte {
	out, err := asn1.Marshal(v)
	if err != nil {
		panic(err) // a fixture that cannot be written
	}
	return out
}

// InvalidSince says of every entry since when the key counts as lost.
func InvalidSince(at time.Time) CRLKnob {
	return func(l *x509.RevocationList) {
		for i := range l.RevokedCertificateEntries {
			e := &l.RevokedCertificateEntries[i]
			e.ExtraExtensions = append(e.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 24}, Value: der(0x18, []byte(at.UTC().Format("20060102150405Z")))})
		}
	}
}

// KeepsExpired lets the list say that it keeps certificates that expired later
// than since.
func KeepsExpired(since time.Time) CRLKnob {
	return WithExtension([]int{2, 5, 29, 60}, false, der(0x18, []byte(since.UTC().Format("20060102150405Z"))))
}

// Extension is one that nobody knows, to be asked for.
func Extension() []pkix.Extension {
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}}
}
