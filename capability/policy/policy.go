package policy

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest/imageref"
)

// Policy is a node's capability policy. It does not change; make one with
// [Parse] or [Open].
type Policy struct {
	file    string
	rules   []rule
	serving capability.Serving
}

// rule is a rule with whom it is about.
type rule struct {
	capability.Rule
	line   int
	agents []string
	trust  []string
	scopes []imageref.Pattern
}

// Subject is whom a rule can be about.
type Subject struct {
	// Agent is the agent's id, as its manifest says.
	Agent string
	// Trust is its trust level.
	Trust string
	// Reference is the image's, "" where it is unknown.
	Reference string
}

// Open reads the policy that a node's configuration names. Without one there
// are no rules: agents have what their trust level gives everyone. Reason of its
// errors: [fault.PolicyInvalid].
func Open(c nodeconfig.Capability) (*Policy, error) {
	p := &Policy{serving: capability.Defaults()}
	if c.Policy != "" {
		var err error
		if p, err = Load(c.Policy); err != nil {
			return nil, err
		}
	}
	if p.serving.MediaDir == "" && p.serving.MediaS3 == nil {
		p.serving.MediaDir = c.Media
	}
	return p, nil
}

// Load reads a policy file.
func Load(path string) (*Policy, error) {
	data, err := limits.ReadFile(path, limits.PolicyBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, path, "cannot read the capability policy")
	}
	return Parse(path, data)
}

// Rules are the rules about one agent, in their order.
func (p *Policy) Rules(s Subject) []capability.Rule {
	name := imageref.Parse(s.Reference)
	var found []capability.Rule
	for i := range p.rules {
		if p.rules[i].mismatch(s, name) == "" {
			found = append(found, p.rules[i].Rule)
		}
	}
	return found
}

// Serving is what the node serves capabilities with.
func (p *Policy) Serving() capability.Serving { return p.serving }

// File is the policy's path, "" without one.
func (p *Policy) File() string { return p.file }

// mismatch says why a rule is not about an agent, "" if it is.
func (r *rule) mismatch(s Subject, name imageref.Name) string {
	switch {
	case s.Trust == levelUntrusted || s.Trust == "":
		return "an untrusted agent is granted nothing"
	case len(r.agents) > 0 && !slices.ContainsFunc(r.agents, func(g string) bool { return matches(g, s.Agent) }):
		return "it is not about this agent"
	case len(r.trust) > 0 && !slices.Contains(r.trust, s.Trust):
		return "it is not about this trust level"
	case len(r.scopes) > 0 && !slices.ContainsFunc(r.scopes, func(p imageref.Pattern) bool { return p.Specificity(name.Repository) > 0 }):
		return "it is not about this reference"
	}
	return ""
}

// matches compares a name with a pattern in which "*" stands for any text.
func matches(pattern, name string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	if !strings.HasPrefix(name, first) {
		return false
	}
	name = name[len(first):]
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(name, part)
		}
		at := strings.Index(name, part)
		if at < 0 {
			return false
		}
		name, rest = name[at+len(part):], more
	}
}

// Exists reports whether there is a policy file at a path; an error means that
// this cannot be told.
func Exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
