package verifier

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
)

// Envelope is a Notary Project signature as it was found. It is not believed for
// where it was found.
type Envelope struct {
	MediaType string
	Data      []byte
	// Err says why a signature that is there cannot be looked at; then there is no
	// Data, and it does not count.
	Err error
}

// Digest names the envelope; empty when it could not be looked at.
func (e Envelope) Digest() digest.Digest {
	if e.Err != nil {
		return ""
	}
	return digest.FromBytes(e.Data)
}

// EnvelopeReader reads Notary Project signatures. It is given to a verifier and no
// part of it, because the library that reads them holds an HTTP client, too.
type EnvelopeReader interface {
	// ReadEnvelope checks that the envelope is intact and about the target. It trusts
	// nobody yet. Reasons: [fault.SignatureInvalid], [fault.AttestationFormat],
	// [fault.ChainUntrusted] for certificates that may not sign at all.
	ReadEnvelope(e Envelope, target ocispec.Descriptor) (*EnvelopeContent, error)
}

// EnvelopeContent is what an intact envelope says.
type EnvelopeContent struct {
	// Chain is leaf first and ends with a root, which is only somebody's word.
	Chain []*x509.Certificate
	// Signature is what a time stamp is about.
	Signature []byte
	// Algorithm is for people.
	Algorithm string
	// Time is the signer's own word for when.
	Time time.Time
	// Expiry ends the signature; zero for none.
	Expiry time.Time
	// Token is an RFC 3161 token, which is not signed; nil for none.
	Token []byte
}

// Reading lets a verifier that is made by [Open] read Notary Project signatures.
// Without it such a signature never counts.
func Reading(r EnvelopeReader) func(*Config) { return func(c *Config) { c.Envelopes = r } }

// The values of a scope's notation.
const (
	notationRefuse = "refuse"
	notationAccept = "accept"
)

// NotationSignature is [Verdict.Signature] where a Notary Project signature decided.
const NotationSignature = "notation"

const envelopeName = "Notary Project signature"

// AsksEnvelopes tells whether the judgement of an input depends on its Envelopes:
// its scope accepts Notary Project signatures, and it has no attestation.
func (v *Verifier) AsksEnvelopes(in Input) bool {
	if v.policy == nil || in.Artifact == nil || in.Artifact.Attested() {
		return false
	}
	s := v.policy.scope(imageref.Parse(in.Reference))
	exempt := (v.policy.Exempt(in.Artifact.Digest) || v.policy.Exempt(in.Index)) && !isWASM(in.Artifact)
	return s != nil && s.notation && !exempt
}

// Target is what a Notary Project signature of the artifact is about.
func Target(a *oci.Artifact) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: a.Manifest.MediaType, Digest: a.Digest, Size: int64(len(a.Raw))}
	if d.MediaType == "" {
		d.MediaType = ocispec.MediaTypeImageManifest
	}
	return d
}

// candidate is one envelope's judgement.
type candidate struct {
	judge
	number   int // from 1
	envelope digest.Digest
	err      error
}

// stage is how far it came.
func (c *candidate) stage() int { return len(c.verdict.Checks) }

// before tells whether a good candidate is to decide rather than another.
func (c *candidate) before(o *candidate) bool {
	if cl, ol := len(c.verdict.Overlooked) > 0, len(o.verdict.Overlooked) > 0; cl != ol {
		return ol
	}
	return slices.Index(trustLevels, c.verdict.Trust) > slices.Index(trustLevels, o.verdict.Trust)
}

var trustLevels = []TrustLevel{Untrusted, Signed, Community, Verified}

// envelopes judges an artifact without attestation by its Notary Project signatures,
// of which there is at least one. One that counts is enough.
func (j *judge) envelopes(a *oci.Artifact) error {
	looked := j.in.Envelopes[:min(len(j.in.Envelopes), limits.Envelopes)]
	of := fmt.Sprintf("%d", len(looked))
	if len(looked) < len(j.in.Envelopes) {
		of = fmt.Sprintf("%d of more", len(looked))
	}
	var best, furthest *candidate
	var questions []Question
	for i, e := range looked {
		c := j.candidate(i+1, e, a)
		j.rest(c.verdict.Rests.Files)
		switch {
		case c.err == nil:
			j.verdict.GoodEnvelopes = append(j.verdict.GoodEnvelopes, c.envelope)
			if best == nil || c.before(best) {
				best = c
			}
		case furthest == nil || c.stage() > furthest.stage():
			furthest = c
		}
		if c.err != nil { // an answer could make it a good one
			questions = append(questions, c.verdict.Questions...)
		}
	}
	if best != nil {
		return j.adopt(best, of)
	}
	j.verdict.Questions = append(j.verdict.Questions, questions...)
	j.verdict.Signature, j.verdict.Signer, j.verdict.Stamped = NotationSignature, furthest.verdict.Signer, furthest.verdict.Stamped
	return j.check(StepNotation, fault.Wrap(furthest.err, fault.ReasonOf(furthest.err), j.in.Reference,
		"carries no attestation, and none of its Notary Project signatures counts (%s looked at; number %d came furthest)", of, furthest.number), "")
}

