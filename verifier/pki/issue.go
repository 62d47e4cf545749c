package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	corex509 "github.com/notaryproject/notation-core-go/x509"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
)

// serverLife is how long a server's certificate counts: it is made anew while
// the server runs.
const serverLife = 7 * day

// LeafOptions say what a developer's certificate shall hold.
type LeafOptions struct {
	// Email identifies the developer; policies name it.
	Email string
	// Validity is at most a year, the default.
	Validity time.Duration
	Now      time.Time
}

func (o LeafOptions) check() (email string, end time.Time, err error) {
	if email, err = normalEmail(o.Email); err != nil {
		return "", time.Time{}, err
	}
	end = o.Now.AddDate(leafYears, 0, 0)
	if o.Validity < 0 || o.Now.Add(o.Validity).After(end) {
		return "", time.Time{}, fault.New(fault.Usage, "validity", "%s is not between 0 and a year", o.Validity)
	}
	if o.Validity > 0 {
		end = o.Now.Add(o.Validity)
	}
	return email, end, nil
}

// CheckRequest refuses a request whose key is none that this CA certifies, or
// that does not prove possession of its key. The key's size comes first: proving
// takes time that grows with it. Reasons: [fault.Usage], [fault.SignatureInvalid].
func CheckRequest(csr *x509.CertificateRequest) error {
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return err
	}
	if err := csr.CheckSignature(); err != nil {
		return fault.Wrap(err, fault.SignatureInvalid, "certificate request", "does not prove possession of its key")
	}
	return nil
}

// IssueLeaf issues a code signing certificate for the request's key and returns
// the chain, leaf first, without the root. Nothing but the key is taken from the
// request. Reasons: those of [CheckRequest], [fault.Revoked] for a key that was
// compromised.
func (ca *CA) IssueLeaf(csr *x509.CertificateRequest, o LeafOptions) ([]*x509.Certificate, error) {
	return ca.issueLeaf(csr, o, func(database) (*Record, error) { return nil, nil }, nil)
}

// issueLeaf issues in one transaction: allow is asked first and may name the
// certificate that this one renews, done is told last.
func (ca *CA) issueLeaf(csr *x509.CertificateRequest, o LeafOptions, allow func(database) (*Record, error), done func(database, *x509.Certificate) error) ([]*x509.Certificate, error) {
	if err := CheckRequest(csr); err != nil {
		return nil, err
	}
	email, end, err := o.check()
	if err != nil {
		return nil, err
	}
	key, err := ca.agentKey()
	if err != nil {
		return nil, err
	}
	var leaf *x509.Certificate
	err = ca.update(func(d database) error {
		from, err := allow(d)
		if err != nil {
			return err
		}
		if d.tx.Bucket(compromisedBucket).Get([]byte(hashOf(csr.RawSubjectPublicKeyInfo))) != nil {
			return fault.New(fault.Revoked, "certificate request", "its key was revoked as compromised").WithHint("make a new key")
		}
		if leaf, err = ca.certifyLeaf(email, end, csr.PublicKey, key, o.Now); err != nil {
			return err
		}
		if err := d.add(leaf, from, o.Now); err != nil || done == nil {
			return err
		}
		return done(d, leaf)
	})
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{leaf, ca.agent}, nil
}

// certifyLeaf follows the developer's profile of specification §2.4.
func (ca *CA) certifyLeaf(email string, end time.Time, pub crypto.PublicKey, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	leaf, err := ca.certify(&x509.Certificate{
		Subject:               ca.info.name(email),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
		EmailAddresses:        []string{email},
		CRLDistributionPoints: ca.info.crlURL(AgentCRL),
		OCSPServer:            ca.info.ocspURL(),
	}, ca.agent, pub, key, now)
	if err != nil {
		return nil, err
	}
	if err := corex509.ValidateCodeSigningCertChain([]*x509.Certificate{leaf, ca.agent, ca.root}, &now); err != nil {
		return nil, fault.Wrap(err, fault.Internal, email, "the certificate just issued breaks the profile")
	}
	return leaf, nil
}

