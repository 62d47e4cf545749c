package tsa

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"slices"
	"time"

	"github.com/digitorus/pkcs7"
	"github.com/notaryproject/tspclient-go"
	tsppki "github.com/notaryproject/tspclient-go/pki"

	"github.com/mentatlab/mentat/internal/fault"
)

const (
	// accuracy is what a token says of its time, in seconds: it has no fractions.
	accuracy = 1
	// maxNonceBits bounds what is sent back: RFC 3161 speaks of 64 bits.
	maxNonceBits = 256
)

// hashes are the message digests that are stamped, with their size in bytes.
var hashes = []struct {
	id   asn1.ObjectIdentifier
	size int
}{
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, 32},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, 48},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, 64},
}

var (
	oidInfo       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}
	oidSignerCert = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47}
)

// Authority is who stamps.
type Authority struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	// Policy is the one under which it stamps.
	Policy asn1.ObjectIdentifier
}

// Ticket is what makes a token one of its kind.
type Ticket struct {
	Serial *big.Int
	Time   time.Time
}

// refusal is a request that gets no token.
type refusal struct {
	info tsppki.FailureInfo
	err  error
}

func refuse(info tsppki.FailureInfo, format string, args ...any) *refusal {
	return &refusal{info, fault.New(fault.Usage, "request for a time stamp", format, args...)}
}

// Answer answers the request, always with something to send: an error says why it
// is a refusal. ticket is asked once, for a request that is in order. Reasons:
// [fault.Usage] for a request that is not, [fault.OutsideValidity] from ticket says
// that there is no time that could be told, and any other that stamping fails.
func (a Authority) Answer(query []byte, ticket func() (Ticket, error)) ([]byte, error) {
	token, r := a.token(query, ticket)
	if r == nil {
		return reply(tspclient.Response{TimestampToken: asn1.RawValue{FullBytes: token}}, nil)
	}
	status := tsppki.StatusInfo{Status: tsppki.StatusRejection, FailInfo: bit(r.info)}
	return reply(tspclient.Response{Status: status}, r.err)
}

func reply(r tspclient.Response, why error) ([]byte, error) {
	der, err := r.MarshalBinary()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "time stamp", "cannot encode the answer")
	}
	return der, why
}

// bit is a named bit string without zeros at its end, as DER has it.
func bit(info tsppki.FailureInfo) asn1.BitString {
	b := make([]byte, info/8+1)
	b[info/8] = 0x80 >> (info % 8)
	return asn1.BitString{Bytes: b, BitLength: int(info) + 1}
}

func (a Authority) token(query []byte, ticket func() (Ticket, error)) ([]byte, *refusal) {
	request, r := a.read(query)
	if r != nil {
		return nil, r
	}
	t, err := ticket()
	if fault.ReasonOf(err) == fault.OutsideValidity {
		return nil, &refusal{tsppki.FailureInfoTimeNotAvailable, err}
	}
	if err == nil {
		var token []byte
		if token, err = a.sign(request, t); err == nil {
			return token, nil
		}
		err = fault.Wrap(err, fault.Internal, "time stamp", "cannot be made")
	}
	return nil, &refusal{tsppki.FailureInfoSystemFailure, err}
}

