package verifier

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Store is a named set of roots. Only self-signed CA certificates can be in it.
type Store struct {
	name  string
	roots []*x509.Certificate
}

// NewStore makes a store of roots. Reason: [fault.PolicyInvalid].
func NewStore(name string, roots ...*x509.Certificate) (*Store, error) {
	if !validStoreName(name) {
		return nil, fault.New(fault.PolicyInvalid, "trust store "+name, "is not named like a directory")
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.PolicyInvalid, "trust store "+name, "holds no root certificate")
	}
	for _, c := range roots {
		if err := checkRoot(c); err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, "trust store "+name, "holds what is no root")
		}
	}
	return &Store{name: name, roots: roots}, nil
}

// loadStore reads the store dir/name: every entry must be a regular file named
// *.pem or *.crt with nothing but roots in it.
func loadStore(dir, name string) (*Store, error) {
	if !validStoreName(name) {
		return nil, fault.New(fault.PolicyInvalid, "trust store "+name, "is not named like a directory")
	}
	dir = filepath.Join(dir, name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, dir, "cannot read the trust store")
	}
	var roots []*x509.Certificate
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		ext := filepath.Ext(e.Name())
		if !e.Type().IsRegular() || (ext != ".pem" && ext != ".crt") {
			return nil, fault.New(fault.PolicyInvalid, file, "a trust store holds regular files named *.pem or *.crt only")
		}
		data, err := limits.ReadFile(file, limits.PolicyBytes)
		if err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, file, "cannot read the root certificate")
		}
		certs, err := ParseChain(file, data)
		if err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, "trust store "+name, "holds what is no root")
		}
		roots = append(roots, certs...)
	}
	return NewStore(name, roots...)
}

// LoadStores reads every store that the policy names from dir.
func LoadStores(dir string, p *Policy) (map[string]*Store, error) {
	stores := map[string]*Store{}
	for _, name := range p.stores() {
		s, err := loadStore(dir, name)
		if err != nil {
			return nil, err
		}
		stores[name] = s
	}
	return stores, nil
}

func checkRoot(c *x509.Certificate) error {
	switch {
	case !bytes.Equal(c.RawSubject, c.RawIssuer):
		return notSelfSigned(c)
	case !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fault.New(fault.PolicyInvalid, certName(c), "is not a CA certificate")
	}
	return checkKey(c)
}

func notSelfSigned(c *x509.Certificate) error {
	return fault.New(fault.PolicyInvalid, certName(c), "is not self-signed; a trust store holds roots only")
}

func validStoreName(s string) bool {
	return s != "" && len(s) <= 64 && s[0] != '.' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}
