package dialer

import (
	"net/netip"
	"slices"

	"github.com/mentatlab/mentat/internal/fault"
)

// block is a range of addresses that are not the public internet's.
type block struct {
	prefix netip.Prefix
	what   string
}

func blocks(what string, prefixes ...string) []block {
	out := make([]block, len(prefixes))
	for i, p := range prefixes {
		out[i] = block{netip.MustParsePrefix(p), what}
	}
	return out
}

// special are the ranges of IANA's registries of special-purpose addresses that
// do not reach everybody, and what clouds put elsewhere.
var special = slices.Concat(
	blocks("a metadata service's address",
		"169.254.169.254/32", "169.254.169.253/32", "169.254.170.2/32", "169.254.170.23/32",
		"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
		"fd00:ec2::254/128", "fd00:ec2::253/128", "fd00:ec2::23/128", "fd20:ce::254/128"),
	blocks("an address of this network", "0.0.0.0/8", "::/128"),
	blocks("a loopback address", "127.0.0.0/8", "::1/128"),
	blocks("a private address", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
	blocks("a link-local address", "169.254.0.0/16", "fe80::/10"),
	blocks("a carrier's shared address", "100.64.0.0/10"),
	blocks("a multicast address", "224.0.0.0/4", "ff00::/8"),
	blocks("a benchmarking address", "198.18.0.0/15", "2001:2::/48"),
	blocks("a documentation address", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"),
	blocks("an address of a retired or local transition mechanism",
		"192.88.99.0/24", "2001::/32", "2002::/16", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96"),
	blocks("a reserved address", "192.0.0.0/24", "240.0.0.0/4", "100::/64", "2001::/23", "5f00::/16"),
)

// metadata are the entries of [special] that only a rule for them alone opens.
var metadata = func() []netip.Prefix {
	var out []netip.Prefix
	for _, b := range special {
		if b.what == special[0].what {
			out = append(out, b.prefix)
		}
	}
	return out
}()

var (
	// global is all of IPv6 that is given out for the public internet.
	global = netip.MustParsePrefix("2000::/3")
	// translated is the well-known prefix behind which an IPv4 address stands
	// (RFC 6052): the only way out of some networks.
	translated = netip.MustParsePrefix("64:ff9b::/96")
)

// notPublic says what a is if it is not an address of the public internet, and
// "" if it is. a is unmapped.
func notPublic(a netip.Addr) string {
	if !a.IsValid() || a.Zone() != "" {
		return "no plain address"
	}
	for _, b := range special {
		if b.prefix.Contains(a) {
			return b.what
		}
	}
	if a.Is6() && !global.Contains(a) && !translated.Contains(a) {
		return "outside of the public address space"
	}
	if inner, ok := standsFor(a); ok {
		return notPublic(inner)
	}
	return ""
}

// standsFor is the IPv4 address that is reached through one of IPv6: a
// translator's, or ISATAP's.
func standsFor(a netip.Addr) (netip.Addr, bool) {
	if a.Is4() {
		return netip.Addr{}, false
	}
	b := a.As16()
	isatap := (b[8] == 0 || b[8] == 2) && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
	return netip.AddrFrom4([4]byte(b[12:])), isatap || translated.Contains(a)
}

func isMetadata(a netip.Addr) bool {
	return slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(a) })
}

// wholly tells whether no address of p is public: a rule for such a range says
// that it means them.
func wholly(p netip.Prefix) bool {
	in := func(outer netip.Prefix) bool { return outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) }
	if slices.ContainsFunc(special, func(b block) bool { return in(b.prefix) }) {
		return true
	}
	return p.Addr().Is6() && !p.Overlaps(global) && !p.Overlaps(translated)
}

// ParsePrivate reads a range that is to be reachable although it is not public.
// Anything that holds a public address is refused ([fault.PolicyInvalid]): such a
// range opens more than it seems to.
func ParsePrivate(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, fault.Wrap(err, fault.PolicyInvalid, text, "is no address range")
	case p.Addr().Is4In6() || p != p.Masked():
		return netip.Prefix{}, fault.New(fault.PolicyInvalid, text, "is not the one spelling of a range").WithHint("write %s", p.Masked())
	case !wholly(p):
		return netip.Prefix{}, fault.New(fault.PolicyInvalid, text, "holds public addresses, which need no such rule").
			WithHint("name a range within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 127.0.0.0/8 or fc00::/7")
	}
	return p, nil
}

// Private tells whether no address of the range is public.
func Private(p netip.Prefix) bool { return wholly(p) }
