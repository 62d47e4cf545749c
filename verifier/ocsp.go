package verifier

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// OCSPSource says who answers about an issuer's certificates: exactly one of
// URL and Hosts is set.
type OCSPSource struct {
	// Issuer is the issuer's distinguished name as Go prints it.
	Issuer string
	// URL is the responder's address, whatever a certificate says.
	URL string
	// Hosts are those of the responders that certificates may name, each with
	// its port where that is not the scheme's own.
	Hosts []string
}

// Address is where to ask about a certificate. Reason of its errors:
// [fault.PolicyDenied] for a certificate that names no responder of Hosts. What
// a certificate names is the word of whoever issued it, and nothing is fetched
// for that alone.
func (s OCSPSource) Address(c *x509.Certificate) (string, error) {
	if s.URL != "" {
		return s.URL, nil
	}
	for _, text := range c.OCSPServer {
		u, err := url.Parse(text)
		if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && slices.Contains(s.Hosts, u.Host) {
			return text, nil
		}
	}
	return "", fault.New(fault.PolicyDenied, certName(c), "names the OCSP responders %q, of which the policy allows none", c.OCSPServer)
}

// Question is a certificate about which the policy wants a responder's answer,
// and none is at hand that is new enough.
type Question struct {
	Certificate, Issuer *x509.Certificate
	Source              OCSPSource
}

// OCSPAnswer is what an authorised responder says of one certificate.
type OCSPAnswer struct {
	status     int
	revocation revocation
	// This and Next bound the time the answer is meant for.
	This, Next time.Time
	// cutoff is from when on the responder knows certificates that expired; zero
	// when it does not say.
	cutoff time.Time
	// responder is nil when the issuer itself answered.
	responder *x509.Certificate
}

var (
	oidNoCheck       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidArchiveCutoff = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 6}
)

// ReadOCSP reads an OCSP response about a certificate and holds it to RFC 6960:
// its signer is the issuer, or a responder that the issuer certified for that and
// that is valid now. Whether the answer is still current is decided when it is
// used. Reason: [fault.RevocationUnknown] for every response that cannot be used.
func ReadOCSP(der []byte, c, issuer *x509.Certificate, now time.Time) (*OCSPAnswer, error) {
	if len(der) > limits.OCSPBytes {
		return nil, badOCSP(c, "is over %d bytes", limits.OCSPBytes)
	}
	if err := checkKey(issuer); err != nil {
		return nil, err
	}
	r, err := ocsp.ParseResponse(der, issuer)
	if err != nil {
		var refused ocsp.ResponseError
		if errors.As(err, &refused) {
			return nil, badOCSP(c, "is none: the responder says %q", refused.Status)
		}
		return nil, badOCSP(c, "cannot be used: %v", err)
	}
	switch {
	case !slices.Contains(revocationAlgorithms, r.SignatureAlgorithm):
		return nil, badOCSP(c, "is signed with %s, which is not allowed", r.SignatureAlgorithm)
	case r.SerialNumber == nil || r.SerialNumber.Cmp(c.SerialNumber) != 0:
		return nil, badOCSP(c, "is about another certificate, %x", r.SerialNumber)
	case r.ThisUpdate.After(now.Add(clockSkew)):
		return nil, badOCSP(c, "is from the future: %s", r.ThisUpdate.UTC().Format(timeLayout))
	case r.NextUpdate.IsZero() || !r.NextUpdate.After(r.ThisUpdate):
		return nil, badOCSP(c, "does not say until when it counts")
	}
	if err := aboutIssuer(r, c, issuer); err != nil {
		return nil, err
	}
	a := &OCSPAnswer{
		status: r.Status, This: r.ThisUpdate.UTC(), Next: r.NextUpdate.UTC(),
		revocation: revocation{at: r.RevokedAt.UTC(), reason: r.RevocationReason},
	}
	if r.Certificate != nil && !r.Certificate.Equal(issuer) {
		if err := checkResponder(r.Certificate, issuer, now); err != nil {
			return nil, err
		}
		a.responder = r.Certificate
	}
	for _, ext := range r.Extensions {
		var at *time.Time
		switch {
		case ext.Id.Equal(oidInvalidity):
			at = &a.revocation.invalid
		case ext.Id.Equal(oidArchiveCutoff):
			at = &a.cutoff
		default:
			continue
		}
		if *at, err = generalizedTime(ext.Value); err != nil {
			return nil, badOCSP(c, "has a malformed date: %v", err)
		}
	}
	return a, nil
}

