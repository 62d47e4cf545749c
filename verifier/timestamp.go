package verifier

import (
	"crypto/x509"
	"time"

	corex509 "github.com/notaryproject/notation-core-go/x509"

	"github.com/mentatlab/mentat/internal/fault"
)

// StampReader reads RFC 3161 time stamp tokens. It is given to a verifier and no
// part of it, because the library that reads them holds an HTTP client, too.
type StampReader interface {
	// Inspect checks that the token is well formed and about message. It trusts
	// nobody yet.
	Inspect(token, message []byte) error
	// Verify does the same and leads the token to one of the roots, at the time
	// that the token tells. Reasons: those of Inspect, [fault.SignatureInvalid],
	// [fault.ChainUntrusted], [fault.OutsideValidity].
	Verify(token, message []byte, roots *x509.CertPool) (*TimeStamp, error)
}

// TimeStamp is a time that an authority vouches for.
type TimeStamp struct {
	// Time is when the token was made, give or take Accuracy.
	Time     time.Time
	Accuracy time.Duration
	// Path leads from the authority's certificate to its root.
	Path []*x509.Certificate
}

func (s *TimeStamp) earliest() time.Time { return s.Time.Add(-s.Accuracy) }
func (s *TimeStamp) latest() time.Time   { return s.Time.Add(s.Accuracy) }

// within holds all that the time stamp may mean to the certificates' validity.
func (s *TimeStamp) within(chain []*x509.Certificate) error {
	for _, c := range chain {
		if s.earliest().Before(c.NotBefore) || s.latest().After(c.NotAfter) {
			return fault.New(fault.OutsideValidity, certName(c), "was not valid when the signature was stamped, at %s", s.Time.UTC().Format(timeLayout))
		}
	}
	return nil
}

// inspect checks the form of each token and that it is about this very signature:
// with and without a policy, as the attestation itself.
func (j *judge) inspect(att *Attestation) error {
	if err := j.inspectOne(&att.signing); err != nil {
		return err
	}
	for i := range att.counters {
		if err := j.inspectOne(&att.counters[i]); err != nil {
			return onCountersignature(err, i)
		}
	}
	return nil
}

func (j *judge) inspectOne(made *signing) error {
	switch {
	case made.token == nil:
		return nil
	case j.stamps == nil:
		return malformed("timestamp_token: this program does not evaluate time stamps")
	}
	return j.stamps.Inspect(made.token, made.signature)
}

// stamped is the time stamp of the first signature that counts in the scope; nil
// when there is none.
func (j *judge) stamped(att *Attestation) (*TimeStamp, error) {
	if att.token != nil && len(j.scope.stampStores) == 0 {
		return nil, j.check(StepTimestamp, nil, "not looked at: the scope names no time stamp authority")
	}
	return j.stampOf(&att.signing)
}

// again is how such a signature is made with a time stamp: what signs an attestation anew drops
// its countersignatures.
func (s *signing) again() string {
	switch s.on {
	case onCounter:
		return "its signer makes it anew with mentatctl countersign --replace --timestamp URL"
	case envelopeName:
		return "sign it with notation sign --timestamp-url URL"
	}
	return "sign it with mentatctl sign --timestamp URL"
}

// stampOf is the same of any signature.
func (j *judge) stampOf(made *signing) (*TimeStamp, error) {
	switch {
	case made.token == nil && j.scope.stampRequired:
		return nil, fault.New(fault.PolicyDenied, made.what(), "carries no time stamp, which the scope %q requires", j.scope.name).
			WithHint("%s", made.again())
	case made.token == nil, len(j.scope.stampStores) == 0:
		return nil, nil
	}
	pools, err := j.roots()
	if err != nil {
		return nil, err
	}
	s, err := j.stamps.Verify(made.token, made.signature, pools.stamps[j.scope.name])
	if err != nil {
		return nil, err
	}
	for _, c := range s.Path {
		if err := checkKey(c); err != nil {
			return nil, err
		}
	}
	if err := corex509.ValidateTimestampingCertChain(s.Path); err != nil {
		return nil, fault.Wrap(err, fault.ChainUntrusted, certName(s.Path[0]), "the chain breaks the profile of time stamp authorities")
	}
	if err := s.within(s.Path); err != nil {
		return nil, err
	}
	switch {
	case s.Time.After(j.now.Add(clockSkew)):
		return nil, fault.New(fault.OutsideValidity, "time stamp", "is from the future: %s", s.Time.UTC().Format(timeLayout))
	case made.timestamp.After(s.latest().Add(clockSkew)):
		return nil, fault.New(fault.OutsideValidity, "time stamp", "was made at %s, before the attestation says it was signed, at %s", stampText(s.Time), stampText(made.timestamp))
	}
	return s, nil
}
