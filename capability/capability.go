package capability

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// untrusted is the trust level that is granted nothing whatever a policy says;
// signed has something of its own beside what the policy lists.
const (
	untrusted = "untrusted"
	signed    = "signed"
)

// reserved are paths that are never a guest's: the kernel's, and the host's own
// with its document and secrets.
var reserved = []string{"/proc", "/sys", "/dev", hostdoc.Dir}

// overlapsReserved tells whether a path is, is in, or leads to a reserved one.
func overlapsReserved(at string) bool {
	within := func(inner, outer string) bool {
		return inner == outer || strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
	}
	return slices.ContainsFunc(reserved, func(r string) bool { return within(at, r) || within(r, at) })
}

// Mount is a directory or file that the container was given.
type Mount struct {
	// Source is where it comes from, Destination where the container sees it.
	Source, Destination string
	ReadOnly            bool
}

// Given is what the container was given beside its image.
type Given struct {
	Mounts []Mount
	Env    map[string]string
}

// Request is everything a decision depends on.
type Request struct {
	// Manifest is the agent's; nil for plain WASM, which may ask for nothing.
	Manifest *manifest.Manifest
	// Trust is the agent's trust level.
	Trust string
	// Rules are those of the node's policy that are about this agent, in their
	// order.
	Rules []Rule
	// Serving is what the node serves capabilities with.
	Serving Serving
	// Given is what the container was given.
	Given Given
	// Operator makes Given and Allow grants: the flags of one's own run. Rules may
	// add to them, and their denials hold for flags, too.
	Operator bool
	Allow    []manifest.Capability
}

// Decision is one judged wish.
type Decision struct {
	// Capability is the canonical string, or [FullNetwork].
	Capability string `json:"capability"`
	Allowed    bool   `json:"allowed"`
	// Rule is what decided: the name of a rule of the policy, or one of the Rule
	// constants.
	Rule string `json:"rule"`
	// Reason says in a sentence why it was denied.
	Reason string `json:"reason,omitempty"`
	// As is what was granted of it where that is not all, and RestRule what
	// decided about the rest.
	As       []string `json:"as,omitempty"`
	RestRule string   `json:"rest_rule,omitempty"`
	// DryRun are the rules in dry run that would deny a part of it.
	DryRun []string `json:"dry_run,omitempty"`
}

// Grant is what the agent may do.
type Grant struct {
	// Preopens name directories of the container; Host and Guest are equal
	// unless an operator mapped them.
	Preopens []hostdoc.Preopen
	// TempDirs are empty directories to make for the run, path to bytes.
	TempDirs map[string]int64
	// Env is what the guest sees, as NAME=VALUE, sorted.
	Env []string
	// Grants are the granted strings, canonical and sorted, with their rules.
	// Holes are what denials cut out of them.
	Grants []hostdoc.Grant
	Holes  []hostdoc.Hole
	// Config answers get_config.
	Config map[string]string
	// Network, LLM, Media and Extensions are how what was granted is served; nil
	// where nothing was. Paths are the node's.
	Network    *hostdoc.Network
	LLM        *hostdoc.LLM
	Media      *hostdoc.Media
	Extensions []hostdoc.Extension
	// Secrets are what the host needs, by the names that Network, LLM and Media
	// use. Whoever prepares the run reads them.
	Secrets map[string]Secret
	// Withheld has one line for each thing given and not granted.
	Withheld  []string
	Decisions []Decision

	full string // the rule that allows every public host
}

// Capabilities are the granted strings, never nil.
func (g *Grant) Capabilities() []string {
	list := make([]string, len(g.Grants))
	for i := range g.Grants {
		list[i] = g.Grants[i].Capability
	}
	return list
}

// Denials are the wishes that were not granted, or not all of them.
func (g *Grant) Denials() []hostdoc.Denial {
	var list []hostdoc.Denial
	for _, d := range g.Decisions {
		switch {
		case d.Capability == FullNetwork:
		case !d.Allowed:
			list = append(list, hostdoc.Denial{Capability: d.Capability, Rule: d.Rule, Reason: d.Reason})
		case d.RestRule != "":
			list = append(list, hostdoc.Denial{Capability: d.Capability, Rule: d.RestRule, Reason: "only " + strings.Join(d.As, ", ") + " of it is granted: " + reason(d.RestRule)})
		}
	}
	return list
}

