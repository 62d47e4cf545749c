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

var signedDefaults = []manifest.Capability{
	{Kind: manifest.KindMedia, Access: manifest.AccessRead},
	{Kind: manifest.KindMedia, Access: manifest.AccessWrite},
}

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
	// Policy is what the node's policy allows at that level.
	Policy []manifest.Capability
	// Given is what the container was given.
	Given Given
	// Operator makes Given the whole grant: the flags of one's own run.
	Operator bool
}

// Who decided about a wish.
const (
	RuleManifest  = "manifest"  // the manifest does not ask for it, or takes it back
	RulePolicy    = "policy"    // the node's policy at the agent's trust level
	RuleTrust     = "trust"     // the trust level alone
	RuleContainer = "container" // the container has something else at that path
	RuleOperator  = "operator"  // the flags of one's own run
)

// Decision is one judged wish.
type Decision struct {
	// Capability is the canonical string.
	Capability string `json:"capability"`
	Allowed    bool   `json:"allowed"`
	// Rule is one of the Rule constants.
	Rule string `json:"rule"`
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
	Grants []hostdoc.Grant
	// Config answers get_config.
	Config map[string]string
	// Withheld has one line for each thing given and not granted.
	Withheld  []string
	Decisions []Decision
}

// Capabilities are the granted strings, never nil.
func (g *Grant) Capabilities() []string {
	list := make([]string, len(g.Grants))
	for i := range g.Grants {
		list[i] = g.Grants[i].Capability
	}
	return list
}

// Denials are the wishes that were not granted.
func (g *Grant) Denials() []hostdoc.Denial {
	var list []hostdoc.Denial
	for _, d := range g.Decisions {
		if !d.Allowed {
			list = append(list, hostdoc.Denial{Capability: d.Capability, Rule: d.Rule, Reason: reasons[d.Rule]})
		}
	}
	return list
}

// reasons says what a rule means, for who is told of a denial.
var reasons = map[string]string{
	RuleManifest:  "the manifest does not ask for it, or takes it back",
	RulePolicy:    "the node's policy does not grant it at this trust level",
	RuleTrust:     "an untrusted agent is granted nothing",
	RuleContainer: "the container has something else at that path",
}

// Effective computes the grant. It does no input or output.
func Effective(r Request) Grant {
	g := Grant{Config: map[string]string{}}
	if r.Manifest != nil {
		maps.Copy(g.Config, r.Manifest.Config)
	}
	if r.Operator {
		g.operator(r)
		return g
	}
	d := decider{network: sandboxNetwork(r.Manifest), asked: asked(r.Manifest), policy: r.Policy, trusted: r.Trust != untrusted && r.Trust != ""}
	if r.Trust == signed {
		d.policy = append(slices.Clone(r.Policy), signedDefaults...)
	}
	g.list(&d)
	g.mounts(r, &d)
	g.tempDirs(r, &d)
	g.env(r, &d)
	g.Decisions = d.decisions
	return g
}

