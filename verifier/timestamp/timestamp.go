package timestamp

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"time"

	"github.com/notaryproject/tspclient-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier"
)

const (
	// maxAccuracy bounds what an authority may be unsure of: a stamp that could
	// mean any time means none.
	maxAccuracy = time.Minute
	// maxRSABits bounds what a hostile certificate may cost to check.
	maxRSABits = 4096
	on         = "time stamp"
)

// Reader implements [verifier.StampReader].
type Reader struct{}

var _ verifier.StampReader = Reader{}

// token is one that was read, but not believed.
type token struct {
	signed *tspclient.SignedToken
	stamp  *tspclient.Timestamp
	signer *x509.Certificate
}

// Inspect implements [verifier.StampReader]. Reasons:
// [fault.AttestationFormat], [fault.SignatureInvalid] for a token about another
// message, [fault.ChainUntrusted] for a certificate that is not for time stamps.
func (Reader) Inspect(der, message []byte) error {
	_, err := read(der, message)
	return err
}

// Verify implements [verifier.StampReader].
func (Reader) Verify(der, message []byte, roots *x509.CertPool) (*verifier.TimeStamp, error) {
	t, err := read(der, message)
	if err != nil {
		return nil, err
	}
	if roots == nil { // x509 would take the system's
		return nil, fault.New(fault.ChainUntrusted, on, "there is no root to hold it to")
	}
	path, err := t.signed.Verify(context.Background(), x509.VerifyOptions{Roots: roots, CurrentTime: t.stamp.Value})
	if err != nil {
		return nil, refused(err, t)
	}
	if !path[0].Equal(t.signer) {
		return nil, fault.New(fault.SignatureInvalid, on, "is not signed by the certificate that it names")
	}
	return &verifier.TimeStamp{Time: t.stamp.Value, Accuracy: t.stamp.Accuracy, Path: path}, nil
}

func refused(err error, t *token) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	subject := "time stamp authority " + t.signer.Subject.String()
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fault.Wrap(err, fault.OutsideValidity, subject, "its certificate was not valid at %s, when it stamped", t.stamp.Value.Format(time.RFC3339))
	case errors.As(err, &invalid):
		return fault.Wrap(err, fault.ChainUntrusted, subject, "its certificate may not be used so")
	case errors.As(err, &unknown):
		return fault.Wrap(err, fault.ChainUntrusted, subject, "no path to a root of the scope's time stamp stores").
			WithHint("the issuer is %q; its root must be in a store that the scope names under timestamp_stores", t.signer.Issuer)
	}
	return fault.Wrap(err, fault.SignatureInvalid, subject, "the time stamp's signature does not hold")
}

func malformed(format string, args ...any) error {
	return fault.New(fault.AttestationFormat, on, format, args...)
}

// read takes a token apart. Cheap before dear: nothing is parsed that is too
// large, and no signature is checked here.
func read(der, message []byte) (*token, error) {
	if len(der) > limits.TimeStampBytes {
		return nil, malformed("is over %d bytes", limits.TimeStampBytes)
	}
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	switch {
	case err != nil:
		return nil, malformed("is no DER: %v", err)
	case len(rest) > 0:
		return nil, malformed("is followed by %d bytes", len(rest))
	}
	signed, err := tspclient.ParseSignedToken(der)
	switch {
	case err != nil:
		return nil, malformed("cannot be read: %v", err)
	case len(signed.SignerInfos) != 1:
		return nil, malformed("has %d signers, wanted is one", len(signed.SignerInfos))
	case len(signed.Certificates) == 0 || len(signed.Certificates) > limits.ChainCertificates:
		return nil, malformed("carries %d certificates, allowed are 1 to %d", len(signed.Certificates), limits.ChainCertificates)
	}
	for _, c := range signed.Certificates {
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
			return nil, fault.New(fault.ChainUntrusted, "certificate "+c.Subject.String(), "its RSA key has %d bits, allowed are %d", key.N.BitLen(), maxRSABits)
		}
	}
	signer, err := signed.SigningCertificate(&signed.SignerInfos[0])
	if err != nil {
		return nil, malformed("does not carry its signer's certificate: %v", err)
	}
	if err := usage(signer); err != nil {
		return nil, err
	}
	stamp, err := info(signed.Content, message)
	if err != nil {
		return nil, err
	}
	return &token{signed, stamp, signer}, nil
}

// info reads what the token says.
func info(content, message []byte) (*tspclient.Timestamp, error) {
	var info tspclient.TSTInfo
	rest, err := asn1.Unmarshal(content, &info)
	switch {
	case err != nil:
		return nil, malformed("its content is malformed: %v", err)
	case len(rest) > 0:
		return nil, malformed("its content is followed by %d bytes", len(rest))
	case info.Version != 1:
		return nil, malformed("its content has version %d", info.Version)
	case info.GenTime.IsZero() || info.GenTime.Location() != time.UTC:
		return nil, malformed("its time is not one in UTC")
	}
	for _, ext := range info.Extensions {
		if ext.Critical {
			return nil, malformed("has the unknown critical extension %s", ext.Id)
		}
	}
	// Each part is bounded before they are added up: the sum could overflow.
	for _, part := range []int{info.Accuracy.Seconds, info.Accuracy.Milliseconds, info.Accuracy.Microseconds} {
		if part < 0 || part > 999 {
			return nil, malformed("its accuracy is impossible")
		}
	}
	stamp, err := info.Validate(message)
	if err != nil {
		return nil, fault.Wrap(err, fault.SignatureInvalid, on, "is not about this signature")
	}
	if stamp.Accuracy > maxAccuracy {
		return nil, malformed("is accurate to %s only, allowed are %s", stamp.Accuracy, maxAccuracy)
	}
	return stamp, nil
}

// usage demands RFC 3161's profile: for time stamps, critically, and for nothing
// else.
func usage(c *x509.Certificate) error {
	if c.IsCA || len(c.UnknownExtKeyUsage) > 0 || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageTimeStamping {
		return fault.New(fault.ChainUntrusted, "certificate "+c.Subject.String(), "is not for time stamps alone")
	}
	for _, ext := range c.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) && !ext.Critical {
			return fault.New(fault.ChainUntrusted, "certificate "+c.Subject.String(), "its extended key usage is not critical")
		}
	}
	return nil
}