// Renew issues a certificate for whom old, which this CA issued, was issued for.
// The caller has seen proof that the asker holds old's key. Reasons: those of
// [CA.IssueLeaf], [fault.IdentityUntrusted] for a certificate that is not this
// CA's or no developer's, [fault.Revoked], [fault.OutsideValidity].
func (ca *CA) Renew(csr *x509.CertificateRequest, old *x509.Certificate, o LeafOptions) ([]*x509.Certificate, error) {
	if len(old.EmailAddresses) != 1 || !slices.Contains(old.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) {
		return nil, fault.New(fault.IdentityUntrusted, old.Subject.String(), "is no developer's certificate")
	}
	o.Email = old.EmailAddresses[0]
	return ca.issueLeaf(csr, o, func(d database) (*Record, error) {
		c, err := d.find(serialText(old.SerialNumber))
		switch {
		case err != nil:
			return nil, err
		case c == nil || c.Fingerprint != fingerprint(old):
			return nil, fault.New(fault.IdentityUntrusted, old.Subject.String(), "is none that this CA issued")
		case !c.Revoked.IsZero():
			return nil, fault.New(fault.Revoked, c.Subject, "was revoked at %s: %s", c.Revoked.Format(time.RFC3339), c.Reason)
		case o.Now.Before(c.NotBefore) || o.Now.After(c.NotAfter):
			return nil, fault.New(fault.OutsideValidity, c.Subject, "counts from %s to %s", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339)).
				WithHint("ask the CA's keeper for a token and request a new certificate")
		}
		return c.Record, nil
	}, nil)
}

// hostname is what may stand in a server's certificate.
var hostname = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// IssueServer makes a key and a certificate for a server of this CA under these
// host names and addresses. The key is nowhere but in what is returned. The chain
// holds the root, too. No verifier takes it for a signer's: it is not for code
// signing.
func (ca *CA) IssueServer(names []string, now time.Time) (*tls.Certificate, error) {
	if len(names) == 0 {
		return nil, fault.New(fault.Usage, "server certificate", "has no host name")
	}
	t := &x509.Certificate{
		Subject: ca.info.name("CA server"), NotAfter: now.Add(serverLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, CRLDistributionPoints: ca.info.crlURL(AgentCRL),
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
			continue
		}
		if name = strings.ToLower(name); len(name) > 253 || !hostname.MatchString(name) {
			return nil, fault.New(fault.Usage, "server certificate", "%q is neither a host name nor an address", name)
		}
		t.DNSNames = append(t.DNSNames, name)
	}
	c, own, err := ca.issueOwn(t, now)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{c.Raw, ca.agent.Raw, ca.root.Raw}, PrivateKey: own, Leaf: c}, nil
}

// issueOwn certifies a key of the server's own, which is kept nowhere.
func (ca *CA) issueOwn(t *x509.Certificate, now time.Time) (*x509.Certificate, crypto.Signer, error) {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "key", "cannot generate")
	}
	key, err := ca.agentKey()
	if err != nil {
		return nil, nil, err
	}
	c, err := ca.certify(t, ca.agent, own.Public(), key, now)
	if err != nil {
		return nil, nil, err
	}
	return c, own, ca.update(func(d database) error { return d.add(c, nil, now) })
}

// Chain is the chain of a certificate that this CA issued, leaf first, without
// the root. Reasons: [fault.NotFound]; [fault.Unsupported] for a certificate from
// before the CA kept them, of which it knows only the fingerprint.
func (ca *CA) Chain(serial *big.Int) ([]*x509.Certificate, error) {
	var c *certificate
	err := ca.view(func(d database) (err error) {
		c, err = d.find(serialText(serial))
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		return nil, fault.New(fault.NotFound, "serial number "+serialText(serial), "is none that this CA issued")
	case serial.Cmp(ca.agent.SerialNumber) == 0:
		return []*x509.Certificate{ca.agent}, nil
	case ca.services != nil && serial.Cmp(ca.services.cert.SerialNumber) == 0:
		return []*x509.Certificate{ca.services.cert}, nil
	case c.DER == nil:
		return nil, fault.New(fault.Unsupported, "serial number "+c.Serial, "its certificate was not kept; its fingerprint is %s", c.Fingerprint)
	}
	leaf, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, ca.path(databaseFile), "certificate %s is malformed", c.Serial)
	}
	if ca.stamping(c) {
		return []*x509.Certificate{leaf}, nil
	}
	return []*x509.Certificate{leaf, ca.agent}, nil
}

// ReplaceCert writes a chain over the one in path, whole or not at all.
func ReplaceCert(path string, chain []*x509.Certificate) error {
	if err := atomicfile.Write(path, encodeCert(chain...), 0o644); err != nil {
		return fault.Wrap(err, fault.AccessDenied, path, "cannot be written")
	}
	return nil
}
