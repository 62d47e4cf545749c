package verifier

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// identityFile is one of a scope's identity_patterns.
type identityFile struct {
	Issuer string `yaml:"issuer"`
	Email  string `yaml:"email"`
	Store  string `yaml:"store"`
}

// identityPattern covers the addresses that one issuer certifies: an address means
// what its issuer says it means.
type identityPattern struct {
	issuer string // distinguished name as Go prints it
	local  string // with * for any text
	domain string // with its @, in lower case
	store  string // of the root at the chain's end; "" for any of the scope's
}

func (c *policyCompiler) identityPatterns(path string, list []identityFile, stores []string) []identityPattern {
	var out []identityPattern
	for i, f := range list {
		at := strictyaml.Index(path, i)
		if f.Issuer == "" {
			c.fail(at, "issuer is required: the distinguished name of the authority that certifies the address")
		}
		local, domain, ok := strings.Cut(f.Email, "@")
		// A domain with a star would be one that anybody can register.
		if !ok || normalEmail(strings.ReplaceAll(local, "*", "x")+"@"+domain) == "" || strings.Contains(domain, "*") {
			c.fail(strictyaml.Key(at, "email"), "%q is not of the form NAME@DOMAIN, where * stands for any text in NAME only", f.Email)
		}
		if f.Store != "" && !slices.Contains(stores, f.Store) {
			c.fail(strictyaml.Key(at, "store"), "%q is none of the scope's stores", f.Store)
		}
		out = append(out, identityPattern{f.Issuer, local, "@" + strings.ToLower(domain), f.Store})
	}
	return out
}

// fits tells whether the pattern covers an address in normal form that the first
// certificate of a verified path carries.
func (p identityPattern) fits(email string, path []*x509.Certificate, stores map[string]*Store) bool {
	local, ok := strings.CutSuffix(email, p.domain)
	if !ok || local == "" || strings.Contains(local, "@") || path[1].Subject.String() != p.issuer || !glob(p.local, local) {
		return false
	}
	return p.store == "" || stores[p.store] != nil && slices.ContainsFunc(stores[p.store].roots, path[len(path)-1].Equal)
}

func (p identityPattern) String() string {
	text := fmt.Sprintf("%s%s by %q", p.local, p.domain, p.issuer)
	if p.store != "" {
		text += " below the store " + p.store
	}
	return text
}

// glob tells whether * in the pattern can stand for texts that make it s.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	s, ok := strings.CutPrefix(s, parts[0])
	if len(parts) == 1 {
		return ok && s == ""
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return ok && strings.HasSuffix(s, parts[len(parts)-1])
}
