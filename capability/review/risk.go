package review

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
)

// Risk is how much a capability gives away. The zero value is none.
type Risk int

// The ratings, lowest first.
const (
	None Risk = iota
	Low
	Medium
	High
	Critical
)

var riskNames = []string{"none", "low", "medium", "high", "critical"}

// String gives the rating's name.
func (r Risk) String() string {
	if r < None || int(r) >= len(riskNames) {
		return "unknown"
	}
	return riskNames[r]
}

// MarshalJSON gives the name.
func (r Risk) MarshalJSON() ([]byte, error) { return json.Marshal(r.String()) }

// ParseRisk reads a name.
func ParseRisk(s string) (Risk, error) {
	if i := slices.Index(riskNames, s); i >= 0 {
		return Risk(i), nil
	}
	return None, fault.New(fault.Usage, "", "%q is no rating, allowed are %s", s, strings.Join(riskNames, ", "))
}

// Rate says how much a capability gives away, and why.
func Rate(c manifest.Capability) (Risk, string) {
	switch c.Kind {
	case manifest.KindFilesystem:
		return rateFiles(c)
	case manifest.KindNetwork:
		return rateNetwork(c)
	case manifest.KindEnv:
		if credential.MatchString(c.Name) {
			return High, "the guest sees a credential; let the node inject it into requests instead"
		}
		return Low, "the guest sees a value that whoever runs it chose"
	case manifest.KindLLM:
		switch {
		case c.Name == "*":
			return High, "every model of the node, at its cost"
		case strings.HasSuffix(c.Name, "*"):
			return Medium, "every model that is called so, at the node's cost"
		}
		return Low, "one model, at the node's cost"
	case manifest.KindMedia:
		return Low, "media that were given to the run, or that it made"
	case manifest.KindExtension:
		return Medium, "a program of the node serves it, outside of WASM"
	}
	return Critical, "nobody knows what it is"
}

var credential = regexp.MustCompile(`(?i)(^|_)(KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY|AUTH|PRIVATE|COOKIE|DSN)(_|$)|_KEY$|APIKEY`)

// sensitive are directories of a container with more than data.
var sensitive = []string{"/etc", "/root", "/home", "/run", "/var/run", "/var/lib", "/usr", "/bin", "/sbin", "/lib"}

func rateFiles(c manifest.Capability) (Risk, string) {
	writes := c.Access != manifest.AccessRead
	switch {
	case c.Path == "/":
		return Critical, "every directory that the container is given"
	case slices.ContainsFunc(sensitive, func(dir string) bool { return capability.Within(c.Path, dir) }):
		return High, "a place of configuration and credentials"
	case writes:
		return Medium, "changes files that others read after the run"
	}
	return Low, "reads files that whoever runs it chose"
}

// internal are address ranges that are nobody's on the public network.
var internal = []struct {
	prefix netip.Prefix
	risk   Risk
	what   string
}{
	{netip.MustParsePrefix("169.254.0.0/16"), Critical, "link-local addresses, where clouds keep their credentials"},
	{netip.MustParsePrefix("fe80::/10"), Critical, "link-local addresses"},
	{netip.MustParsePrefix("127.0.0.0/8"), Critical, "the machine's own services"},
	{netip.MustParsePrefix("::1/128"), Critical, "the machine's own services"},
	{netip.MustParsePrefix("fd00:ec2::/32"), Critical, "addresses where clouds keep their credentials"},
	{netip.MustParsePrefix("10.0.0.0/8"), High, "private addresses"},
	{netip.MustParsePrefix("172.16.0.0/12"), High, "private addresses"},
	{netip.MustParsePrefix("192.168.0.0/16"), High, "private addresses"},
	{netip.MustParsePrefix("100.64.0.0/10"), High, "addresses of the provider's own network"},
	{netip.MustParsePrefix("fc00::/7"), High, "private addresses"},
}

func rateNetwork(c manifest.Capability) (Risk, string) {
	if c.HostRange() {
		return rateRange(c)
	}
	name, wild := strings.CutPrefix(c.Host, "*.")
	plain := c.Scheme != manifest.SchemeHTTPS
	switch {
	case wild && !strings.Contains(name, "."):
		return Critical, "every host of a whole top-level domain"
	case c.Host == "localhost":
		return Critical, "the machine's own services"
	case wild && plain:
		return High, "every host below a domain, and what is sent can be read and changed on its way"
	case plain:
		return Medium, "what is sent can be read and changed on its way"
	case wild:
		return Medium, "every host below a domain"
	}
	return Low, "one host can be sent whatever the agent knows"
}

func rateRange(c manifest.Capability) (Risk, string) {
	p, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(c.Host))
	if err != nil {
		return Critical, "addresses that cannot be read"
	}
	worst, what := Medium, "addresses instead of names: whoever holds them answers"
	for _, in := range internal {
		if in.prefix.Overlaps(p) && in.risk > worst {
			worst, what = in.risk, "reaches "+in.what
		}
	}
	return worst, what
}
