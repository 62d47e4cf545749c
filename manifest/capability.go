package manifest

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mentatlab/mentat/internal/fault"
)

// The kinds of capabilities.
const (
	KindFilesystem = "filesystem"
	KindNetwork    = "network"
	KindEnv        = "env"
	KindLLM        = "llm"
	KindMedia      = "media"
	KindExtension  = "extension"
)

// The values of [Capability.Access]; media has no read-write.
const (
	AccessRead      = "read"
	AccessWrite     = "write"
	AccessReadWrite = "read-write"
)

// The values of [Capability.Scheme].
const (
	SchemeHTTP  = "http"
	SchemeHTTPS = "https"
	SchemeAny   = "*"
)

// Bounds on the parts of a capability string, in bytes.
const (
	maxCapability = 1024
	maxHost       = 253
	maxLabel      = 63
	maxEnvName    = 128
	maxModel      = 128
)

// Capability is a parsed capability string in its one spelling. Which fields
// are set depends on Kind; the zero value is invalid and allows nothing.
type Capability struct {
	Kind string
	// Access is set for filesystem and media.
	Access string
	// Scheme and Host are set for network. Host is a lower-case name, "*.name"
	// or an address range like "10.0.0.0/8".
	Scheme, Host string
	// Port is set for network when it is not the scheme's own.
	Port int
	// Path is, for filesystem, an absolute path that covers everything beneath
	// it. For network it is empty (any path), a path that covers everything
	// beneath it, or, with a trailing "*", the beginning of a path.
	Path string
	// Name is set for env, llm and extension. For llm it may end in "*".
	Name string
}

func badCapability(s, format string, args ...any) *fault.Error {
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return fault.New(fault.ManifestInvalid, "capability "+strconv.Quote(s), format, args...)
}

// ParseCapability reads a capability string. Errors are
// [fault.ManifestInvalid] and name what is allowed.
func ParseCapability(s string) (Capability, error) {
	if len(s) > maxCapability {
		return Capability{}, badCapability(s, "over %d bytes", maxCapability)
	}
	if !printable(s) {
		return Capability{}, badCapability(s, "only printable characters are allowed")
	}
	kind, rest, _ := strings.Cut(s, ":")
	var c Capability
	var problem string
	switch kind {
	case KindFilesystem:
		c, problem = parseFilesystem(rest)
	case KindNetwork:
		c, problem = parseNetwork(rest)
	case KindEnv:
		c, problem = Capability{Name: rest}, checkEnvName(rest)
	case KindLLM:
		c, problem = Capability{Name: rest}, checkModel(rest)
	case KindMedia:
		c = Capability{Access: rest}
		if rest != AccessRead && rest != AccessWrite {
			problem = "access is missing or unknown, allowed are media:read and media:write"
		}
	case KindExtension:
		c = Capability{Name: rest}
		if len(rest) > maxIdentifier || !identifier.MatchString(rest) {
			problem = "the name must be words of a-z and 0-9, joined by '.', '_' or '-'"
		}
	default:
		problem = "unknown kind, allowed are filesystem, network, env, llm, media and extension"
	}
	if problem != "" {
		return Capability{}, badCapability(s, "%s", problem)
	}
	c.Kind = kind
	return c, nil
}

func parseFilesystem(s string) (Capability, string) {
	access, file, ok := strings.Cut(s, ":")
	if !ok || access != AccessRead && access != AccessWrite && access != AccessReadWrite {
		return Capability{}, "allowed is filesystem:read|write|read-write:PATH"
	}
	clean, problem := cleanPath(file)
	return Capability{Access: access, Path: clean}, problem
}

// cleanPath brings an absolute path of the guest into one spelling. ".." is not
// resolved: with symbolic links it means something else than it says.
func cleanPath(file string) (string, string) {
	switch {
	case !strings.HasPrefix(file, "/"):
		return "", "the path must be absolute, like /data"
	case slices.Contains(strings.Split(file, "/"), ".."):
		return "", "the path must not contain '..'"
	case strings.Contains(file, "*"):
		return "", "the path must not contain '*'; a directory covers everything beneath it"
	}
	return path.Clean(file), ""
}

func checkEnvName(name string) string {
	if name == "" || len(name) > maxEnvName || name[0] >= '0' && name[0] <= '9' ||
		strings.ContainsFunc(name, func(r rune) bool { return r != '_' && !letterOrDigit(r) }) {
		return "the variable must be a name of letters, digits and '_', like env:API_KEY"
	}
	return ""
}

