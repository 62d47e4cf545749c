package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
)

// responderLife is how long a responder's certificate counts: it is made anew
// while the server runs, and nobody need ask whether it was revoked.
const responderLife = 7 * day

var (
	oidNoCheck       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidArchiveCutoff = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 6}
)

// Responder signs OCSP answers for the agent CA, which certified it for that and
// nothing else. Its key is nowhere but here.
type Responder struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// IssueResponder makes a responder. RFC 6960 §4.2.2.2 wants it certified by the
// very CA that it answers for; what it has of its own is the key.
func (ca *CA) IssueResponder(now time.Time) (*Responder, error) {
	c, own, err := ca.issueOwn(&x509.Certificate{
		Subject: ca.info.name("OCSP responder"), NotAfter: now.Add(responderLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{{Id: oidNoCheck, Value: asn1.NullBytes}},
	}, now)
	if err != nil {
		return nil, err
	}
	return &Responder{c, own}, nil
}

// Answer is what a responder says of one certificate.
type Answer struct {
	DER    []byte
	Serial string
	// Status is good, revoked or unknown; empty for a request that was refused.
	Status string
	Next   time.Time
}

// AnswerOCSP answers a request about one certificate of the agent CA, as the
// database has it now. There is an answer to send with every error, which says why it is
// a refusal, but for that of a responder which was revoked itself ([fault.Revoked]).
// A nonce is not sent back: answers say until when they count.
func (ca *CA) AnswerOCSP(r *Responder, query []byte, now time.Time) (Answer, error) {
	q, err := parseOCSP(query)
	if err != nil {
		return Answer{DER: ocsp.MalformedRequestErrorResponse}, fault.Wrap(err, fault.Usage, "OCSP request", "is not one about one certificate")
	}
	if !ca.issuedBy(q) {
		return Answer{DER: ocsp.UnauthorizedErrorResponse}, fault.New(fault.NotFound, "OCSP request", "is about a certificate of another issuer")
	}
	t := ocsp.Response{
		SerialNumber: q.SerialNumber, IssuerHash: q.HashAlgorithm, Certificate: r.Cert,
		ThisUpdate: now.UTC(), NextUpdate: now.Add(ca.agentAuthority().life).UTC(),
	}
	// After its end the responder's word counts no more.
	if t.NextUpdate.After(r.Cert.NotAfter) {
		t.NextUpdate = r.Cert.NotAfter
	}
	if err := ca.view(func(d database) error { return ca.state(d, r, &t) }); err != nil {
		return Answer{DER: ocsp.InternalErrorErrorResponse}, err
	}
	der, err := ocsp.CreateResponse(ca.agent, r.Cert, t, r.key)
	if err != nil {
		return Answer{DER: ocsp.InternalErrorErrorResponse}, fault.Wrap(err, fault.Internal, "OCSP answer", "cannot be made")
	}
	status := map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}[t.Status]
	return Answer{der, serialText(q.SerialNumber), status, t.NextUpdate}, nil
}

// state fills in what the database says.
func (ca *CA) state(d database, r *Responder, t *ocsp.Response) error {
	own, err := d.find(serialText(r.Cert.SerialNumber))
	if err != nil {
		return err
	}
	if own == nil || !own.Revoked.IsZero() {
		return fault.New(fault.Revoked, r.Cert.Subject.String(), "is revoked or unknown: it answers nothing more")
	}
	c, err := d.find(serialText(t.SerialNumber))
	switch {
	case err != nil:
		return err
	case c == nil || c.Issuer != ca.agent.Subject.String():
		t.Status = ocsp.Unknown
		return nil
	}
	// All that was ever issued is kept, so that what expired is known, too.
	if err := addTime(t, oidArchiveCutoff, ca.agent.NotBefore); err != nil || c.Revoked.IsZero() {
		return err
	}
	reason, err := ParseReason(c.Reason)
	if err != nil {
		return err
	}
	t.Status, t.RevokedAt, t.RevocationReason = ocsp.Revoked, c.Revoked, int(reason)
	if c.InvalidSince.IsZero() {
		return nil
	}
	return addTime(t, oidInvalidityDate, c.InvalidSince)
}

func addTime(t *ocsp.Response, id asn1.ObjectIdentifier, at time.Time) error {
	value, err := asn1.MarshalWithParams(at.UTC(), "generalized")
	if err != nil {
		return fault.Wrap(err, fault.Internal, "OCSP answer", "cannot encode a date")
	}
	t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: id, Value: value})
	return nil
}

// parseOCSP reads a request about one certificate. The library reads the first of
// several and says nothing of the others.
func parseOCSP(query []byte) (*ocsp.Request, error) {
	q, err := ocsp.ParseRequest(query)
	if err != nil {
		return nil, err
	}
	var outer struct {
		Request struct {
			Version   int           `asn1:"explicit,tag:0,default:0,optional"`
			Name      asn1.RawValue `asn1:"explicit,tag:1,optional"`
			Asked     []asn1.RawValue
			Extension asn1.RawValue `asn1:"explicit,tag:2,optional"`
		}
		Signature asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	switch rest, err := asn1.Unmarshal(query, &outer); {
	case err != nil:
		return nil, err
	case len(rest) > 0:
		return nil, errors.New("something follows it")
	case outer.Request.Version != 0:
		return nil, errors.New("it is of another version")
	case len(outer.Request.Asked) != 1:
		return nil, errors.New("it asks about several certificates")
	}
	if q.SerialNumber == nil || q.SerialNumber.Sign() <= 0 {
		return nil, errors.New("it names no serial number")
	}
	return q, nil
}

// issuedBy tells whether the request is about a certificate of the agent CA.
func (ca *CA) issuedBy(q *ocsp.Request) bool {
	der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: q.SerialNumber}, ca.agent, &ocsp.RequestOptions{Hash: q.HashAlgorithm})
	if err != nil {
		return false
	}
	want, err := ocsp.ParseRequest(der)
	return err == nil && bytes.Equal(q.IssuerNameHash, want.IssuerNameHash) && bytes.Equal(q.IssuerKeyHash, want.IssuerKeyHash)
}
