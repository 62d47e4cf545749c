package notation

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	corex509 "github.com/notaryproject/notation-core-go/x509"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	gocose "github.com/veraison/go-cose"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier"
)

// MediaTypeCOSE is the type of the envelope that is not JSON.
const MediaTypeCOSE = cose.MediaTypeEnvelope

const (
	on = "Notary Project signature"
	// maxRSABits bounds what a hostile certificate may cost to check.
	maxRSABits = 4096
)

// Reader implements [verifier.EnvelopeReader].
type Reader struct{}

var _ verifier.EnvelopeReader = Reader{}

// ReadEnvelope implements [verifier.EnvelopeReader]. Reasons:
// [fault.AttestationFormat], [fault.ChainUntrusted] for certificates that may not
// sign at all, [fault.SignatureInvalid] for a signature that does not fit or is about
// something else, [fault.Unsupported] for one with a meaning that is not known here.
func (Reader) ReadEnvelope(e verifier.Envelope, target ocispec.Descriptor) (*verifier.EnvelopeContent, error) {
	content, err := integrity(e)
	if err != nil {
		return nil, err
	}
	info := &content.SignerInfo
	if scheme := info.SignedAttributes.SigningScheme; scheme != signature.SigningSchemeX509 {
		return nil, fault.New(fault.Unsupported, on, "is of the scheme %q; only %q counts", scheme, signature.SigningSchemeX509)
	}
	for _, a := range info.SignedAttributes.ExtendedAttributes {
		if a.Critical {
			return nil, fault.New(fault.Unsupported, on, "has the critical attribute %q, which this program does not know", fmt.Sprint(a.Key))
		}
	}
	if err := about(content.Payload, target); err != nil {
		return nil, err
	}
	return &verifier.EnvelopeContent{
		Chain: info.CertificateChain, Signature: info.Signature, Algorithm: algorithms[info.SignatureAlgorithm],
		Time: info.SignedAttributes.SigningTime, Expiry: info.SignedAttributes.Expiry,
		Token: info.UnsignedAttributes.TimestampSignature,
	}, nil
}

var algorithms = map[signature.Algorithm]string{
	signature.AlgorithmPS256: "PS256", signature.AlgorithmPS384: "PS384", signature.AlgorithmPS512: "PS512",
	signature.AlgorithmES256: "ES256", signature.AlgorithmES384: "ES384", signature.AlgorithmES512: "ES512",
}

func malformed(format string, args ...any) error {
	return fault.New(fault.AttestationFormat, on, format, args...)
}

// integrity is notation-core-go's verdict, after everything that makes it dear was
// bounded.
func integrity(e verifier.Envelope) (*signature.EnvelopeContent, error) {
	if len(e.Data) > limits.EnvelopeBytes {
		return nil, malformed("is over %d bytes", limits.EnvelopeBytes)
	}
	var certs [][]byte
	var err error
	switch e.MediaType {
	case MediaType:
		certs, err = jwsCertificates(e.Data)
	case MediaTypeCOSE:
		certs, err = coseCertificates(e.Data)
	default:
		return nil, malformed("is of type %q; known are %s and %s", e.MediaType, MediaType, MediaTypeCOSE)
	}
	if err != nil {
		return nil, err
	}
	if err := bounded(certs); err != nil {
		return nil, err
	}
	read, err := signature.ParseEnvelope(e.MediaType, e.Data)
	if err != nil {
		return nil, fault.Wrap(err, fault.AttestationFormat, on, "cannot be read")
	}
	content, err := read.Verify()
	var broken *signature.SignatureIntegrityError
	switch {
	case errors.As(err, &broken):
		return nil, fault.Wrap(err, fault.SignatureInvalid, on, "does not fit its certificate")
	case err != nil:
		return nil, fault.Wrap(err, fault.AttestationFormat, on, "breaks the specification")
	}
	return content, nil
}

