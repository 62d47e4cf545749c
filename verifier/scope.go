package verifier

import "github.com/mentatlab/mentat/manifest/imageref"

// scope returns the scope with the most specific pattern for the name, nil if
// none covers it. Patterns are unique over all scopes, so there is no tie.
func (p *Policy) scope(n imageref.Name) *scope {
	var found *scope
	best := 0
	for i := range p.scopes {
		for _, m := range p.scopes[i].patterns {
			if s := m.Specificity(n.Repository); s > best {
				found, best = &p.scopes[i], s
			}
		}
	}
	return found
}
