package verifier

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// CountersignatureType is the type in the pre-authentication encoding of a
// countersignature. What was signed as an attestation is none, and the other way
// round.
const CountersignatureType = "application/vnd.mentatlab.countersignature.v1+json"

// Countersignature is the signature of a further person in a block: over everything
// that the first signer signed, and the own fields without signature and token. The
// rules for its fields are those of the block's.
type Countersignature struct {
	// Timestamp is the countersigner's own word for when; it never extends trust.
	Timestamp        string   `json:"timestamp"`
	Signer           Names    `json:"signer"`
	Algorithm        string   `json:"algorithm"`
	CertificateChain []string `json:"certificate_chain"`
	Signature        string   `json:"signature"`
	// TimestampToken is an RFC 3161 token over this signature.
	TimestampToken string `json:"timestamp_token,omitempty"`
}

// countersigned is what a countersignature covers.
type countersigned struct {
	Timestamp        string   `json:"timestamp"`
	Signer           Names    `json:"signer"`
	Algorithm        string   `json:"algorithm"`
	CertificateChain []string `json:"certificate_chain"`
	// Signed is the [Attestation.SignedDigest].
	Signed digest.Digest `json:"signed"`
}

// signed is the pre-authentication encoding that the countersignature covers.
func (c *Countersignature) signed(what digest.Digest) ([]byte, error) {
	body, err := canonical.Marshal(countersigned{c.Timestamp, c.Signer, c.Algorithm, c.CertificateChain, what})
	if err != nil {
		return nil, fault.Wrap(err, fault.AttestationFormat, "attestation", "cannot be brought into canonical form")
	}
	return pae(CountersignatureType, body), nil
}

// signing is one signature of an attestation, the first or a countersignature, read
// strictly and not yet checked.
type signing struct {
	chain     []*x509.Certificate // leaf first
	algorithm string
	payload   []byte // what is signed
	signature []byte
	token     []byte // nil when there is none
	timestamp time.Time
	on        string // what it is, in words, where that is not the attestation itself
}

// onCounter is what a countersignature is on.
const onCounter = "countersignature"

// what is the signature in words.
func (s *signing) what() string { return cmp.Or(s.on, "attestation") }

// read fills a signing, but for what is signed, and holds it to what its own leaf
// certificate says.
func (c *Countersignature) read() (signing, error) {
	s := signing{algorithm: c.Algorithm}
	var err error
	if s.timestamp, err = parseTime(c.Timestamp); err != nil {
		return s, malformed("timestamp: %v", err)
	}
	if c.TimestampToken != "" {
		if s.token, err = decodeBase64(c.TimestampToken); err != nil {
			return s, malformed("timestamp_token: %v", err)
		}
		if len(s.token) > limits.TimeStampBytes {
			return s, malformed("timestamp_token is over %d bytes", limits.TimeStampBytes)
		}
	}
	if s.signature, err = decodeBase64(c.Signature); err != nil {
		return s, malformed("signature: %v", err)
	}
	if s.chain, err = parseBlockChain(c.CertificateChain); err != nil {
		return s, err
	}
	leaf := s.chain[0]
	if c.Signer.Subject != leaf.Subject.String() || c.Signer.Issuer != leaf.Issuer.String() {
		return s, malformed("signer is not the subject and issuer of its first certificate")
	}
	return s, nil
}

// check checks that the first certificate's key signed the payload.
func (s *signing) check() error {
	leaf := s.chain[0]
	if err := checkKey(leaf); err != nil {
		return err
	}
	alg, err := algorithmFor(leaf.PublicKey, s.algorithm)
	if err != nil {
		return err
	}
	if err := leaf.CheckSignature(alg.x509, s.payload, s.signature); err != nil {
		return fault.Wrap(err, fault.SignatureInvalid, "attestation", "the signature does not fit this manifest").
			WithHint("the artifact was changed after it was signed: get it again from its publisher")
	}
	return nil
}

// readCountersignatures reads those of the block. One key signs once: a second
// signature of it would be nobody else's, so a block with two was not made by us.
func (a *Attestation) readCountersignatures() error {
	if n := len(a.Countersignatures); n > limits.Countersignatures {
		return malformed("has %d countersignatures, allowed are %d", n, limits.Countersignatures)
	}
	for i := range a.Countersignatures {
		s, err := a.Countersignatures[i].read()
		if err == nil && a.signedBy(s.chain[0].PublicKey) {
			err = malformed("is by a key that signed already")
		}
		if err == nil {
			s.on = onCounter
			s.payload, err = a.Countersignatures[i].signed(a.SignedDigest)
		}
		if err != nil {
			return onCountersignature(err, i)
		}
		a.counters = append(a.counters, s)
	}
	return nil
}

// signedBy tells whether a key made one of the signatures that were read.
func (a *Attestation) signedBy(key crypto.PublicKey) bool {
	return samePublicKey(a.Chain[0].PublicKey, key) || slices.ContainsFunc(a.counters, func(s signing) bool {
		return samePublicKey(s.chain[0].PublicKey, key)
	})
}

// Countersigners are the first certificates of the countersignatures, in their
// order.
func (a *Attestation) Countersigners() []*x509.Certificate {
	var all []*x509.Certificate
	for _, s := range a.counters {
		all = append(all, s.chain[0])
	}
	return all
}