func letterOrDigit(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func checkModel(name string) string {
	stem := strings.TrimSuffix(name, "*")
	if name == "" || len(name) > maxModel ||
		strings.ContainsFunc(stem, func(r rune) bool { return !letterOrDigit(r) && !strings.ContainsRune("._:/@+-", r) }) {
		return "the model must be a name, or the beginning of one followed by '*', like llm:gpt-4*"
	}
	return ""
}

const networkForm = "allowed is network:http|https|*:HOST[:PORT][/PATH*]"

func parseNetwork(s string) (Capability, string) {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || scheme != SchemeHTTP && scheme != SchemeHTTPS && scheme != SchemeAny {
		return Capability{}, networkForm
	}
	c := Capability{Scheme: scheme}
	var problem string
	if c.Host, rest, problem = cutHost(rest); problem != "" {
		return Capability{}, problem
	}
	if after, ok := strings.CutPrefix(rest, ":"); ok {
		digits, tail := cutDigits(after)
		port, err := strconv.Atoi(digits)
		if err != nil || port < 1 || port > 65535 || digits[0] == '0' {
			return Capability{}, "the port must be a number from 1 to 65535"
		}
		rest = tail
		if port != defaultPorts[scheme] {
			c.Port = port
		}
	}
	c.Path, problem = cleanURLPath(rest)
	return c, problem
}

var defaultPorts = map[string]int{SchemeHTTP: 80, SchemeHTTPS: 443}

func cutDigits(s string) (digits, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// cutHost takes a host off the front of s. An address may be followed by the
// length of its prefix, which is part of the host and not a path.
func cutHost(s string) (host, rest, problem string) {
	if strings.HasPrefix(s, "[") {
		text, after, ok := strings.Cut(s[1:], "]")
		if !ok {
			return "", "", "an IPv6 address must end in ']'"
		}
		if !strings.Contains(text, ":") {
			return "", "", "only an IPv6 address stands in brackets"
		}
		return addressRange(text, after)
	}
	end := strings.IndexAny(s, ":/")
	if end < 0 {
		end = len(s)
	}
	host, rest = s[:end], s[end:]
	bare, _, _ := strings.Cut(s, "/")
	if addr, err := netip.ParseAddr(bare); err == nil && addr.Is6() {
		return "", "", "an IPv6 address must stand in brackets, like [2001:db8::]/32"
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return addressRange(host, rest)
	}
	host = strings.ToLower(host)
	return host, rest, checkHostName(host)
}

// addressRange reads an address and, from the front of rest, its prefix length.
func addressRange(text, rest string) (host, after, problem string) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return "", "", "not an address; zones and IPv4 in IPv6 are not allowed"
	}
	bits := addr.BitLen()
	if tail, ok := strings.CutPrefix(rest, "/"); ok {
		digits, more := cutDigits(tail)
		if digits != "" && (more == "" || more[0] == ':' || more[0] == '/') {
			n, err := strconv.Atoi(digits)
			if err != nil || n > bits || digits[0] == '0' && digits != "0" {
				return "", "", "the prefix length is out of range"
			}
			bits, rest = n, more
		}
	}
	prefix := netip.PrefixFrom(addr, bits)
	if masked := prefix.Masked(); masked != prefix {
		return "", "", "the address has bits outside its range; write " + masked.String()
	}
	return rangeString(prefix), rest, ""
}

// rangeString brackets an IPv6 range, so that what follows can be told apart.
func rangeString(p netip.Prefix) string {
	if p.Addr().Is4() {
		return p.String()
	}
	return "[" + p.Addr().String() + "]/" + strconv.Itoa(p.Bits())
}

func parseRange(host string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(host))
	return p, err == nil
}

// Range is the address range that a network capability names instead of a name.
func (c Capability) Range() (netip.Prefix, bool) {
	if c.Kind != KindNetwork {
		return netip.Prefix{}, false
	}
	return parseRange(c.Host)
}

func checkHostName(host string) string {
	const form = "the host must be a name, *.name or an address range"
	name := strings.TrimPrefix(host, "*.")
	if name == "" || name == "*" || len(name) > maxHost {
		return form
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-':
			return form
		case strings.ContainsFunc(label, func(r rune) bool { return r >= utf8.RuneSelf }):
			return "the host must be in its ASCII form (xn--…)"
		case strings.ContainsFunc(label, func(r rune) bool { return r != '-' && !letterOrDigit(r) }):
			return form
		}
	}
	// Resolvers take 127.1 or 0x7f000001 for addresses.
	last := labels[len(labels)-1]
	if digits, rest := cutDigits(last); digits != "" && rest == "" || strings.HasPrefix(last, "0x") {
		return "the host looks like an address in an unusual spelling; write it as four numbers"
	}
	return ""
}

const urlPathChars = "-._~!$&'()+,;=:@/%"

