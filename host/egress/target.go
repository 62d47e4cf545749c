package egress

import (
	"cmp"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// target is a URL in the one form in which it is judged and requested.
type target struct {
	scheme string
	// host is a lower-case name, an IPv4 address, or an IPv6 address in brackets.
	host string
	port int
	// path begins with a slash; query is without its question mark, and has is
	// whether there is one.
	path, query string
	has         bool
	// judged is the capability that the request needs. Its path is empty where the
	// URL's cannot be judged: that only a capability for every path covers.
	judged manifest.Capability
}

func invalid(reason, hint string) *backend.Refusal {
	return &backend.Refusal{Code: backend.Invalid, Reason: reason, Hint: hint}
}

var schemePorts = map[string]int{manifest.SchemeHTTP: 80, manifest.SchemeHTTPS: 443}

// parseTarget reads an absolute URL. What two readers could take for two
// different URLs is refused.
func parseTarget(s string) (target, *backend.Refusal) {
	if len(s) > limits.URLBytes {
		return target{}, invalid("the URL is over "+strconv.Itoa(limits.URLBytes)+" bytes", "")
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '\\' {
			return target{}, invalid("the URL holds a character that URLs do not have", "percent-encode it; a host's name must be in its ASCII form (xn--…)")
		}
	}
	scheme, rest, ok := strings.Cut(s, "://")
	t := target{scheme: strings.ToLower(scheme)}
	if schemePorts[t.scheme] == 0 || !ok {
		return target{}, invalid("the URL must begin with http:// or https://", "")
	}
	rest, _, _ = strings.Cut(rest, "#") // a fragment is never sent
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	if refusal := t.authority(rest[:end]); refusal != nil {
		return target{}, refusal
	}
	t.path, t.query, t.has = strings.Cut(rest[end:], "?")
	if t.path == "" {
		t.path = "/"
	}
	if refusal := t.judge(); refusal != nil {
		return target{}, refusal
	}
	return t, nil
}

// authority reads host and port.
func (t *target) authority(s string) *backend.Refusal {
	if strings.Contains(s, "@") {
		return invalid("the URL must not hold a user name or password", "send credentials in a header")
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port != strconv.FormatUint(n, 10) {
			return invalid("the URL's port must be a number from 1 to 65535", "")
		}
		t.port = int(n)
	} else {
		t.port = schemePorts[t.scheme]
	}
	t.host = strings.ToLower(host)
	if strings.ContainsAny(t.host, "/*") || t.host == "" {
		return invalid("the URL's host must be a name or an address", "")
	}
	// The capability language has one spelling for each host, and takes no
	// unusual one of an address for a name.
	c, err := manifest.ParseCapability(manifest.KindNetwork + ":" + t.scheme + ":" + t.host + ":" + strconv.Itoa(t.port))
	if err != nil {
		return invalid("the URL's host must be a name or an address in its usual spelling", "a host's name must be in its ASCII form (xn--…), without a dot at its end")
	}
	t.judged = c
	if text, inBrackets := strings.CutPrefix(t.host, "["); inBrackets {
		a, err := netip.ParseAddr(strings.TrimSuffix(text, "]"))
		if err != nil {
			return invalid("the URL's host is no address", "")
		}
		t.host = "[" + a.String() + "]"
	}
	return nil
}

// judge brings the path into the form that is compared and sent, or leaves it
// unjudged.
func (t *target) judge() *backend.Refusal {
	for i := range len(t.path) {
		if !plainPath(t.path[i]) {
			return invalid("the URL's path holds a character that paths do not have", "percent-encode it")
		}
	}
	decoded, err := url.PathUnescape(t.path)
	if err != nil {
		return invalid("a '%' in the URL's path must be followed by two hexadecimal digits", "")
	}
	for _, segment := range strings.FieldsFunc(decoded, func(r rune) bool { return r == '/' || r == '\\' }) {
		// Some servers drop what follows a semicolon, then climb.
		if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
			return invalid("the URL's path must not contain '.' or '..' segments", "send the path that they lead to")
		}
	}
	// What may mean anything is not judged: an empty segment, a hidden slash, what
	// could be decoded twice, a path too long for a capability.
	if strings.ContainsRune(t.path, '*') || strings.Contains(t.path, "%25") {
		return nil
	}
	if c, err := manifest.ParseCapability(t.judged.String() + t.path); err == nil {
		t.judged = c
		t.path = cmp.Or(c.Path, "/")
	}
	return nil
}

func plainPath(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@/%", b) >= 0
}

// covered tells whether c covers a request to t. Without a path to judge, only a
// capability for every path does.
func (t *target) covered(c manifest.Capability) bool { return c.Allows(t.judged) }

// authorityText is HOST or HOST:PORT as the Host header has it.
func (t *target) authorityText() string {
	if t.port == schemePorts[t.scheme] {
		return t.host
	}
	return t.host + ":" + strconv.Itoa(t.port)
}

func (t *target) origin() string { return t.scheme + "://" + t.authorityText() }

// String is the URL as the guest may see it.
func (t *target) String() string {
	s := t.origin() + t.path
	if t.has {
		s += "?" + t.query
	}
	return s
}

// wire is the URL as it is requested, with more added to the query.
func (t *target) wire(more string) (*url.URL, *backend.Refusal) {
	decoded, err := url.PathUnescape(t.path)
	if err != nil {
		return nil, invalid("the URL's path cannot be read", "")
	}
	u := &url.URL{Scheme: t.scheme, Host: t.authorityText(), Path: decoded, RawPath: t.path, RawQuery: t.query, ForceQuery: t.has}
	if more != "" {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += more
	}
	if u.EscapedPath() != t.path {
		return nil, invalid("the URL's path cannot be sent as it is", "percent-encode what is not a letter or digit")
	}
	return u, nil
}

// follow resolves a redirect's Location against t.
func (t *target) follow(location string) (target, *backend.Refusal) {
	bad := &backend.Refusal{Code: backend.Unavailable, Reason: "the host redirects to something that is no URL", Rule: ruleRedirects}
	ref, err := url.Parse(location)
	if err != nil || ref.User != nil || ref.Opaque != "" {
		return target{}, bad
	}
	base, refusal := t.wire("")
	if refusal != nil {
		return target{}, bad
	}
	next, refusal := parseTarget(base.ResolveReference(ref).String())
	if refusal != nil {
		return target{}, bad
	}
	return next, nil
}