// CountersignerChain is the whole chain of one of [Attestation.Countersigners], leaf
// first.
func (a *Attestation) CountersignerChain(i int) []*x509.Certificate { return a.counters[i].chain }

// countersignatureName is what errors and explanations call a countersignature;
// people count from one.
func countersignatureName(i int) string { return fmt.Sprintf("countersignature %d", i+1) }

// onCountersignature makes a countersignature what an error is about.
func onCountersignature(err error, i int) error {
	var fe *fault.Error
	if !errors.As(err, &fe) {
		return err
	}
	named := *fe
	named.On = "attestation: " + countersignatureName(i)
	if fe.On != "" && fe.On != "attestation" {
		named.On += ": " + fe.On
	}
	return &named
}

// CountersignRequest is everything a countersignature depends on.
type CountersignRequest struct {
	// Raw is an OCI manifest with an attestation.
	Raw []byte
	// Key signs. It may live elsewhere than in memory.
	Key crypto.Signer
	// Chain is leaf first. A root at its end is left out of the block.
	Chain []*x509.Certificate
	// Algorithm is as in [SignRequest].
	Algorithm string
	// Time is the time of signing; the leaf must be valid then.
	Time time.Time
	// Replace puts it in the place of those by the same key or e-mail address.
	Replace bool
	// Stamp, if set, gets a time stamp token over the signature, and what it means
	// once it was verified.
	Stamp func(signature []byte) (token []byte, stamp *TimeStamp, err error)
}

// Countersign returns the manifest with one more countersignature, in canonical
// form, and the block alone. What the first signer signed stays as it is. It checks
// every signature that is there before it adds one, and its own result before it
// returns.
//
// Reasons: those of [Sign], [ReadAttestation] and [Attestation.CheckSignature], and
// [fault.Exists] for a key or an e-mail address that signed already.
func Countersign(req CountersignRequest) (signed, block []byte, err error) {
	chain, err := signingChain(req.Key, req.Chain, req.Time)
	if err != nil {
		return nil, nil, err
	}
	a, err := readIntact(req.Raw)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !a.notAfter.IsZero() && req.Time.After(a.notAfter):
		return nil, nil, fault.New(fault.OutsideValidity, "attestation", "ended at %s", a.NotAfter)
	case a.timestamp.After(req.Time.Add(clockSkew)):
		return nil, nil, fault.New(fault.OutsideValidity, "attestation", "says it was made in the future, at %s", a.Timestamp)
	}
	b := a.Block
	if b.Countersignatures, err = a.others(chain[0], req.Replace); err != nil {
		return nil, nil, err
	}
	c, err := countersign(a.SignedDigest, req, chain)
	if err != nil {
		return nil, nil, err
	}
	b.Countersignatures = append(b.Countersignatures, c)
	if signed, block, err = place(req.Raw, b); err != nil {
		return nil, nil, err
	}
	made, err := readIntact(signed)
	if err != nil {
		return nil, nil, err
	}
	if made.SignedDigest != a.SignedDigest {
		return nil, nil, fault.New(fault.Internal, "attestation", "is about something else with the countersignature than without")
	}
	return signed, block, nil
}

// readIntact reads an attestation whose signatures all fit.
func readIntact(raw []byte) (*Attestation, error) {
	a, err := ReadAttestation(raw)
	if err != nil {
		return nil, err
	}
	return a, a.CheckSignature()
}

// others are the countersignatures beside which one by leaf can stand.
func (a *Attestation) others(leaf *x509.Certificate, replace bool) ([]Countersignature, error) {
	exists := func(who string) *fault.Error {
		return fault.New(fault.Exists, certName(leaf), "signed already: %s, and one person counts once", who)
	}
	if samePerson(a.Chain[0], leaf) {
		return nil, exists("it made the first signature")
	}
	var kept []Countersignature
	for i, s := range a.counters {
		switch {
		case !samePerson(s.chain[0], leaf):
			kept = append(kept, a.Countersignatures[i])
		case !replace:
			return nil, exists(countersignatureName(i)).WithHint("--replace makes it anew, as after its certificate was renewed")
		}
	}
	return kept, nil
}

// samePerson tells whether two certificates are of one key or one address.
func samePerson(a, b *x509.Certificate) bool {
	return samePublicKey(a.PublicKey, b.PublicKey) || slices.ContainsFunc(a.EmailAddresses, func(email string) bool {
		return slices.ContainsFunc(b.EmailAddresses, func(other string) bool {
			return normalEmail(email) != "" && normalEmail(email) == normalEmail(other)
		})
	})
}

// countersign makes a countersignature. It judges nothing, so that tests can make
// what [Countersign] would not.
func countersign(what digest.Digest, req CountersignRequest, chain []*x509.Certificate) (Countersignature, error) {
	c, alg, err := signerOf(req.Key, chain, req.Algorithm)
	if err != nil {
		return c, err
	}
	c.Timestamp = req.Time.UTC().Format(timeLayout)
	payload, err := c.signed(what)
	if err != nil {
		return c, err
	}
	if c.Signature, err = signPayload(req.Key, alg, payload); err != nil || req.Stamp == nil {
		return c, err
	}
	signature, err := decodeBase64(c.Signature)
	if err != nil {
		return c, err
	}
	token, stamp, err := req.Stamp(signature)
	if err != nil {
		return c, err
	}
	c.TimestampToken = base64.StdEncoding.EncodeToString(token)
	return c, stamp.within(chain)
}
