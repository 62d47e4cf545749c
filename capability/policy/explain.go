package policy

import (
	"slices"
	"strings"

	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// What a rule does about a capability.
const (
	Allows     = "allows"
	AllowsPart = "allows a part"
	Denies     = "denies"
	DeniesPart = "denies a part"
	WouldDeny  = "would deny" // a rule in dry run
	Silent     = "says nothing"
	NotAbout   = "is not about it"
)

// Step is what one rule says about one capability of one agent.
type Step struct {
	Rule string `json:"rule"`
	Line int    `json:"line"`
	// Effect is one of the constants above.
	Effect string `json:"effect"`
	// Of are the rule's entries that have the effect.
	Of []string `json:"of,omitempty"`
	// Why says why the rule is not about the agent.
	Why string `json:"why,omitempty"`
}

// Explain goes through all rules, in their order, and says of each what it does
// about a capability of an agent.
func (p *Policy) Explain(s Subject, c manifest.Capability) []Step {
	name := imageref.Parse(s.Reference)
	steps := make([]Step, 0, len(p.rules))
	for i := range p.rules {
		r := &p.rules[i]
		step := Step{Rule: r.Name, Line: r.line}
		if why := r.mismatch(s, name); why != "" {
			step.Effect, step.Why = NotAbout, why
		} else {
			step.Effect, step.Of = r.effect(c)
		}
		steps = append(steps, step)
	}
	return steps
}

// effect is the strongest thing that a rule does about a capability.
func (r *rule) effect(c manifest.Capability) (string, []string) {
	if of := covering(r.Deny, c, manifest.Capability.DeniesPart); len(of) > 0 {
		all := covering(r.Deny, c, manifest.Capability.Denies)
		switch {
		case r.DryRun:
			return WouldDeny, of
		case len(all) > 0:
			return Denies, all
		}
		return DeniesPart, of
	}
	if all := covering(r.Allow, c, manifest.Capability.Allows); len(all) > 0 {
		return Allows, all
	}
	if of := covering(r.Allow, c, manifest.Capability.Overlaps); len(of) > 0 {
		return AllowsPart, of
	}
	return Silent, nil
}

func covering(list []manifest.Capability, c manifest.Capability, covers func(have, c manifest.Capability) bool) []string {
	var found []string
	for _, have := range list {
		if covers(have, c) {
			found = append(found, have.String())
		}
	}
	return found
}

// Finding is what looks wrong in a policy that is well formed.
type Finding struct {
	// Line is 0 for what is not about one line.
	Line    int    `json:"line,omitempty"`
	Rule    string `json:"rule,omitempty"`
	Message string `json:"message"`
}

// Check looks for what has no effect: entries that a denial takes away
// altogether, and entries that another one of the same rule covers.
func (p *Policy) Check() []Finding {
	var found []Finding
	add := func(r *rule, message string) {
		found = append(found, Finding{Line: r.line, Rule: r.Name, Message: message})
	}
	for i := range p.rules {
		r := &p.rules[i]
		for k, a := range r.Allow {
			if by := p.takesAway(r, a); by != "" {
				add(r, "allow "+a.String()+" has no effect: the rule "+by+" denies all of it")
			}
			if by := broader(r.Allow, k); by != "" {
				add(r, "allow "+a.String()+" says nothing more than "+by)
			}
		}
		for k, d := range r.Deny {
			if by := broader(r.Deny, k); by != "" {
				add(r, "deny "+d.String()+" says nothing more than "+by)
			}
		}
	}
	return found
}

// takesAway is a rule about at least the same agents that denies all of what r
// allows, "" if there is none.
func (p *Policy) takesAway(r *rule, allowed manifest.Capability) string {
	for i := range p.rules {
		o := &p.rules[i]
		if !o.DryRun && o.atLeast(r) && slices.ContainsFunc(o.Deny, func(d manifest.Capability) bool { return d.Denies(allowed) }) {
			return o.Name
		}
	}
	return ""
}

// atLeast reports whether a rule is about all agents that another is about, as
// far as that can be told without knowing the agents.
func (r *rule) atLeast(o *rule) bool {
	within := func(mine, theirs []string, covers func(pattern, name string) bool) bool {
		return len(mine) == 0 || len(theirs) > 0 && !slices.ContainsFunc(theirs, func(t string) bool {
			return !slices.ContainsFunc(mine, func(m string) bool { return covers(m, t) })
		})
	}
	equal := func(a, b string) bool { return a == b }
	scopes := func(list []imageref.Pattern) []string {
		var texts []string
		for _, p := range list {
			texts = append(texts, p.String())
		}
		return texts
	}
	return within(r.agents, o.agents, func(pattern, name string) bool {
		return pattern == name || !strings.Contains(name, "*") && matches(pattern, name)
	}) && within(r.trust, o.trust, equal) && within(scopes(r.scopes), scopes(o.scopes), equal)
}

// broader is an entry that covers the k-th, and comes before it where both cover
// each other; "" if there is none.
func broader(list []manifest.Capability, k int) string {
	for i, other := range list {
		if i != k && other.Allows(list[k]) && (i < k || !list[k].Allows(other)) {
			return other.String()
		}
	}
	return ""
}

// Reference is a file of the node that a policy names.
type Reference struct {
	// Path is the file, For says to people what it is.
	Path, For string
	// Secret is true for a file that nobody but its owner may read, Program for
	// one that is run in a container that has nothing else.
	Secret, Program bool
}

// References are the files that the policy names, for who wants to see whether
// they are there.
func (p *Policy) References() []Reference {
	var found []Reference
	secret := func(path, what string) {
		if path != "" {
			found = append(found, Reference{Path: path, For: "the secret of " + what, Secret: true})
		}
	}
	for i := range p.rules {
		for _, in := range p.rules[i].Inject {
			secret(in.Secret.File, "the rule "+p.rules[i].Name)
		}
	}
	for _, provider := range p.serving.Providers {
		secret(provider.Secret.File, "the provider "+provider.Name)
	}
	if s3 := p.serving.MediaS3; s3 != nil {
		secret(s3.AccessKey.File, "the media store's access key")
		secret(s3.SecretKey.File, "the media store's secret key")
	}
	if p.serving.CAFile != "" {
		found = append(found, Reference{Path: p.serving.CAFile, For: "the certificate authorities of network.ca"})
	}
	for _, e := range p.serving.Extensions {
		found = append(found, Reference{Path: e.Command[0], For: "the program of the extension " + e.Name, Program: true})
	}
	return found
}

// Keys are all keys of the file, as [strictyaml.Keys] names them.
func Keys() []string { return strictyaml.Keys(policyFile{}) }