// candidate judges by one envelope, aside: what it finds does not count yet.
func (j *judge) candidate(number int, e Envelope, a *oci.Artifact) *candidate {
	c := &candidate{judge: *j, number: number, envelope: e.Digest()}
	c.verdict = &Verdict{Trust: Untrusted, Enforced: true}
	c.trace = j.trace.branch()
	c.err = c.by(e, a)
	j.trace.merge(c.trace, fmt.Sprintf("number %d", number), e, c.err)
	return c
}

// by holds an artifact to the scope by one envelope, as [judge.trust] does by an
// attestation.
func (c *candidate) by(e Envelope, a *oci.Artifact) error {
	target := Target(a)
	switch {
	case e.Err != nil:
		return e.Err
	case c.Verifier.envelopes == nil:
		return fault.New(fault.Unsupported, envelopeName, "this program does not read it")
	case len(e.Data) > limits.EnvelopeBytes:
		return fault.New(fault.AttestationFormat, envelopeName, "is over %d bytes", limits.EnvelopeBytes)
	}
	content, err := c.Verifier.envelopes.ReadEnvelope(e, target)
	var att *Attestation
	if err == nil {
		att, err = content.attestation(a)
	}
	if err := c.check(StepSignature, err, "%s over %s", algorithmText(content), target.Digest); err != nil {
		return err
	}
	c.verdict.NotAfter = att.notAfter
	return c.trust(att, a)
}

func algorithmText(c *EnvelopeContent) string {
	if c == nil {
		return ""
	}
	return c.Algorithm
}

// attestation is an envelope in the terms of an attestation, so that the same rules
// hold for both. It names no repository.
func (c *EnvelopeContent) attestation(a *oci.Artifact) (*Attestation, error) {
	refuse := func(format string, args ...any) (*Attestation, error) {
		return nil, fault.New(fault.ChainUntrusted, envelopeName, format, args...)
	}
	n := len(c.Chain) - 1
	switch {
	case n < 1:
		return refuse("is not by a certificate that a root issued")
	case n > limits.ChainCertificates:
		return refuse("has %d certificates below its root, allowed are %d", n, limits.ChainCertificates)
	}
	for _, cert := range c.Chain[:n] {
		if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			return refuse("has a certificate before its root that issued itself")
		}
		if cert.SerialNumber.Sign() <= 0 || len(cert.SerialNumber.Bytes()) > maxSerialBytes {
			return refuse("has a certificate whose serial number is not positive or is over %d bytes", maxSerialBytes)
		}
	}
	att := &Attestation{
		Block: Block{Timestamp: stampText(c.Time)},
		Chain: c.Chain[:n], SignedDigest: a.Digest,
		signing:  signing{chain: c.Chain[:n], algorithm: c.Algorithm, signature: c.Signature, timestamp: c.Time, on: envelopeName},
		notAfter: c.Expiry, root: c.Chain[n],
	}
	if !c.Expiry.IsZero() {
		att.NotAfter = stampText(c.Expiry)
	}
	if len(c.Token) > 0 {
		att.token = c.Token
	}
	return att, nil
}

// adopt makes a candidate's judgement the whole one.
func (j *judge) adopt(c *candidate, of string) error {
	vd, one := j.verdict, c.verdict
	vd.Signature, vd.SignedDigest = NotationSignature, j.in.Artifact.Digest
	vd.Trust, vd.Signer, vd.Stamped, vd.NotAfter = one.Trust, one.Signer, one.Stamped, one.NotAfter
	vd.Questions = append(vd.Questions, one.Questions...) // those about a release list are there
	vd.Overlooked = one.Overlooked
	vd.Warnings = append(vd.Warnings, one.Warnings...)
	if !one.Rests.Until.IsZero() {
		j.until(one.Rests.Until)
	}
	j.trace.adopt(c.trace)
	_ = j.check(StepNotation, nil, "%s looked at; number %d decides", of, c.number)
	vd.Checks = append(vd.Checks, one.Checks...)
	return nil
}
