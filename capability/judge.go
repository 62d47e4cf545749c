package capability

import (
	"cmp"
	"slices"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// judge answers single requests and keeps a record of them.
type judge struct {
	asked   []manifest.Capability
	network *manifest.Network
	// enforced are the rules that decide, counted those that only count.
	enforced, counted []Rule
	serving           *Serving
	trusted           bool
	// lacking is who is named where nobody grants a wish.
	lacking   string
	decisions []Decision
}

func newJudge(r *Request) *judge {
	j := &judge{network: sandboxNetwork(r.Manifest), serving: &r.Serving, trusted: r.Trust != untrusted && r.Trust != "", lacking: RulePolicy}
	if r.Manifest != nil {
		j.asked = r.Manifest.Capabilities()
	}
	if r.Operator {
		j.operator(r.Allow)
	}
	for _, rule := range r.Rules {
		if rule.DryRun {
			j.counted = append(j.counted, rule)
		} else {
			j.enforced = append(j.enforced, rule)
		}
	}
	if r.Trust == signed && !r.Operator {
		j.enforced = append(j.enforced, signedDefaults)
	}
	return j
}

// operator makes what one's own flags allow a rule, the first one, and a wish of
// its own where the manifest does not ask for it.
func (j *judge) operator(allow []manifest.Capability) {
	j.trusted, j.lacking = true, RuleOperator
	j.enforced = []Rule{{Name: RuleOperator, Allow: allow}}
	j.asked = slices.Clone(j.asked)
	for _, c := range allow {
		if !slices.Contains(j.asked, c) {
			j.asked = append(j.asked, c)
		}
	}
}

// piece is a part of a wish that some rule grants.
type piece struct {
	manifest.Capability
	rule string
}

// wish judges one capability that the manifest asks for: of what it asks the
// parts that rules allow, less what the manifest takes back, what denials cover
// and what the node cannot serve.
func (j *judge) wish(want manifest.Capability) []piece {
	d := Decision{Capability: want.String()}
	if !j.trusted {
		j.decide(d, RuleTrust)
		return nil
	}
	allowed := j.allowed(want)
	if len(allowed) == 0 {
		// A rule that denies all of it says more than the lack of one that allows it.
		j.decide(d, cmp.Or(denialOf(j.enforced, want, manifest.Capability.Denies), j.lacking))
		return nil
	}
	open := j.narrow(allowed)
	left, denial := j.undenied(open)
	served := slices.DeleteFunc(slices.Clone(left), func(p piece) bool { return !j.serving.serves(p.Capability) })
	switch {
	case len(open) == 0:
		j.decide(d, RuleManifest)
		return nil
	case len(left) == 0:
		j.decide(d, denial)
		return nil
	case len(served) == 0:
		j.decide(d, RuleNode)
		return nil
	}
	d.Allowed = true
	if !covered(served, want) {
		d.As = texts(served)
		switch {
		case denial != "":
			d.RestRule = denial
		case covered(allowed, want) && !covered(open, want):
			d.RestRule = RuleManifest
		default:
			d.RestRule = j.lacking
		}
	}
	d.DryRun = j.wouldDeny(served)
	j.decide(d, served[0].rule)
	return served
}

// undenied leaves the pieces that no rule denies as a whole; denial is the first
// rule that took one.
func (j *judge) undenied(from []piece) (left []piece, denial string) {
	for _, p := range from {
		rule := denialOf(j.enforced, p.Capability, manifest.Capability.Denies)
		if rule == "" {
			left = append(left, p)
		}
		denial = cmp.Or(denial, rule)
	}
	return left, denial
}

// wouldDeny are the rules in dry run that would deny something of the pieces.
func (j *judge) wouldDeny(pieces []piece) []string {
	var names []string
	for _, rule := range j.counted {
		if slices.ContainsFunc(pieces, func(p piece) bool { return denies(rule, p.Capability, manifest.Capability.DeniesPart) }) {
			names = append(names, rule.Name)
		}
	}
	return names
}

func texts(pieces []piece) []string {
	list := make([]string, len(pieces))
	for i, p := range pieces {
		list[i] = p.String()
	}
	return list
}

func covered(pieces []piece, want manifest.Capability) bool {
	return slices.ContainsFunc(pieces, func(p piece) bool { return p.Allows(want) })
}

// allowed is what rules allow of a wish, the first rule's first. What an earlier
// part covers is not listed again.
func (j *judge) allowed(want manifest.Capability) []piece {
	var found []piece
	for _, rule := range j.enforced {
		for _, allow := range rule.Allow {
			for _, c := range allow.Intersect(want) {
				if !slices.ContainsFunc(found, func(p piece) bool { return p.Allows(c) }) {
					found = append(found, piece{c, rule.Name})
				}
			}
		}
	}
	return found
}

// narrow takes away what the manifest's own sandbox.network takes back.
func (j *judge) narrow(from []piece) []piece {
	if j.network == nil {
		return from
	}
	var left []piece
	for _, p := range from {
		for _, c := range narrow(p.Capability, j.network) {
			left = append(left, piece{c, p.rule})
		}
	}
	return left
}

// whole judges a request that cannot be granted in part, such as a mount: a
// denial of any part of it denies it.
func (j *judge) whole(c manifest.Capability) (ok bool, rule string) {
	switch {
	case !manifest.Allowed(j.asked, c):
		return false, RuleManifest
	case !j.trusted:
		return false, RuleTrust
	}
	if rule := denialOf(j.enforced, c, manifest.Capability.DeniesPart); rule != "" {
		return false, rule
	}
	var all []manifest.Capability
	for _, r := range j.enforced {
		if all = append(all, r.Allow...); manifest.Allowed(all, c) {
			return true, r.Name
		}
	}
	return false, j.lacking
}

// decide keeps a decision.
func (j *judge) decide(d Decision, rule string) {
	d.Rule = rule
	if !d.Allowed {
		d.Reason = reason(rule)
	}
	j.decisions = append(j.decisions, d)
}

// denialOf is the first rule that denies c, "" if none does.
func denialOf(rules []Rule, c manifest.Capability, covers func(denial, c manifest.Capability) bool) string {
	for _, r := range rules {
		if denies(r, c, covers) {
			return r.Name
		}
	}
	return ""
}

func denies(r Rule, c manifest.Capability, covers func(denial, c manifest.Capability) bool) bool {
	return slices.ContainsFunc(r.Deny, func(d manifest.Capability) bool { return covers(d, c) })
}

// holes are the denials that lie within grants. A denied address range is one
// for every name: what it resolves to is only known at the request.
func (j *judge) holes(grants []manifest.Capability, full bool) []hostdoc.Hole {
	network := full || slices.ContainsFunc(grants, func(c manifest.Capability) bool { return c.Kind == manifest.KindNetwork })
	var found []hostdoc.Hole
	for _, rule := range slices.Concat(j.enforced, j.counted) {
		for _, d := range rule.Deny {
			within := d.Kind == manifest.KindNetwork && (full || network && d.HostRange()) ||
				slices.ContainsFunc(grants, func(c manifest.Capability) bool { return d.DeniesPart(c) })
			hole := hostdoc.Hole{Capability: d.String(), Rule: rule.Name, DryRun: rule.DryRun}
			if within && !slices.Contains(found, hole) {
				found = append(found, hole)
			}
		}
	}
	return found
}

// full is the rule that lets the agent reach every public host, "" if none does
// or it does not ask for that.
func (j *judge) full() string {
	if j.network == nil || j.network.Mode != manifest.NetworkFull || j.network.AllowedHosts != nil {
		return ""
	}
	d := Decision{Capability: FullNetwork}
	if !j.trusted {
		j.decide(d, RuleTrust)
		return ""
	}
	for _, r := range j.enforced {
		if r.FullNetwork {
			d.Allowed = true
			j.decide(d, r.Name)
			return r.Name
		}
	}
	j.decide(d, j.lacking)
	return ""
}

// sandboxNetwork is what a manifest says a second time about the network.
func sandboxNetwork(m *manifest.Manifest) *manifest.Network {
	if m == nil || m.Sandbox == nil {
		return nil
	}
	return m.Sandbox.Network
}

// narrow returns what a manifest's sandbox.network leaves of c.
func narrow(c manifest.Capability, network *manifest.Network) []manifest.Capability {
	if c.Kind != manifest.KindNetwork {
		return []manifest.Capability{c}
	}
	if network.Mode == manifest.NetworkNone {
		return nil
	}
	hosts := []manifest.Capability{c}
	if network.AllowedHosts != nil {
		hosts = nil
		for _, host := range network.AllowedHosts {
			parsed, err := manifest.ParseCapability("network:https:" + host)
			if err != nil {
				continue // it names nothing, so it allows nothing
			}
			one := c
			one.Host = parsed.Host
			hosts = append(hosts, one.Intersect(c)...)
		}
	}
	var left []manifest.Capability
	for _, one := range hosts {
		left = append(left, openPorts(one, network.BlockedPorts)...)
	}
	return left
}

// openPorts returns what blocked ports leave of a network capability.
func openPorts(c manifest.Capability, blocked []int) []manifest.Capability {
	var left []manifest.Capability
	whole := true
	for _, one := range []struct {
		scheme string
		port   int
	}{{manifest.SchemeHTTP, 80}, {manifest.SchemeHTTPS, 443}} {
		if c.Scheme != one.scheme && c.Scheme != manifest.SchemeAny {
			continue
		}
		if slices.Contains(blocked, cmp.Or(c.Port, one.port)) {
			whole = false
			continue
		}
		open := c
		open.Scheme = one.scheme
		left = append(left, open)
	}
	if whole {
		return []manifest.Capability{c}
	}
	return left
}
