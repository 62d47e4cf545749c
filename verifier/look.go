package verifier

import (
	"crypto/x509"
	"slices"
	"time"
)

// Grace is how long a revocation list counts past its own end.
func (p *Policy) Grace() time.Duration { return p.grace }

// ScopeInfo is what can be known of a scope without judging anything.
type ScopeInfo struct {
	Name string
	// Patterns are the references that it covers, in their one spelling.
	Patterns []string
	// Level is how strict it is.
	Level Level
	// Notation tells that it accepts Notary Project signatures.
	Notation bool
}

// Scopes are the policy's scopes in the order in which they are written.
func (p *Policy) Scopes() []ScopeInfo {
	var all []ScopeInfo
	for _, s := range p.scopes {
		info := ScopeInfo{Name: s.name, Level: levels[s.level], Notation: s.notation}
		for _, m := range s.patterns {
			info.Patterns = append(info.Patterns, m.String())
		}
		all = append(all, info)
	}
	return all
}

// OCSP are the responders that the policy has asked.
func (p *Policy) OCSP() []OCSPSource { return slices.Clone(p.ocsp) }

// RevocationList is the list of an issuer that a judgement would use, nil for none. An
// error beside a list says why it may not be the newest.
func (v *Verifier) RevocationList(issuer *x509.Certificate) (*CRLIndex, error) {
	if v.revocation == nil {
		return nil, nil
	}
	return v.revocation.Index(issuer)
}

// Roots are the store's certificates; none of no store.
func (s *Store) Roots() []*x509.Certificate {
	if s == nil {
		return nil
	}
	return slices.Clone(s.roots)
}
