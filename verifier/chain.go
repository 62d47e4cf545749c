package verifier

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	corex509 "github.com/notaryproject/notation-core-go/x509"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Signature algorithms by the names the block carries. All hash with SHA-256.
const (
	AlgorithmRSA    = "SHA256withRSA"     // PKCS#1 v1.5
	AlgorithmRSAPSS = "SHA256withRSA-PSS" // salt as long as the hash
	AlgorithmECDSA  = "SHA256withECDSA"   // P-256, P-384
)

const (
	minRSABits = 2048
	// maxRSABits bounds what a hostile certificate may cost to check.
	maxRSABits = 4096
	// maxSerialBytes is RFC 5280's bound on serial numbers.
	maxSerialBytes = 20
)

type algorithm struct {
	name string
	x509 x509.SignatureAlgorithm
	opts crypto.SignerOpts
}

var (
	rsaPKCS1 = algorithm{AlgorithmRSA, x509.SHA256WithRSA, crypto.SHA256}
	rsaPSS   = algorithm{AlgorithmRSAPSS, x509.SHA256WithRSAPSS, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}}
	ecdsa256 = algorithm{AlgorithmECDSA, x509.ECDSAWithSHA256, crypto.SHA256}
)

// algorithmFor derives the algorithm from the key; the block's word only picks
// between the paddings of an RSA key.
func algorithmFor(key crypto.PublicKey, name string) (algorithm, error) {
	fits := algorithmsOf(key)
	if len(fits) == 0 {
		return algorithm{}, fault.New(fault.ChainUntrusted, "certificate", "key type %T is not supported", key)
	}
	for _, a := range fits {
		if a.name == name {
			return a, nil
		}
	}
	return algorithm{}, fault.New(fault.SignatureInvalid, "attestation", "algorithm %q does not fit the certificate's key, which signs with %s", name, fits[0].name)
}

// algorithmsOf lists what a key may sign with, its default first.
func algorithmsOf(key crypto.PublicKey) []algorithm {
	switch key.(type) {
	case *rsa.PublicKey:
		return []algorithm{rsaPKCS1, rsaPSS}
	case *ecdsa.PublicKey:
		return []algorithm{ecdsa256}
	}
	return nil
}

// checkKey refuses keys that are too weak to mean anything or too large to be
// checked in bounded time.
func checkKey(c *x509.Certificate) error {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return weak(c, "its RSA key has %d bits, allowed are %d to %d", bits, minRSABits, maxRSABits)
		}
		if key.E < 65537 || key.E%2 == 0 {
			return weak(c, "its RSA key has the public exponent %d, which is too small", key.E)
		}
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return weak(c, "its curve %s is not P-256 or P-384", key.Curve.Params().Name)
		}
	default:
		return weak(c, "its key type %T is not supported", key)
	}
	return nil
}

func weak(c *x509.Certificate, format string, args ...any) error {
	return fault.New(fault.ChainUntrusted, certName(c), format, args...)
}

// parseBlockChain parses a block's certificates, each in the one PEM encoding
// that pem.Encode writes.
func parseBlockChain(texts []string) ([]*x509.Certificate, error) {
	switch {
	case len(texts) == 0:
		return nil, malformed("certificate_chain is empty")
	case len(texts) > limits.ChainCertificates:
		return nil, malformed("certificate_chain has %d certificates, allowed are %d", len(texts), limits.ChainCertificates)
	}
	chain := make([]*x509.Certificate, len(texts))
	for i, text := range texts {
		if len(text) > limits.CertificatePEMBytes {
			return nil, malformed("certificate %d is over %d bytes", i, limits.CertificatePEMBytes)
		}
		block, rest := pem.Decode([]byte(text))
		if block == nil || len(rest) != 0 || block.Type != "CERTIFICATE" || string(encodePEM(block.Bytes)) != text {
			return nil, malformed("certificate %d is not one plain PEM certificate", i)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, malformed("certificate %d is malformed: %v", i, err)
		}
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			return nil, malformed("certificate %d issued itself; roots come from the node's trust store only", i)
		}
		if c.SerialNumber.Sign() <= 0 || len(c.SerialNumber.Bytes()) > maxSerialBytes {
			return nil, malformed("certificate %d has a serial number that is not positive or is over %d bytes", i, maxSerialBytes)
		}
		chain[i] = c
	}
	return chain, nil
}

func encodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// ParseChain reads a PEM file of certificates, leaf first, as `pki
// request-cert` writes it. name is the subject of its errors. Anything but
// certificates, and text between them, is refused.
func ParseChain(name string, data []byte) ([]*x509.Certificate, error) {
	if len(data) > (limits.ChainCertificates+1)*limits.CertificatePEMBytes {
		return nil, fault.New(fault.ChainUntrusted, name, "is too large for a certificate chain")
	}
	var chain []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, next := pem.Decode(rest)
		if block == nil || !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, fault.New(fault.ChainUntrusted, name, "holds something that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fault.New(fault.ChainUntrusted, name, "holds a PEM block of type %q where only certificates are allowed", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.Wrap(err, fault.ChainUntrusted, name, "certificate %d is malformed", len(chain))
		}
		chain = append(chain, c)
		rest = next
	}
	if len(chain) == 0 {
		return nil, fault.New(fault.ChainUntrusted, name, "holds no certificate")
	}
	return chain, nil
}

// verifyChain builds the one path the block claims to a root of the pool, with
// every certificate valid now, and returns it with the root appended.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, now time.Time, t *tracer) ([]*x509.Certificate, error) {
	for i, c := range chain {
		t.certificate(c)
		err := checkKey(c)
		if err == nil {
			err = checkValidity(c, now)
		}
		if t.part(fmt.Sprintf("certificate %d", i), err) != nil {
			return nil, err
		}
	}
	leaf := chain[0]
	t.leafUsage(leaf)
	if err := t.part("usage", checkUsage(leaf)); err != nil {
		return nil, err
	}
	path, err := findPath(chain, roots, now)
	if err == nil {
		t.certificate(path[len(path)-1])
	}
	if t.part("path to a root", err) != nil {
		return nil, err
	}
	if err := corex509.ValidateCodeSigningCertChain(path, &now); err != nil {
		return nil, t.part("profile", fault.Wrap(err, fault.ChainUntrusted, certName(leaf), "the chain breaks the code signing profile"))
	}
	return path, t.part("profile", nil)
}

// findPath finds the path to a root of the pool, which must be what was sent.
func findPath(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) ([]*x509.Certificate, error) {
	leaf := chain[0]
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	if err != nil {
		reason := fault.ChainUntrusted
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			reason = fault.OutsideValidity // a root's: the block's own were looked at above
		}
		return nil, fault.Wrap(err, reason, certName(leaf), "no path to a root of the scope's trust stores").
			WithHint("the issuer is %q; its root must be in a store that the scope names", leaf.Issuer)
	}
	// The path must be exactly what was sent: a block that carries certificates
	// beside its path, or leaves some to be found elsewhere, is not one that we
	// would have written.
	i := slices.IndexFunc(paths, func(p []*x509.Certificate) bool {
		return len(p) == len(chain)+1 && slices.EqualFunc(p[:len(chain)], chain, (*x509.Certificate).Equal)
	})
	if i < 0 {
		return nil, fault.New(fault.ChainUntrusted, certName(leaf), "certificate_chain is not in the order of issue or holds certificates that are no part of the path")
	}
	path := paths[i]
	if err := checkKey(path[len(path)-1]); err != nil {
		return nil, err
	}
	return path, nil
}

// checkUsage demands what others leave optional: code signing, by name.
func checkUsage(leaf *x509.Certificate) error {
	switch {
	case leaf.IsCA:
		return fault.New(fault.ChainUntrusted, certName(leaf), "is a CA certificate, which may not sign agents")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fault.New(fault.ChainUntrusted, certName(leaf), "may not be used for digital signatures")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning):
		return fault.New(fault.ChainUntrusted, certName(leaf), "is not a code signing certificate")
	}
	return nil
}

func checkValidity(c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fault.New(fault.OutsideValidity, certName(c), "is not valid before %s", c.NotBefore.UTC().Format(timeLayout))
	case now.After(c.NotAfter):
		return fault.New(fault.OutsideValidity, certName(c), "expired at %s", c.NotAfter.UTC().Format(timeLayout))
	}
	return nil
}

func certName(c *x509.Certificate) string {
	return "certificate " + c.Subject.String()
}