func badOCSP(c *x509.Certificate, format string, args ...any) *fault.Error {
	return fault.New(fault.RevocationUnknown, "OCSP answer about "+c.Subject.String(), format, args...)
}

// aboutIssuer holds the response's hashes to the issuer. The library compares
// the serial number only, which is another's, too.
func aboutIssuer(r *ocsp.Response, c, issuer *x509.Certificate) error {
	var data struct {
		Version     int `asn1:"optional,default:0,explicit,tag:0"`
		ResponderID asn1.RawValue
		ProducedAt  time.Time `asn1:"generalized"`
		Responses   []struct {
			ID struct {
				Algorithm struct{ ID asn1.ObjectIdentifier }
				Name, Key []byte
				Serial    *big.Int
			}
		}
	}
	if _, err := asn1.Unmarshal(r.TBSResponseData, &data); err != nil || len(data.Responses) != 1 {
		return badOCSP(c, "does not say clearly whom it is about")
	}
	der, err := ocsp.CreateRequest(c, issuer, &ocsp.RequestOptions{Hash: r.IssuerHash})
	if err != nil {
		return badOCSP(c, "hashes its issuer in an unknown way")
	}
	want, err := ocsp.ParseRequest(der)
	if err != nil || !bytes.Equal(want.IssuerNameHash, data.Responses[0].ID.Name) || !bytes.Equal(want.IssuerKeyHash, data.Responses[0].ID.Key) {
		return badOCSP(c, "is about a certificate of another issuer")
	}
	return nil
}

// checkResponder demands what lets a responder speak for the issuer: that it says
// so by name. The library checked its signature.
func checkResponder(r, issuer *x509.Certificate, now time.Time) error {
	if err := checkKey(r); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return fault.New(fault.RevocationUnknown, "OCSP responder "+r.Subject.String(), format, args...)
	}
	switch {
	case !bytes.Equal(r.RawIssuer, issuer.RawSubject) || !slices.Contains(revocationAlgorithms, r.SignatureAlgorithm):
		return bad("is not certified by %q", issuer.Subject)
	case r.IsCA || !slices.Contains(r.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) || r.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return bad("is not certified to answer for %q", issuer.Subject)
	case now.Before(r.NotBefore) || now.After(r.NotAfter):
		return bad("its certificate is not valid at %s", stampText(now))
	}
	return nil
}

// ocspPath is where the answer about a certificate lives.
func ocspPath(state string, c, issuer *x509.Certificate) string {
	return filepath.Join(state, fmt.Sprintf("%s-%x.ocsp", issuerKey(issuer)[:32], c.SerialNumber))
}

// LoadOCSP reads the answer about a certificate from the state directory, as
// it came from the responder; nil when there is none.
func LoadOCSP(state string, c, issuer *x509.Certificate) ([]byte, error) {
	path := ocspPath(state, c, issuer)
	der, err := limits.ReadFile(path, limits.OCSPBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot read the OCSP answer")
	}
	return der, nil
}

// StoreOCSP checks an answer and writes it into the state directory, unless a
// newer one is there already. Callers that may run at the same time hold the
// directory's lock.
func StoreOCSP(state string, c, issuer *x509.Certificate, der []byte, now time.Time) error {
	a, err := ReadOCSP(der, c, issuer, now)
	if err != nil {
		return err
	}
	if !a.Next.After(now) {
		return badOCSP(c, "is out of date since %s", a.Next.Format(timeLayout))
	}
	// A damaged answer is replaced: what it knew is lost either way.
	if old, err := LoadOCSP(state, c, issuer); err == nil && old != nil {
		if known, err := ReadOCSP(old, c, issuer, now); err == nil && !a.follows(known) {
			return badOCSP(c, "is of %s, no newer than one of %s, which is known already", a.This.Format(timeLayout), known.This.Format(timeLayout))
		}
	}
	path := ocspPath(state, c, issuer)
	if err := atomicfile.Write(path, der, 0o644); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write the OCSP answer")
	}
	return rememberSeen(state, Question{Certificate: c, Issuer: issuer})
}