func asked(m *manifest.Manifest) []manifest.Capability {
	if m == nil {
		return nil
	}
	return m.Capabilities()
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
	if c.Kind != manifest.KindNetwork || network == nil {
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
			switch {
			case one.Allows(c):
				hosts = append(hosts, c)
			case c.Allows(one):
				hosts = append(hosts, one)
			}
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
	for scheme, port := range map[string]int{manifest.SchemeHTTP: 80, manifest.SchemeHTTPS: 443} {
		if c.Scheme != scheme && c.Scheme != manifest.SchemeAny {
			continue
		}
		if slices.Contains(blocked, cmp.Or(c.Port, port)) {
			whole = false
			continue
		}
		one := c
		one.Scheme = scheme
		left = append(left, one)
	}
	if whole {
		return []manifest.Capability{c}
	}
	return left
}

// decider answers single requests and keeps a record of them.
type decider struct {
	network       *manifest.Network
	asked, policy []manifest.Capability
	trusted       bool
	decisions     []Decision
}

// allows judges one request; rule names the side that said no.
func (d *decider) allows(c manifest.Capability) (ok bool, rule string) {
	switch {
	case !anyAllows(d.asked, c):
		return false, RuleManifest
	case !d.trusted:
		return false, RuleTrust
	case !anyAllows(d.policy, c):
		return false, RulePolicy
	}
	return true, RulePolicy
}

func (d *decider) record(c manifest.Capability, allowed bool, rule string) {
	d.decisions = append(d.decisions, Decision{Capability: c.String(), Allowed: allowed, Rule: rule})
}

func anyAllows(list []manifest.Capability, c manifest.Capability) bool {
	return slices.ContainsFunc(list, func(have manifest.Capability) bool { return have.Allows(c) })
}

// list intersects the manifest's capabilities with the policy's: of two that
// overlap, the narrower is granted.
func (g *Grant) list(d *decider) {
	granted := map[string]string{}
	for _, want := range d.asked {
		ok, rule := d.allows(want)
		found := []manifest.Capability{}
		if ok {
			found = append(found, want)
		} else if d.trusted {
			for _, have := range d.policy {
				if want.Allows(have) {
					found = append(found, have)
					ok, rule = true, RulePolicy
				}
			}
		}
		left := 0
		for _, c := range found {
			for _, c := range narrow(c, d.network) {
				granted[c.String()] = rule
				left++
			}
		}
		if ok && left == 0 {
			ok, rule = false, RuleManifest
		}
		d.record(want, ok, rule)
	}
	for _, c := range slices.Sorted(maps.Keys(granted)) {
		g.Grants = append(g.Grants, hostdoc.Grant{Capability: c, Rule: granted[c]})
	}
}

// mounts turns granted mounts into preopens, as narrow as the narrowest side.
func (g *Grant) mounts(r Request, d *decider) {
	for _, m := range r.Given.Mounts {
		at := path.Clean(m.Destination)
		if overlapsReserved(at) {
			g.Withheld = append(g.Withheld, "withheld mount "+at+": no agent can be given that path")
			continue
		}
		read, rule := d.allows(filesystem(manifest.AccessRead, at))
		write, _ := d.allows(filesystem(manifest.AccessWrite, at))
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

// tempDirs grants the manifest's temporary directories from SIGNED on.
func (g *Grant) tempDirs(r Request, d *decider) {
	if r.Manifest == nil || r.Manifest.Sandbox == nil || r.Manifest.Sandbox.Filesystem == nil {
		return
	}
	for _, at := range slices.Sorted(maps.Keys(r.Manifest.Sandbox.Filesystem.TempDirs)) {
		at = path.Clean(at)
		want := filesystem(manifest.AccessReadWrite, at)
		taken := slices.ContainsFunc(g.Preopens, func(p hostdoc.Preopen) bool { return p.Guest == at })
		switch {
		case !d.trusted:
			d.record(want, false, RuleTrust)
			continue
		case taken, overlapsReserved(at):
			d.record(want, false, RuleContainer)
			continue
		}
		if g.TempDirs == nil {
			g.TempDirs = map[string]int64{}
		}
		g.TempDirs[at] = int64(r.Manifest.Sandbox.Filesystem.TempDirs[at])
		g.Preopens = append(g.Preopens, hostdoc.Preopen{Host: at, Guest: at})
		d.record(want, true, RuleTrust)
	}
}

// env grants variables: the manifest's own values and the container's, which
// win where both name one.
func (g *Grant) env(r Request, d *decider) {
	values := map[string]string{}
	if r.Manifest != nil && r.Manifest.WASM != nil && r.Manifest.WASM.WASI != nil {
		for _, kv := range r.Manifest.WASM.WASI.Env {
			name, value, _ := strings.Cut(kv, "=")
			if ok, _ := d.allows(variable(name)); ok {
				values[name] = value
			}
		}
	}
	withheld := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(r.Given.Env)) {
		if ok, rule := d.allows(variable(name)); !ok {
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
	case RuleTrust:
		return "an untrusted agent is granted nothing"
	}
	return fmt.Sprintf("the node's policy does not grant %q at this trust level", c)
}

// operator grants exactly what the flags of one's own run name.
func (g *Grant) operator(r Request) {
	for _, m := range r.Given.Mounts {
		g.Preopens = append(g.Preopens, hostdoc.Preopen{Host: m.Source, Guest: path.Clean(m.Destination), ReadOnly: m.ReadOnly})
		c := filesystem(accessOf(m), path.Clean(m.Destination))
		g.Grants = append(g.Grants, hostdoc.Grant{Capability: c.String(), Rule: RuleOperator})
		g.Decisions = append(g.Decisions, Decision{Capability: c.String(), Allowed: true, Rule: RuleOperator})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Given.Env)) {
		c := variable(name)
		g.Grants = append(g.Grants, hostdoc.Grant{Capability: c.String(), Rule: RuleOperator})
		g.Decisions = append(g.Decisions, Decision{Capability: c.String(), Allowed: true, Rule: RuleOperator})
	}
	g.Env = pairs(r.Given.Env)
	slices.SortFunc(g.Grants, func(a, b hostdoc.Grant) int { return cmp.Compare(a.Capability, b.Capability) })
}