// reason says what a rule means, for who is told of a denial.
func reason(rule string) string {
	switch rule {
	case RuleManifest:
		return "the manifest does not ask for it, or takes it back"
	case RulePolicy:
		return "no rule of the node's policy grants it at this trust level"
	case RuleTrust:
		return "an untrusted agent is granted nothing"
	case RuleContainer:
		return "the container has something else at that path"
	case RuleNode:
		return "the node has nothing that serves it"
	case RuleOperator:
		return "no flag of this run grants it"
	}
	return fmt.Sprintf("the rule %q of the node's policy denies it", rule)
}

// Effective computes the grant. It does no input or output.
func Effective(r Request) Grant {
	g := Grant{Config: map[string]string{}}
	if r.Manifest != nil {
		maps.Copy(g.Config, r.Manifest.Config)
	}
	j := newJudge(&r)
	granted := g.list(j)
	g.full = j.full()
	g.serve(&r, granted)
	if r.Operator {
		g.operator(&r, j)
	} else {
		g.mounts(&r, j)
		g.tempDirs(&r, j)
		g.env(&r, j)
	}
	for _, grant := range g.Grants {
		if c, err := manifest.ParseCapability(grant.Capability); err == nil && !slices.Contains(granted, c) {
			granted = append(granted, c)
		}
	}
	g.Holes = j.holes(granted, g.full != "")
	g.Decisions = j.decisions
	return g
}

// list intersects the manifest's capabilities with the policy's.
func (g *Grant) list(j *judge) []manifest.Capability {
	rules := map[manifest.Capability]string{}
	for _, want := range j.asked {
		for _, p := range j.wish(want) {
			if _, ok := rules[p.Capability]; !ok {
				rules[p.Capability] = p.rule
			}
		}
	}
	granted := slices.SortedFunc(maps.Keys(rules), func(a, b manifest.Capability) int { return cmp.Compare(a.String(), b.String()) })
	for _, c := range granted {
		g.Grants = append(g.Grants, hostdoc.Grant{Capability: c.String(), Rule: rules[c]})
	}
	return granted
}

// mounts turns granted mounts into preopens, as narrow as the narrowest side.
func (g *Grant) mounts(r *Request, j *judge) {
	for _, m := range r.Given.Mounts {
		at := path.Clean(m.Destination)
		switch {
		case overlapsReserved(at):
			g.Withheld = append(g.Withheld, "withheld mount "+at+": no agent can be given that path")
			continue
		case g.holdsSecret(at):
			g.Withheld = append(g.Withheld, "withheld mount "+at+": it holds a secret that the host alone reads")
			continue
		}
		read, rule := j.whole(filesystem(manifest.AccessRead, at))
		write, _ := j.whole(filesystem(manifest.AccessWrite, at))
		write = write && !m.ReadOnly && preopenMode(r.Manifest, at) != manifest.ModeReadOnly
		if !read {
			g.withhold("mount "+at, filesystem(accessOf(m), at), rule)
			continue
		}
		g.Preopens = append(g.Preopens, hostdoc.Preopen{Host: at, Guest: at, ReadOnly: !write})
	}
}

// preopenMode is what the manifest's two lists of preopens say of a path.
func preopenMode(m *manifest.Manifest, at string) string {
	if m == nil {
		return ""
	}
	var lists []manifest.Preopens
	if m.WASM != nil && m.WASM.WASI != nil {
		lists = append(lists, m.WASM.WASI.Preopens)
	}
	if m.Sandbox != nil && m.Sandbox.Filesystem != nil {
		lists = append(lists, m.Sandbox.Filesystem.Preopens)
	}
	mode := ""
	for _, l := range lists {
		if said, ok := l[at]; ok && mode != manifest.ModeReadOnly {
			mode = said
		}
	}
	return mode
}

func accessOf(m Mount) string {
	if m.ReadOnly {
		return manifest.AccessRead
	}
	return manifest.AccessReadWrite
}

func filesystem(access, at string) manifest.Capability {
	return manifest.Capability{Kind: manifest.KindFilesystem, Access: access, Path: at}
}

