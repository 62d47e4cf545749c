package imageref

import (
	"strings"

	"github.com/distribution/reference"
)

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
	named, err := reference.ParseDockerRef(ref)
	if ref == "" || err != nil {
		return Name{}
	}
	n := Name{Repository: NormalRepository(named.Name())}
	// ParseDockerRef drops the tag of a reference with tag and digest, and adds
	// "latest" where there is neither; the author's own words count here.
	if full, err := reference.ParseNormalizedNamed(ref); err == nil {
		if tagged, ok := full.(reference.Tagged); ok {
			n.Tag = tagged.Tag()
		}
	}
	return n
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
	named, err := reference.ParseNamed(s)
	return err == nil && reference.IsNameOnly(named) && named.Name() == s
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
