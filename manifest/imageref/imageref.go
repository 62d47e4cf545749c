package imageref

import "strings"

// Name is a reference taken apart. The zero value is an unknown reference.
type Name struct {
	// Repository is host/path in its one spelling.
	Repository string
	// Tag is the author's own, "" where none was written.
	Tag string
}

// Parse reads a reference as container clients do. What cannot be read is
// unknown: no pattern but "*" covers it.
func Parse(ref string) Name {
	named, ok := ParseReference(ref)
	if !ok {
		return Name{}
	}
	return Name{Repository: NormalRepository(named.Name), Tag: named.Tag}
}

// NormalRepository gives one name to what reaches the same server: spelling a
// host otherwise must not lead out of a pattern.
func NormalRepository(s string) string {
	host, path, _ := strings.Cut(s, "/")
	host = strings.ToLower(host)
	if host == "registry-1.docker.io" { // where docker.io really is
		host = "docker.io"
	}
	if at := strings.LastIndexByte(host, ':'); at >= 0 && !strings.HasSuffix(host, "]") {
		if port := strings.TrimLeft(host[at+1:], "0"); port != "443" {
			host = host[:at+1] + port
		} else {
			host = host[:at]
		}
	}
	return host + "/" + path
}

// ValidRepository tells whether s is host/path, without tag or digest.
func ValidRepository(s string) bool {
	host, _, ok := strings.Cut(s, "/")
	if !ok || host != strings.ToLower(host) || !(strings.ContainsAny(host, ".:") || host == "localhost") {
		return false
	}
	named, ok := ParseReference(s)
	return ok && named == (Reference{Name: s})
}

// Pattern is one way to name references: a repository, everything below a path,
// or everything.
type Pattern struct {
	text   string
	prefix string // with its slash; "" unless the pattern ends in /**
	all    bool
}

// PatternForm says to people what a pattern looks like.
const PatternForm = "HOST/REPOSITORY, HOST/PATH/** and *; names are in lower case, without tag"

const below = "/**"

// ParsePattern reads a pattern; false means that it is none of [PatternForm].
func ParsePattern(s string) (p Pattern, ok bool) {
	if s == "*" {
		return Pattern{text: s, all: true}, true
	}
	base, isPrefix := strings.CutSuffix(s, below)
	valid := ValidRepository(base)
	if isPrefix {
		// Some repository below it; base can be a whole host, and docker.io/library
		// is no repository itself.
		valid = ValidRepository(base + "/x/y")
	}
	p.text = NormalRepository(s)
	if isPrefix {
		p.prefix = strings.TrimSuffix(p.text, "**")
	}
	return p, valid
}

// String is the pattern in its one spelling.
func (p Pattern) String() string { return p.text }

// Specificity is 0 for no match, and greater the more a pattern says of a
// repository, which is a [Name]'s.
func (p Pattern) Specificity(repository string) int {
	switch {
	case p.all:
		return 1
	case p.prefix != "" && strings.HasPrefix(repository, p.prefix):
		return 1 + len(p.prefix)
	case p.prefix == "" && p.text == repository:
		return 1 << 20
	}
	return 0
}

// Move gives the repository that a pattern of the same kind has in the place of one
// that this pattern covers: what * would stand for stays. False means that this
// pattern does not cover the repository, or is of another kind.
func (p Pattern) Move(repository string, to Pattern) (string, bool) {
	switch {
	case !p.CanMove(to) || p.Specificity(repository) == 0:
		return "", false
	case p.prefix != "":
		return to.prefix + repository[len(p.prefix):], true
	}
	return to.text, true
}

// CanMove tells whether [Pattern.Move] has a meaning: both are one repository, or
// both everything below a path.
func (p Pattern) CanMove(to Pattern) bool {
	return !p.all && !to.all && (p.prefix == "") == (to.prefix == "")
}

// Covers tells whether p covers every repository that q covers.
func (p Pattern) Covers(q Pattern) bool {
	if p.all || q.all {
		return p.all
	}
	if q.prefix != "" {
		return p.prefix != "" && strings.HasPrefix(q.prefix, p.prefix)
	}
	return p.Specificity(q.text) > 0
}
