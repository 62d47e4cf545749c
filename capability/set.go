package capability

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// Answer is what a [Set] says to a request.
type Answer struct {
	Allowed bool
	// Rule names what decided, Reason says why it was denied, in a sentence, and
	// Hint what would ask for it.
	Rule, Reason, Hint string
	// DryRun are the rules in dry run that would have denied it.
	DryRun []string
}

// Set is what one host may do for its guest: the grants of a host document with
// the holes in them. It does not change and may be used from several
// goroutines.
type Set struct {
	grants  []held
	denials []denied
	holes   []hole
	full    string // the rule of [hostdoc.NetworkFull]
}

type held struct {
	manifest.Capability
	rule string
}

type denied struct {
	manifest.Capability
	rule, reason string
}

type hole struct {
	manifest.Capability
	hostdoc.Hole
}

// NewSet reads what a document grants. A string that cannot be read is an
// error: a grant that means nothing would be harmless, a denial would not.
func NewSet(doc *hostdoc.Document) (*Set, error) {
	s := &Set{}
	for _, g := range doc.Grants {
		c, err := manifest.ParseCapability(g.Capability)
		if err != nil {
			return nil, err
		}
		s.grants = append(s.grants, held{c, g.Rule})
	}
	for _, d := range doc.Denials {
		c, err := manifest.ParseCapability(d.Capability)
		if err != nil {
			return nil, err
		}
		s.denials = append(s.denials, denied{c, d.Rule, d.Reason})
	}
	for _, h := range doc.Holes {
		c, err := manifest.ParseCapability(h.Capability)
		if err != nil {
			return nil, err
		}
		s.holes = append(s.holes, hole{c, h})
	}
	if n := doc.Network; n != nil && n.Mode == hostdoc.NetworkFull {
		s.full = n.FullRule
		if s.full == "" {
			s.full = RulePolicy
		}
	}
	return s, nil
}

// Request answers whether a capability may be opened: a grant must cover all of
// it, and no denial all of it. What a denial cuts out of it is refused when it
// is used.
func (s *Set) Request(c manifest.Capability) Answer {
	return s.answer(c, manifest.Capability.Denies)
}

// Use answers whether something may be done: c names it to the last detail, with
// host, port and path. Whatever a denial touches is refused.
func (s *Set) Use(c manifest.Capability) Answer {
	return s.answer(c, manifest.Capability.DeniesPart)
}

// Address answers whether a network request may go to an address that its host
// resolved to. Only denials are asked: that the name was granted, and whether
// the address is public, is judged elsewhere.
func (s *Set) Address(c manifest.Capability, addr netip.Addr) Answer {
	a := Answer{Allowed: true}
	s.cut(&a, c.At(addr), manifest.Capability.DeniesPart)
	return a
}

func (s *Set) answer(c manifest.Capability, covers func(denial, c manifest.Capability) bool) Answer {
	a := Answer{}
	if i := slices.IndexFunc(s.grants, func(g held) bool { return g.Allows(c) }); i >= 0 {
		a.Allowed, a.Rule = true, s.grants[i].rule
	} else if rule := s.together(c); rule != "" {
		a.Allowed, a.Rule = true, rule
	} else if c.Kind == manifest.KindNetwork && s.full != "" {
		a.Allowed, a.Rule = true, s.full
	}
	if !a.Allowed {
		return s.missing(c)
	}
	s.cut(&a, c, covers)
	return a
}

// together is the rule of a grant that, with others, covers a request that none
// covers alone; "" if they do not.
func (s *Set) together(c manifest.Capability) string {
	if c.Kind != manifest.KindFilesystem || c.Access != manifest.AccessReadWrite {
		return ""
	}
	read, write := c, c
	read.Access, write.Access = manifest.AccessRead, manifest.AccessWrite
	reads := slices.IndexFunc(s.grants, func(g held) bool { return g.Allows(read) })
	writes := slices.IndexFunc(s.grants, func(g held) bool { return g.Allows(write) })
	if reads < 0 || writes < 0 {
		return ""
	}
	return s.grants[writes].rule
}

// cut applies the holes to an answer.
func (s *Set) cut(a *Answer, c manifest.Capability, covers func(denial, c manifest.Capability) bool) {
	for _, h := range s.holes {
		switch {
		case !covers(h.Capability, c):
		case h.DryRun:
			if !slices.Contains(a.DryRun, h.Rule) {
				a.DryRun = append(a.DryRun, h.Rule)
			}
		case a.Allowed:
			a.Allowed, a.Rule, a.Reason = false, h.Rule, reason(h.Rule)
		}
	}
	if !a.Allowed {
		a.DryRun = nil // nothing would have changed
	}
}

// missing says why no grant covers a request, and which line of the manifest
// would ask for it.
func (s *Set) missing(c manifest.Capability) Answer {
	for _, d := range s.denials {
		if d.Allows(c) {
			a := Answer{Rule: d.rule, Reason: d.reason}
			if a.Rule == RulePolicy {
				a.Hint = fmt.Sprintf("a rule of the node's capabilities.yaml must allow %s", c)
			}
			return a
		}
	}
	return Answer{Rule: RuleManifest, Reason: reason(RuleManifest), Hint: "add to wasm.capabilities: - " + c.String()}
}