// cleanURLPath brings a path into one spelling; a path that covers everything
// becomes empty.
func cleanURLPath(s string) (string, string) {
	if s == "" {
		return "", ""
	}
	if s[0] != '/' {
		return "", networkForm
	}
	stem, star := strings.CutSuffix(s, "*")
	var out strings.Builder
	for i := 0; i < len(stem); i++ {
		b := stem[i]
		if b != '%' {
			if !letterOrDigit(rune(b)) && strings.IndexByte(urlPathChars, b) < 0 {
				return "", "the path may hold letters, digits, " + urlPathChars + " and a '*' at its end"
			}
			out.WriteByte(b)
			continue
		}
		n, err := strconv.ParseUint(stem[i+1:min(i+3, len(stem))], 16, 8)
		if err != nil || i+3 > len(stem) {
			return "", "a '%' in the path must be followed by two hexadecimal digits"
		}
		switch r := rune(n); {
		case r == '/' || r == '\\' || r < 0x20 || r == 0x7f:
			return "", "the path must not hide a slash or a control character behind '%'"
		case letterOrDigit(r) || strings.ContainsRune("-._~", r):
			out.WriteRune(r)
		default:
			out.WriteString(strings.ToUpper(stem[i : i+3]))
		}
		i += 2
	}
	clean := out.String()
	for i, segment := range strings.Split(clean[1:], "/") {
		switch {
		case segment == "." || segment == "..":
			return "", "the path must not contain '.' or '..' segments"
		case segment == "" && i < strings.Count(clean, "/")-1:
			return "", "the path must not contain '//'"
		}
	}
	switch {
	case clean == "/":
		return "", ""
	case star:
		return clean + "*", ""
	}
	return clean, ""
}

// String gives the capability's one spelling; [ParseCapability] reads it back
// to the same value.
func (c Capability) String() string {
	switch c.Kind {
	case KindFilesystem:
		return c.Kind + ":" + c.Access + ":" + c.Path
	case KindNetwork:
		s := c.Kind + ":" + c.Scheme + ":" + c.Host
		if c.Port != 0 {
			s += ":" + strconv.Itoa(c.Port)
		}
		return s + c.Path
	case KindMedia:
		return c.Kind + ":" + c.Access
	default:
		return c.Kind + ":" + c.Name
	}
}

// MarshalText gives [Capability.String].
func (c Capability) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is [ParseCapability].
func (c *Capability) UnmarshalText(text []byte) error {
	parsed, err := ParseCapability(string(text))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}

// Allows reports whether a grant of c covers all that req asks for.
func (c Capability) Allows(req Capability) bool {
	if c.Kind != req.Kind {
		return false
	}
	switch c.Kind {
	case KindFilesystem:
		return (c.Access == req.Access || c.Access == AccessReadWrite) && beneath(c.Path, req.Path)
	case KindNetwork:
		return c.portsAllow(req) && hostAllows(c.Host, req.Host) && urlPathAllows(c.Path, req.Path)
	case KindLLM:
		return prefixAllows(c.Name, req.Name)
	case KindMedia:
		return c.Access == req.Access
	case KindEnv, KindExtension:
		return c.Name == req.Name
	}
	return false
}

// Allowed reports whether the grants together cover req: reading and writing
// one path may come from two of them.
func Allowed(grants []Capability, req Capability) bool {
	if slices.ContainsFunc(grants, func(c Capability) bool { return c.Allows(req) }) {
		return true
	}
	if req.Kind != KindFilesystem || req.Access != AccessReadWrite {
		return false
	}
	read, write := req, req
	read.Access, write.Access = AccessRead, AccessWrite
	return Allowed(grants, read) && Allowed(grants, write)
}

// beneath reports whether file is dir or lies in it. Both are clean.
func beneath(dir, file string) bool {
	if !strings.HasPrefix(dir, "/") || !strings.HasPrefix(file, "/") {
		return false
	}
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

// portsAllow checks every pair of scheme and port that req stands for.
func (c Capability) portsAllow(req Capability) bool {
	schemes := []string{req.Scheme}
	if req.Scheme == SchemeAny {
		schemes = []string{SchemeHTTP, SchemeHTTPS}
	}
	for _, scheme := range schemes {
		if c.Scheme != SchemeAny && c.Scheme != scheme || c.port(scheme) != req.port(scheme) {
			return false
		}
	}
	return true
}

func (c Capability) port(scheme string) int {
	if c.Port != 0 {
		return c.Port
	}
	return defaultPorts[scheme]
}

// hostAllows compares hosts: a name with a name, a range with a range. What a
// name resolves to is not known here, so a range never covers a name.
func hostAllows(grant, req string) bool {
	if outer, ok := parseRange(grant); ok {
		inner, ok := parseRange(req)
		return ok && inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
	}
	if grant == req {
		return grant != ""
	}
	suffix, ok := strings.CutPrefix(grant, "*")
	return ok && strings.HasSuffix(req, suffix) && len(req) > len(suffix)
}

func urlPathAllows(grant, req string) bool {
	if grant == "" {
		return true
	}
	if stem, star := strings.CutSuffix(grant, "*"); star {
		return strings.HasPrefix(req, stem)
	}
	// "/v1*" also begins "/v1beta", so it is more than "/v1".
	dir := strings.TrimSuffix(grant, "/") + "/"
	return req == grant || strings.HasPrefix(strings.TrimSuffix(req, "*"), dir)
}

func prefixAllows(grant, req string) bool {
	if stem, star := strings.CutSuffix(grant, "*"); star {
		return strings.HasPrefix(req, stem)
	}
	return grant == req
}