// follows tells whether an answer may take the place of a known one. Times have
// the grain of a second: of two in the same one a revocation counts.
func (a *OCSPAnswer) follows(known *OCSPAnswer) bool {
	if known.status == ocsp.Revoked && a.status != ocsp.Revoked {
		return a.This.After(known.This)
	}
	return !a.This.Before(known.This)
}

// ask notes a certificate for which an answer has to be fetched.
func (j *judge) ask(c, issuer *x509.Certificate, src OCSPSource) {
	j.verdict.Questions = append(j.verdict.Questions, Question{Certificate: c, Issuer: issuer, Source: src})
}

// answered checks a certificate by the responder's answer at hand. It reports
// whether that is within its own time, without the grace.
func (j *judge) answered(c, issuer *x509.Certificate, src OCSPSource, stamp *TimeStamp) (fresh bool, err error) {
	onDisk, ok := j.revocation.(*diskRevocation)
	if !ok {
		return false, badOCSP(c, "is not to be had here")
	}
	path := ocspPath(onDisk.state, c, issuer)
	j.rest(map[string]string{path: Stamp(path)})
	der, err := LoadOCSP(onDisk.state, c, issuer)
	if err != nil || der == nil {
		j.ask(c, issuer, src)
		if err == nil {
			err = badOCSP(c, "is not at hand")
		}
		return false, err
	}
	a, err := ReadOCSP(der, c, issuer, j.data)
	if err == nil {
		j.trace.answer(a, c, j.policy.grace)
		err = j.responder(a, issuer)
	}
	if err != nil {
		j.ask(c, issuer, src)
		return false, err
	}
	// Half of its life is when a newer one should be there.
	if half := a.This.Add(a.Next.Sub(a.This) / 2); j.data.Before(half) {
		j.until(half)
	} else {
		j.ask(c, issuer, src)
	}
	return j.says(a, c, stamp)
}

// says is what the answer means now.
func (j *judge) says(a *OCSPAnswer, c *x509.Certificate, stamp *TimeStamp) (fresh bool, err error) {
	switch {
	case a.status == ocsp.Revoked && !a.revocation.after(stamp):
		return false, fault.New(fault.Revoked, certName(c), "was revoked at %s (%s), its OCSP responder says", a.revocation.at.Format(timeLayout), reasonName(a.revocation.reason))
	case a.status == ocsp.Unknown:
		return false, badOCSP(c, "is that the responder does not know it")
	case j.now.After(c.NotAfter) && (a.cutoff.IsZero() || a.cutoff.After(c.NotAfter)):
		return false, badOCSP(c, "does not say that the responder still knows certificates that expired")
	case j.data.After(a.Next.Add(j.policy.grace)):
		return false, badOCSP(c, "is out of date since %s", a.Next.Format(timeLayout))
	case j.data.After(a.Next):
		j.warn("the OCSP answer about %q is out of date since %s; the policy's grace holds until %s", c.Subject, a.Next.Format(timeLayout), a.Next.Add(j.policy.grace).Format(timeLayout))
		j.until(a.Next.Add(j.policy.grace))
		return false, nil
	}
	j.until(a.Next)
	return true, nil
}

// responder holds the certificate of a responder to its issuer's list. Only one
// that says that it need not be checked may do without.
func (j *judge) responder(a *OCSPAnswer, issuer *x509.Certificate) error {
	if a.responder == nil {
		return nil
	}
	ix, err := j.index(issuer)
	if ix != nil {
		_, listed, lookupErr := ix.lookup(a.responder.SerialNumber)
		if lookupErr != nil {
			return lookupErr
		}
		if listed {
			return fault.New(fault.RevocationUnknown, "OCSP responder "+a.responder.Subject.String(), "was revoked itself")
		}
		if ix.covers(a.responder) && err == nil && !j.data.After(ix.NextUpdate().Add(j.policy.grace)) {
			return nil
		}
	}
	for _, ext := range a.responder.Extensions {
		if ext.Id.Equal(oidNoCheck) {
			return nil
		}
	}
	return fault.New(fault.RevocationUnknown, "OCSP responder "+a.responder.Subject.String(), "could be revoked, and no current list of %q says that it is not", issuer.Subject)
}

func (p *Policy) ocspFor(issuer *x509.Certificate) (OCSPSource, bool) {
	name := issuer.Subject.String()
	for _, src := range p.ocsp {
		if src.Issuer == name {
			return src, true
		}
	}
	return OCSPSource{}, false
}
