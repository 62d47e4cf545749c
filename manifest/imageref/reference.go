package imageref

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// Reference is an image reference taken apart.
type Reference struct {
	// Name is host/path, with the host that container clients add.
	Name string
	// Tag and Digest are what the reference says, "" for nothing.
	Tag    string
	Digest digest.Digest
}

const (
	hubDomain       = "docker.io"
	hubLegacyDomain = "index.docker.io"
	hubOfficial     = "library/"
	defaultTag      = "latest"
	// maxReferencePath is how long the part after the host may be.
	maxReferencePath = 255
	maxReferenceTag  = 128
)

// ParseReference reads a reference as container clients do: what names no host
// is Docker Hub's. It accepts exactly what distribution's reference library
// does, which a test compares it with; that library compiles its grammar whenever
// a program starts that links it, which a shim does several times for a
// container.
func ParseReference(s string) (Reference, bool) {
	if len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" {
		return Reference{}, false // an identifier, not a name
	}
	domain, rest := splitDomain(s)
	var r Reference
	rest, sum, hasDigest := strings.Cut(rest, "@")
	rest, tag, hasTag := strings.Cut(rest, ":")
	if hasDigest {
		r.Digest = digest.Digest(sum)
		if r.Digest.Validate() != nil {
			return Reference{}, false
		}
	}
	if r.Tag = tag; hasTag && !validTag(tag) {
		return Reference{}, false
	}
	path := rest
	if r.Name = domain + "/" + rest; !validDomain(domain) {
		path = r.Name
	}
	return r, len(path) <= maxReferencePath && validPath(path)
}

// String gives the reference as container clients ask for it: by digest if there
// is one, else by tag.
func (r Reference) String() string {
	switch {
	case r.Digest != "":
		return r.Name + "@" + string(r.Digest)
	case r.Tag != "":
		return r.Name + ":" + r.Tag
	}
	return r.Name + ":" + defaultTag
}

// splitDomain tells a host from the first part of a path: it has a dot, a port or
// a capital letter, or is localhost.
func splitDomain(s string) (domain, rest string) {
	domain, rest, found := strings.Cut(s, "/")
	switch {
	case !found:
		return hubDomain, hubOfficial + s
	case domain == hubLegacyDomain:
		domain = hubDomain
	case domain != "localhost" && !strings.ContainsAny(domain, ".:") && strings.ToLower(domain) == domain:
		domain, rest = hubDomain, s
	}
	if domain == hubDomain && !strings.Contains(rest, "/") {
		rest = hubOfficial + rest
	}
	return domain, rest
}

// validDomain admits host names, addresses and, in brackets, IPv6 addresses, each
// with or without a port.
func validDomain(s string) bool {
	if address, ok := strings.CutPrefix(s, "["); ok {
		address, port, ok := strings.Cut(address, "]")
		return ok && address != "" && strings.Trim(address, ":0123456789abcdefABCDEF") == "" && (port == "" || port[0] == ':' && digits(port[1:]))
	}
	name, port, hasPort := strings.Cut(s, ":")
	if hasPort && !digits(port) {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, func(r rune) bool { return !alphanumeric(r) && r != '-' }) {
			return false
		}
	}
	return true
}

// validPath admits components of lower-case letters and digits, with a dot, one or
// two underscores or any number of dashes between them.
func validPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !validComponent(part) {
			return false
		}
	}
	return true
}

func validComponent(s string) bool {
	lower := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }
	for s != "" {
		word := strings.TrimLeftFunc(s, lower)
		if len(word) == len(s) {
			return false
		}
		if s = word; s == "" {
			return true
		}
		separator := s[:len(s)-len(strings.TrimLeft(s, "._-"))]
		switch {
		case separator == ".", separator == "_", separator == "__":
		case separator != "" && strings.Trim(separator, "-") == "":
		default:
			return false
		}
		s = s[len(separator):]
	}
	return false
}

func validTag(s string) bool {
	return s != "" && len(s) <= maxReferenceTag && s[0] != '.' && s[0] != '-' &&
		!strings.ContainsFunc(s, func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("_.-", r) })
}

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
