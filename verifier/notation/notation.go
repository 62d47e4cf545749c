package notation

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
)

const (
	// ArtifactType is the type of the manifest that refers to what is signed.
	ArtifactType = "application/vnd.cncf.notary.signature"
	// MediaType is the type of the signature envelope.
	MediaType = jws.MediaTypeEnvelope

	payloadType   = "application/vnd.cncf.notary.payload.v1+json"
	thumbprintsOf = "io.cncf.notary.x509chain.thumbprint#S256"
	signingAgent  = "mentatctl"
)

// payload is what the Notary Project's specification has signed.
type payload struct {
	Target ocispec.Descriptor `json:"targetArtifact"`
}

// Request is what a signature depends on.
type Request struct {
	// Target is the manifest that is signed. Only its type, digest and size count.
	Target ocispec.Descriptor
	// Key signs: RSA with PSS, or ECDSA, with the hash that the Notary Project's
	// specification has for the key's size.
	Key crypto.Signer
	// Chain is leaf first and ends with the root.
	Chain []*x509.Certificate
	// Time is the time of signing.
	Time time.Time
	// Expiry, if set, ends the signature.
	Expiry time.Time
}

// Sign returns a JWS envelope, verified. Reasons: [fault.Usage] for a chain
// without its root, [fault.ChainUntrusted] for one that may not sign,
// [fault.SignatureInvalid] for a key that is not the certificate's.
func Sign(req Request) ([]byte, error) {
	if n := len(req.Chain); n == 0 || !bytes.Equal(req.Chain[n-1].RawSubject, req.Chain[n-1].RawIssuer) {
		return nil, fault.New(fault.Usage, "certificate chain", "does not end with its root, which a Notary Project signature carries").
			WithHint("name the root with --root")
	}
	spec, err := signature.ExtractKeySpec(req.Chain[0])
	if err != nil {
		return nil, fault.Wrap(err, fault.ChainUntrusted, req.Chain[0].Subject.String(), "its key cannot make a Notary Project signature")
	}
	// Only what identifies the artifact: annotations would be signed as claims.
	target := ocispec.Descriptor{MediaType: req.Target.MediaType, Digest: req.Target.Digest, Size: req.Target.Size}
	content, err := json.Marshal(payload{target})
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "signature", "cannot encode what is signed")
	}
	order := &signature.SignRequest{
		Payload:       signature.Payload{ContentType: payloadType, Content: content},
		Signer:        signer{req.Key, req.Chain, spec},
		SigningTime:   req.Time.UTC().Truncate(time.Second),
		SigningScheme: signature.SigningSchemeX509,
		SigningAgent:  signingAgent,
	}
	if !req.Expiry.IsZero() {
		order.Expiry = req.Expiry.UTC().Truncate(time.Second)
	}
	envelope := jws.NewEnvelope()
	out, err := envelope.Sign(order)
	if err != nil {
		return nil, fault.Wrap(err, fault.ChainUntrusted, req.Chain[0].Subject.String(), "cannot make a Notary Project signature")
	}
	read, err := jws.ParseEnvelope(out)
	if err == nil {
		_, err = read.Verify()
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.SignatureInvalid, req.Chain[0].Subject.String(), "the Notary Project signature does not fit the certificate")
	}
	return out, nil
}

// signer is any crypto.Signer; the library's own takes keys in memory only.
type signer struct {
	key   crypto.Signer
	chain []*x509.Certificate
	spec  signature.KeySpec
}

// KeySpec implements [signature.Signer].
func (s signer) KeySpec() (signature.KeySpec, error) { return s.spec, nil }

// Sign implements [signature.Signer].
func (s signer) Sign(payload []byte) ([]byte, []*x509.Certificate, error) {
	hash := s.spec.SignatureAlgorithm().Hash()
	if !hash.Available() {
		return nil, nil, fault.New(fault.Unsupported, "key", "needs the hash %s, which this program does not have", hash)
	}
	h := hash.New()
	h.Write(payload)
	var opts crypto.SignerOpts = hash
	if s.spec.Type == signature.KeyTypeRSA {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	out, err := s.key.Sign(rand.Reader, h.Sum(nil), opts)
	if err == nil && s.spec.Type == signature.KeyTypeEC {
		out, err = plainECDSA(out, s.chain[0].PublicKey)
	}
	return out, s.chain, err
}

// plainECDSA turns ASN.1 into the two numbers one after the other, as JWS has
// them.
func plainECDSA(der []byte, key crypto.PublicKey) ([]byte, error) {
	public, ok := key.(*ecdsa.PublicKey)
	var numbers struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &numbers)
	if err != nil || len(rest) > 0 || !ok {
		return nil, fault.New(fault.Internal, "key", "does not sign as ECDSA keys do")
	}
	size := (public.Curve.Params().BitSize + 7) / 8
	out := make([]byte, 2*size)
	numbers.R.FillBytes(out[:size])
	numbers.S.FillBytes(out[size:])
	return out, nil
}

// Referrer is the manifest that ties an envelope to what it signs, and the blobs
// that it names.
func Referrer(target ocispec.Descriptor, envelope []byte, chain []*x509.Certificate, at time.Time) (raw []byte, blobs [][]byte, err error) {
	var prints []string
	for _, c := range chain {
		sum := sha256.Sum256(c.Raw)
		prints = append(prints, hex.EncodeToString(sum[:]))
	}
	thumbprints, err := json.Marshal(prints)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "signature", "cannot encode its manifest")
	}
	config := []byte("{}")
	raw, err = json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       describe(ArtifactType, config),
		Layers:       []ocispec.Descriptor{describe(MediaType, envelope)},
		Subject:      &ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size},
		Annotations: map[string]string{
			thumbprintsOf:             string(thumbprints),
			ocispec.AnnotationCreated: at.UTC().Format(time.RFC3339),
		},
	})
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "signature", "cannot encode its manifest")
	}
	return raw, [][]byte{config, envelope}, nil
}

// Chain is the certificates in an envelope, leaf first. It verifies the envelope,
// and that it is about the target.
func Chain(envelope []byte, target ocispec.Descriptor) ([]*x509.Certificate, time.Time, error) {
	bad := func(err error) ([]*x509.Certificate, time.Time, error) {
		return nil, time.Time{}, fault.Wrap(err, fault.SignatureInvalid, "Notary Project signature", "does not fit the artifact").
			WithHint("sign it again")
	}
	read, err := jws.ParseEnvelope(envelope)
	if err != nil {
		return bad(err)
	}
	content, err := read.Verify()
	if err != nil {
		return bad(err)
	}
	var said payload
	if err := json.Unmarshal(content.Payload.Content, &said); err != nil {
		return bad(err)
	}
	if said.Target.Digest != target.Digest || said.Target.Size != target.Size || said.Target.MediaType != target.MediaType {
		return bad(fault.New(fault.SignatureInvalid, string(said.Target.Digest), "is what it signs"))
	}
	return content.SignerInfo.CertificateChain, content.SignerInfo.SignedAttributes.SigningTime, nil
}

func describe(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}
