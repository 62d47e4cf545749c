package testpki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Responder makes the certificate of an OCSP responder under the agent CA, which
// need not be checked for revocation. Knobs change it before it is signed.
func (p *PKI) Responder(knobs ...func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
	p.tb.Helper()
	key := RSA(p.tb, "responder", 2048)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(0x2001), Subject: Name("OCSP Responder"),
		NotBefore: Now.AddDate(0, -1, 0), NotAfter: Now.AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}},
	}
	for _, k := range knobs {
		k(c)
	}
	return Issue(p.tb, c, p.Agent, key.Public(), p.AgentKey), key
}

// OCSP is the agent CA's own answer about the leaf: good, from an hour ago until
// tomorrow. Knobs change it before it is signed.
func (p *PKI) OCSP(knobs ...func(*ocsp.Response)) []byte {
	p.tb.Helper()
	return p.OCSPBy(p.Agent, p.AgentKey, knobs...)
}

// OCSPBy is the same signed by a responder, whose certificate comes with it unless
// it is the agent CA's.
func (p *PKI) OCSPBy(responder *x509.Certificate, key crypto.Signer, knobs ...func(*ocsp.Response)) []byte {
	p.tb.Helper()
	r := ocsp.Response{
		Status: ocsp.Good, SerialNumber: p.Leaf.SerialNumber,
		ThisUpdate: Now.Add(-time.Hour), NextUpdate: Now.Add(23 * time.Hour),
		SignatureAlgorithm: x509.SHA256WithRSA,
	}
	if !responder.Equal(p.Agent) {
		r.Certificate = responder
	}
	for _, k := range knobs {
		k(&r)
	}
	der, err := ocsp.CreateResponse(p.Agent, responder, r, key)
	if err != nil {
		p.tb.Fatal(err)
	}
	return der
}
