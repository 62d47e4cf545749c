package verifier

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
)

// SignRequest is everything a signature depends on.
type SignRequest struct {
	// Raw is the OCI manifest; an attestation that it carries is replaced.
	Raw []byte
	// Key signs. It may live elsewhere than in memory.
	Key crypto.Signer
	// Chain is leaf first. A root at its end is left out of the block.
	Chain []*x509.Certificate
	// Algorithm is one of the Algorithm constants that fits the key; empty is
	// [AlgorithmRSA] or [AlgorithmECDSA].
	Algorithm string
	// Time is the time of signing; the leaf must be valid then.
	Time time.Time
	// Subject is what the signature is bound to. ID and Version are required.
	Subject Subject
	// NotAfter, if set, ends the attestation.
	NotAfter *time.Time
	// Stamp, if set, gets a time stamp token over the signature, and what it means
	// once it was verified.
	Stamp func(signature []byte) (token []byte, stamp *TimeStamp, err error)
}

// Sign returns the manifest with its attestation, in canonical form, and the
// block alone (canonical JSON). It verifies its own result before it returns.
//
// Reasons: [fault.Usage] for a request that makes no sense,
// [fault.ChainUntrusted] for a certificate that may not sign agents,
// [fault.OutsideValidity] for one that is not valid at Time,
// [fault.SignatureInvalid] for a key that is not the certificate's.
func Sign(req SignRequest) (signed, block []byte, err error) {
	chain, err := signingChain(req.Key, req.Chain, req.Time)
	if err != nil {
		return nil, nil, err
	}
	b := Block{
		Version:   BlockVersion,
		Timestamp: req.Time.UTC().Format(timeLayout),
		Subject:   req.Subject,
		Algorithm: req.Algorithm,
	}
	if req.NotAfter != nil {
		b.NotAfter = req.NotAfter.UTC().Format(timeLayout)
	}
	signed, block, err = sign(req.Raw, req.Key, chain, b)
	if err == nil && req.Stamp != nil {
		signed, block, err = stamp(signed, chain, req.Stamp)
	}
	if err != nil {
		return nil, nil, err
	}
	a, err := ReadAttestation(signed)
	if err != nil {
		return nil, nil, err
	}
	if err := a.CheckSignature(); err != nil {
		return nil, nil, err
	}
	return signed, block, nil
}

// signingChain is what goes into a block of a chain with which somebody wants to
// sign. A chain that nobody would believe is refused.
func signingChain(key crypto.Signer, chain []*x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	chain = withoutRoot(chain)
	if key == nil || len(chain) == 0 {
		return nil, fault.New(fault.Usage, "sign", "needs a key and a certificate that is not self-signed")
	}
	leaf := chain[0]
	if err := checkUsage(leaf); err != nil {
		return nil, err
	}
	if err := checkValidity(leaf, at); err != nil {
		return nil, err
	}
	for i, c := range chain[:len(chain)-1] {
		if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
			return nil, fault.Wrap(err, fault.ChainUntrusted, certName(c), "was not issued by the certificate that follows it")
		}
	}
	return chain, nil
}

// stamp adds a time stamp to a signed manifest.
func stamp(signed []byte, chain []*x509.Certificate, get func([]byte) ([]byte, *TimeStamp, error)) (stamped, block []byte, err error) {
	a, err := ReadAttestation(signed)
	if err != nil {
		return nil, nil, err
	}
	token, s, err := get(a.signature)
	if err != nil {
		return nil, nil, err
	}
	if err := s.within(chain); err != nil {
		return nil, nil, err
	}
	b := a.Block
	b.TimestampToken = base64.StdEncoding.EncodeToString(token)
	return place(signed, b)
}

// place puts a block into a manifest.
func place(raw []byte, b Block) (signed, block []byte, err error) {
	if block, err = canonical.Marshal(b); err != nil {
		return nil, nil, fault.Wrap(err, fault.AttestationFormat, "attestation", "cannot be brought into canonical form")
	}
	if len(block) > limits.AttestationBytes {
		return nil, nil, malformed("is over %d bytes", limits.AttestationBytes)
	}
	signed, err = withAnnotation(raw, block)
	if err != nil {
		return nil, nil, err
	}
	return signed, block, nil
}

// sign completes b and puts it into raw. It judges nothing, so that tests can
// sign what [Sign] would not.
func sign(raw []byte, key crypto.Signer, chain []*x509.Certificate, b Block) (signed, block []byte, err error) {
	if _, err := oci.ParseManifest(raw); err != nil {
		return nil, nil, err
	}
	who, alg, err := signerOf(key, chain, b.Algorithm)
	if err != nil {
		return nil, nil, err
	}
	b.Signer, b.Algorithm, b.CertificateChain = who.Signer, who.Algorithm, who.CertificateChain
	payload, err := signedBytes(raw, b)
	if err != nil {
		return nil, nil, err
	}
	if b.Signature, err = signPayload(key, alg, payload); err != nil {
		return nil, nil, err
	}
	return place(raw, b)
}

// signerOf is the part of a signature that says who makes it.
func signerOf(key crypto.Signer, chain []*x509.Certificate, name string) (Countersignature, algorithm, error) {
	leaf := chain[0]
	if !samePublicKey(key.Public(), leaf.PublicKey) {
		return Countersignature{}, algorithm{}, fault.New(fault.SignatureInvalid, certName(leaf), "does not belong to the key")
	}
	if fits := algorithmsOf(leaf.PublicKey); name == "" && len(fits) > 0 {
		name = fits[0].name
	}
	alg, err := algorithmFor(leaf.PublicKey, name)
	if err != nil {
		return Countersignature{}, algorithm{}, err
	}
	who := Countersignature{Signer: Names{Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String()}, Algorithm: name}
	for _, c := range chain {
		who.CertificateChain = append(who.CertificateChain, string(encodePEM(c.Raw)))
	}
	return who, alg, nil
}

// signPayload returns the signature as a block carries it.
func signPayload(key crypto.Signer, alg algorithm, payload []byte) (string, error) {
	sum := sha256.Sum256(payload)
	signature, err := key.Sign(rand.Reader, sum[:], alg.opts)
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, "key", "cannot sign")
	}
	return base64.StdEncoding.EncodeToString(signature), nil
}

// withoutRoot cuts self-issued certificates off the end: a root proves nothing
// that a node would believe.
func withoutRoot(chain []*x509.Certificate) []*x509.Certificate {
	n := len(chain)
	for n > 0 && bytes.Equal(chain[n-1].RawSubject, chain[n-1].RawIssuer) {
		n--
	}
	return chain[:n]
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