// bounded parses the certificates to see how dear they are, and whether they are a
// chain that may sign code at all.
func bounded(certs [][]byte) error {
	if len(certs) == 0 || len(certs) > limits.ChainCertificates+1 {
		return malformed("has %d certificates, allowed are 1 to %d", len(certs), limits.ChainCertificates+1)
	}
	chain := make([]*x509.Certificate, len(certs))
	for i, der := range certs {
		if len(der) > limits.CertificatePEMBytes {
			return malformed("certificate %d is over %d bytes", i, limits.CertificatePEMBytes)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return malformed("certificate %d is malformed: %v", i, err)
		}
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
			return fault.New(fault.ChainUntrusted, "certificate "+c.Subject.String(), "its RSA key has %d bits, allowed are %d", key.N.BitLen(), maxRSABits)
		}
		chain[i] = c
	}
	if err := corex509.ValidateCodeSigningCertChain(chain, nil); err != nil {
		return fault.Wrap(err, fault.ChainUntrusted, on, "its certificates are no chain from a signer to a root")
	}
	return nil
}

// jwsCertificates reads the JSON in one way only: a key twice, in another case or
// unknown could mean another thing to another reader.
func jwsCertificates(data []byte) ([][]byte, error) {
	var e struct {
		Payload   string `json:"payload"`
		Protected string `json:"protected"`
		Header    struct {
			Chain [][]byte `json:"x5c"`
			Token []byte   `json:"io.cncf.notary.timestampSignature"`
			Agent string   `json:"io.cncf.notary.signingAgent"`
		} `json:"header"`
		Signature string `json:"signature"`
	}
	if err := jsonv2.Unmarshal(data, &e, jsonv2.RejectUnknownMembers(true)); err != nil {
		return nil, malformed("is no JWS envelope: %v", err)
	}
	return e.Header.Chain, nil
}

func coseCertificates(data []byte) ([][]byte, error) {
	var msg gocose.Sign1Message
	if err := msg.UnmarshalCBOR(data); err != nil {
		return nil, malformed("is no COSE envelope: %v", err)
	}
	list, ok := msg.Headers.Unprotected[gocose.HeaderLabelX5Chain].([]any)
	if !ok {
		return nil, malformed("has no chain of certificates")
	}
	var certs [][]byte
	for _, c := range list {
		der, ok := c.([]byte)
		if !ok {
			return nil, malformed("has a certificate that is no byte string")
		}
		certs = append(certs, der)
	}
	return certs, nil
}

// about holds what is signed to the artifact: its type, size and digest. What a signer
// notes beside them is not looked at.
func about(p signature.Payload, target ocispec.Descriptor) error {
	if p.ContentType != payloadType {
		return fault.New(fault.SignatureInvalid, on, "is over a payload of type %q, not %s", p.ContentType, payloadType)
	}
	var said struct {
		Target *struct {
			MediaType   string            `json:"mediaType"`
			Digest      digest.Digest     `json:"digest"`
			Size        *int64            `json:"size"`
			Annotations map[string]string `json:"annotations"`
		} `json:"targetArtifact"`
	}
	if err := jsonv2.Unmarshal(bytes.TrimSpace(p.Content), &said, jsonv2.RejectUnknownMembers(true)); err != nil {
		return malformed("its payload names no artifact: %v", err)
	}
	t := said.Target
	switch {
	case t == nil || t.Size == nil:
		return malformed("its payload names no artifact")
	case t.Digest != target.Digest:
		return fault.New(fault.SignatureInvalid, on, "is over %s", t.Digest)
	case *t.Size != target.Size:
		return fault.New(fault.SignatureInvalid, on, "is over %d bytes, the manifest has %d", *t.Size, target.Size)
	case t.MediaType != target.MediaType:
		return fault.New(fault.SignatureInvalid, on, "is over a manifest of type %q, this is %q", t.MediaType, target.MediaType)
	}
	return nil
}
