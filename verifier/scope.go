package verifier

import (
	"strings"

	"github.com/mentatlab/mentat/oci"
)

// name is a reference taken apart: host/path, and the tag if there is one. The
// zero value is an unknown reference.
type name struct {
	repository string
	tag        string
}

// parseName reads a reference as container clients do. What cannot be read is
// unknown: no scope but "*" covers it.
func parseName(ref string) name {
	named, ok := oci.ParseReference(ref)
	if !ok {
		return name{}
	}
	return name{repository: normalRepository(named.Name), tag: named.Tag}
}

// normalRepository gives one name to what reaches the same server: spelling a
// host otherwise must not lead out of a scope.
func normalRepository(s string) string {
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

// validRepository tells whether s is host/path, without tag or digest.
func validRepository(s string) bool {
	host, _, ok := strings.Cut(s, "/")
	if !ok || host != strings.ToLower(host) || !(strings.ContainsAny(host, ".:") || host == "localhost") {
		return false
	}
	named, ok := oci.ParseReference(s)
	return ok && named == (oci.Reference{Name: s})
}

// pattern is one way a scope matches: a repository, everything below a path, or
// everything.
type pattern struct {
	text   string
	prefix string // with its slash; "" unless the pattern ends in /**
	all    bool
}

const below = "/**"

func parsePattern(s string) (p pattern, ok bool) {
	if s == "*" {
		return pattern{text: s, all: true}, true
	}
	base, isPrefix := strings.CutSuffix(s, below)
	valid := validRepository(base)
	if isPrefix {
		// Some repository below it; base can be a whole host, and docker.io/library
		// is no repository itself.
		valid = validRepository(base + "/x/y")
	}
	p.text = normalRepository(s)
	if isPrefix {
		p.prefix = strings.TrimSuffix(p.text, "**")
	}
	return p, valid
}

// specificity is 0 for no match, and greater the more a pattern says.
func (p pattern) specificity(repository string) int {
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

// scope returns the scope with the most specific pattern for the name, nil if
// none covers it. Patterns are unique over all scopes, so there is no tie.
func (p *Policy) scope(n name) *scope {
	var found *scope
	best := 0
	for i := range p.scopes {
		for _, m := range p.scopes[i].patterns {
			if s := m.specificity(n.repository); s > best {
				found, best = &p.scopes[i], s
			}
		}
	}
	return found
}