// tempDirs grants the manifest's temporary directories from SIGNED on, unless a
// rule denies to write there.
func (g *Grant) tempDirs(r *Request, j *judge) {
	if r.Manifest == nil || r.Manifest.Sandbox == nil || r.Manifest.Sandbox.Filesystem == nil {
		return
	}
	for _, at := range slices.Sorted(maps.Keys(r.Manifest.Sandbox.Filesystem.TempDirs)) {
		size := int64(r.Manifest.Sandbox.Filesystem.TempDirs[at])
		at = path.Clean(at)
		want := filesystem(manifest.AccessReadWrite, at)
		d := Decision{Capability: want.String()}
		taken := slices.ContainsFunc(g.Preopens, func(p hostdoc.Preopen) bool { return p.Guest == at })
		denial := denialOf(j.enforced, want, manifest.Capability.DeniesPart)
		switch {
		case !j.trusted:
			j.decide(d, RuleTrust)
			continue
		case taken, overlapsReserved(at):
			j.decide(d, RuleContainer)
			continue
		case denial != "":
			j.decide(d, denial)
			continue
		}
		if g.TempDirs == nil {
			g.TempDirs = map[string]int64{}
		}
		g.TempDirs[at] = size
		g.Preopens = append(g.Preopens, hostdoc.Preopen{Host: at, Guest: at})
		d.Allowed = true
		j.decide(d, RuleTrust)
	}
}

// manifestEnv are the variables with values of the manifest's own that are
// granted.
func manifestEnv(r *Request, j *judge) map[string]string {
	values := map[string]string{}
	if r.Manifest == nil || r.Manifest.WASM == nil || r.Manifest.WASM.WASI == nil {
		return values
	}
	for _, kv := range r.Manifest.WASM.WASI.Env {
		name, value, _ := strings.Cut(kv, "=")
		if ok, _ := j.whole(variable(name)); ok {
			values[name] = value
		}
	}
	return values
}

// env grants variables: the manifest's own values and the container's, which
// win where both name one.
func (g *Grant) env(r *Request, j *judge) {
	values := manifestEnv(r, j)
	withheld := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(r.Given.Env)) {
		if ok, rule := j.whole(variable(name)); !ok {
			withheld[rule] = append(withheld[rule], name)
			continue
		}
		values[name] = r.Given.Env[name]
	}
	for _, rule := range slices.Sorted(maps.Keys(withheld)) {
		names := withheld[rule]
		g.Withheld = append(g.Withheld, fmt.Sprintf("withheld variables %s: %s", strings.Join(names, ", "), missing(variable(names[0]), rule)))
	}
	g.Env = pairs(values)
}

func variable(name string) manifest.Capability {
	return manifest.Capability{Kind: manifest.KindEnv, Name: name}
}

func pairs(values map[string]string) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		list = append(list, name+"="+values[name])
	}
	return list
}

func (g *Grant) withhold(what string, c manifest.Capability, rule string) {
	g.Withheld = append(g.Withheld, "withheld "+what+": "+missing(c, rule))
}

// missing says which side lacks what.
func missing(c manifest.Capability, rule string) string {
	switch rule {
	case RuleManifest:
		return fmt.Sprintf("the manifest does not ask for %q", c)
	case RulePolicy:
		return fmt.Sprintf("no rule of the node's policy grants %q at this trust level", c)
	case RuleTrust, RuleOperator:
		return reason(rule)
	}
	return fmt.Sprintf("the rule %q of the node's policy denies a part of %q", rule, c)
}

// operator grants what the flags of one's own run name.
func (g *Grant) operator(r *Request, j *judge) {
	give := func(what string, c manifest.Capability) bool {
		if rule := denialOf(j.enforced, c, manifest.Capability.DeniesPart); rule != "" {
			g.withhold(what, c, rule)
			return false
		}
		if !slices.ContainsFunc(g.Grants, func(have hostdoc.Grant) bool { return have.Capability == c.String() }) {
			g.Grants = append(g.Grants, hostdoc.Grant{Capability: c.String(), Rule: RuleOperator})
		}
		// The flag decides whatever was said of the manifest's wish before.
		j.decisions = slices.DeleteFunc(j.decisions, func(d Decision) bool { return d.Capability == c.String() })
		j.decide(Decision{Capability: c.String(), Allowed: true}, RuleOperator)
		return true
	}
	for _, m := range r.Given.Mounts {
		at := path.Clean(m.Destination)
		if g.holdsSecret(at) {
			g.Withheld = append(g.Withheld, "withheld directory "+at+": it holds a secret that the host alone reads")
			continue
		}
		if give("directory "+at, filesystem(accessOf(m), at)) {
			g.Preopens = append(g.Preopens, hostdoc.Preopen{Host: m.Source, Guest: at, ReadOnly: m.ReadOnly})
		}
	}
	values := manifestEnv(r, j)
	for _, name := range slices.Sorted(maps.Keys(r.Given.Env)) {
		if give("variable "+name, variable(name)) {
			values[name] = r.Given.Env[name]
		}
	}
	g.Env = pairs(values)
	slices.SortFunc(g.Grants, func(a, b hostdoc.Grant) int { return cmp.Compare(a.Capability, b.Capability) })
}