// read holds a request to what is stamped here.
func (a Authority) read(query []byte) (*tspclient.Request, *refusal) {
	var q tspclient.Request
	if rest, err := asn1.Unmarshal(query, &q); err != nil || len(rest) > 0 {
		return nil, refuse(tsppki.FailureInfoBadDataFormat, "is malformed, or followed by something")
	}
	at := slices.IndexFunc(hashes, func(h struct {
		id   asn1.ObjectIdentifier
		size int
	},
	) bool {
		return h.id.Equal(q.MessageImprint.HashAlgorithm.Algorithm)
	})
	parameters := q.MessageImprint.HashAlgorithm.Parameters.FullBytes
	switch {
	case q.Version != 1:
		return nil, refuse(tsppki.FailureInfoBadRequest, "is of version %d", q.Version)
	case at < 0:
		return nil, refuse(tsppki.FailureInfoBadAlg, "is about a hash by %s, stamped are SHA-256, SHA-384 and SHA-512", q.MessageImprint.HashAlgorithm.Algorithm)
	case len(parameters) > 0 && !slices.Equal(parameters, asn1.NullBytes):
		return nil, refuse(tsppki.FailureInfoBadAlg, "its hash has parameters")
	case len(q.MessageImprint.HashedMessage) != hashes[at].size:
		return nil, refuse(tsppki.FailureInfoBadDataFormat, "its hash has %d bytes, not %d", len(q.MessageImprint.HashedMessage), hashes[at].size)
	case len(q.ReqPolicy) > 0 && !q.ReqPolicy.Equal(a.Policy):
		return nil, refuse(tsppki.FailureInfoUnacceptedPolicy, "asks for the policy %s, this authority's is %s", q.ReqPolicy, a.Policy)
	case len(q.Extensions) > 0:
		return nil, refuse(tsppki.FailureInfoUnacceptedExtension, "asks for the extension %s", q.Extensions[0].Id)
	case q.Nonce != nil && q.Nonce.BitLen() > maxNonceBits:
		return nil, refuse(tsppki.FailureInfoBadRequest, "its nonce has %d bits, allowed are %d", q.Nonce.BitLen(), maxNonceBits)
	}
	return &q, nil
}

// signerCert is RFC 5035's SigningCertificateV2 with the one certificate that
// counts, by its SHA-256.
type signerCert struct{ Certs []certID }

type certID struct {
	Hash   []byte
	Issuer struct {
		Names  []asn1.RawValue
		Serial *big.Int
	}
}

func (a Authority) sign(q *tspclient.Request, t Ticket) ([]byte, error) {
	info, err := asn1.Marshal(tspclient.TSTInfo{
		Version: 1, Policy: a.Policy, MessageImprint: q.MessageImprint, SerialNumber: t.Serial,
		GenTime: t.Time.UTC().Truncate(time.Second), Accuracy: tspclient.Accuracy{Seconds: accuracy}, Nonce: q.Nonce,
	})
	if err != nil {
		return nil, fmt.Errorf("its content: %w", err)
	}
	sum := sha256.Sum256(a.Cert.Raw)
	id := certID{Hash: sum[:]}
	id.Issuer.Names = []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: a.Cert.RawIssuer}}
	id.Issuer.Serial = a.Cert.SerialNumber
	signer, err := asn1.Marshal(signerCert{[]certID{id}})
	if err != nil {
		return nil, fmt.Errorf("its signer: %w", err)
	}
	signed, err := pkcs7.NewSignedData(info)
	if err != nil {
		return nil, err
	}
	signed.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	signed.SetContentType(oidInfo)
	signed.GetSignedData().Version = 3 // RFC 5652 §5.1: the content is no plain data
	if err := signed.AddSigner(a.Cert, unsigned{a.Key}, pkcs7.SignerInfoConfig{
		SkipCertificates:      !q.CertReq,
		ExtraSignedAttributes: []pkcs7.Attribute{{Type: oidSignerCert, Value: asn1.RawValue{FullBytes: signer}}},
	}); err != nil {
		return nil, err
	}
	if err := a.signWithoutTime(signed); err != nil {
		return nil, err
	}
	return signed.Finish()
}

// unsigned is a key whose signature is made afterwards.
type unsigned struct{ crypto.Signer }

func (unsigned) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, nil }

// signWithoutTime signs, less the time that the library read from the clock: a token
// tells one time, that of its ticket, and readers hold the other to the certificate.
func (a Authority) signWithoutTime(signed *pkcs7.SignedData) error {
	info := &signed.GetSignedData().SignerInfos[0]
	kept := info.AuthenticatedAttributes[:0]
	for _, attribute := range info.AuthenticatedAttributes {
		if !attribute.Type.Equal(pkcs7.OIDAttributeSigningTime) {
			kept = append(kept, attribute)
		}
	}
	info.AuthenticatedAttributes = kept
	der, err := asn1.MarshalWithParams(kept, "set")
	if err != nil {
		return fmt.Errorf("what is signed: %w", err)
	}
	sum := sha256.Sum256(der)
	info.EncryptedDigest, err = a.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
	return err
}

// Profile makes a certificate's template one for time stamps, as RFC 3161 §2.3
// wants it: for nothing else, and critically.
func Profile(c *x509.Certificate) error {
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		return fault.Wrap(err, fault.Internal, "certificate", "cannot encode its usage")
	}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage})
	return nil
}
