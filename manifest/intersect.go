package manifest

import "net/netip"

// Intersect returns what both capabilities allow, as capabilities that lie in
// both and in none of each other; nothing where they have nothing in common. Two
// are returned only where schemes fall apart.
func (c Capability) Intersect(o Capability) []Capability {
	switch {
	case c.Kind != o.Kind:
		return nil
	case c.Allows(o):
		return []Capability{o}
	case o.Allows(c):
		return []Capability{c}
	}
	switch c.Kind {
	case KindFilesystem:
		return c.intersectFiles(o)
	case KindNetwork:
		return c.intersectNetwork(o)
	}
	return nil
}

// Overlaps reports whether the two have anything in common.
func (c Capability) Overlaps(o Capability) bool { return len(c.Intersect(o)) > 0 }

// intersectFiles is for two of which neither allows the other.
func (c Capability) intersectFiles(o Capability) []Capability {
	both := Capability{Kind: KindFilesystem, Access: c.Access}
	switch {
	case c.Access == AccessReadWrite:
		both.Access = o.Access
	case o.Access != AccessReadWrite && o.Access != c.Access:
		return nil
	}
	switch {
	case beneath(c.Path, o.Path):
		both.Path = o.Path
	case beneath(o.Path, c.Path):
		both.Path = c.Path
	default:
		return nil
	}
	return []Capability{both}
}

// intersectNetwork takes scheme with port, host and path apart: of each two
// values one holds the other, or they have nothing in common.
func (c Capability) intersectNetwork(o Capability) []Capability {
	var both Capability
	switch {
	case hostAllows(c.Host, o.Host):
		both.Host = o.Host
	case hostAllows(o.Host, c.Host):
		both.Host = c.Host
	default:
		return nil
	}
	switch {
	case urlPathAllows(c.Path, o.Path):
		both.Path = o.Path
	case urlPathAllows(o.Path, c.Path):
		both.Path = c.Path
	default:
		return nil
	}
	both.Kind = KindNetwork
	var found []Capability
	for _, scheme := range [...]string{SchemeHTTP, SchemeHTTPS} {
		if c.speaks(scheme) && o.speaks(scheme) && c.port(scheme) == o.port(scheme) {
			one := both
			one.Scheme, one.Port = scheme, c.port(scheme)
			if one.Port == defaultPorts[scheme] {
				one.Port = 0
			}
			found = append(found, one)
		}
	}
	return found
}

// speaks reports whether a network capability includes a scheme.
func (c Capability) speaks(scheme string) bool {
	return c.Scheme == SchemeAny || c.Scheme == scheme
}

// Denies reports whether a denial written as c covers all that req asks for.
// It is [Capability.Allows], but a denial without a port is one of every port:
// who denies a host does not mean to leave its other doors open.
func (c Capability) Denies(req Capability) bool {
	return c.anyPort(req).Allows(req)
}

// DeniesPart reports whether a denial written as c covers something of req.
func (c Capability) DeniesPart(req Capability) bool {
	return c.anyPort(req).Overlaps(req)
}

// anyPort is a denial with the port that req names, if it has none itself.
func (c Capability) anyPort(req Capability) Capability {
	if c.Kind == KindNetwork && c.Port == 0 {
		c.Port = req.Port
	}
	return c
}

// HostRange reports whether a network capability names addresses, not a name.
func (c Capability) HostRange() bool {
	_, ok := parseRange(c.Host)
	return c.Kind == KindNetwork && ok
}

// At is a network capability with an address in the place of its host: what a
// request for a name asks of the address that the name resolves to.
func (c Capability) At(addr netip.Addr) Capability {
	addr = addr.Unmap().WithZone("")
	c.Host = rangeString(netip.PrefixFrom(addr, addr.BitLen()))
	return c
}
