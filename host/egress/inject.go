package egress

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/secret"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// injection is a credential that the host adds.
type injection struct {
	on manifest.Capability
	// header or query names where value goes.
	header, query string
	value         string
}

// injections reads the document's injections and what their secrets are.
func injections(list []hostdoc.Injection, secrets hostdoc.Secrets) ([]injection, *secret.Mask, error) {
	var out []injection
	var values []string
	for _, in := range list {
		one, value, err := readInjection(in, secrets)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, one)
		values = append(values, value)
	}
	return out, secret.NewMask(values...), nil
}

func readInjection(in hostdoc.Injection, secrets hostdoc.Secrets) (injection, string, error) {
	on := "injection for " + in.Capability
	bad := func(format string, args ...any) (injection, string, error) {
		return injection{}, "", fault.New(fault.PolicyInvalid, on, format, args...)
	}
	c, err := manifest.ParseCapability(in.Capability)
	switch {
	case err != nil:
		return injection{}, "", fault.Wrap(err, fault.PolicyInvalid, on, "is for no capability")
	case c.Kind != manifest.KindNetwork:
		return bad("is not for a network capability")
	case c.Scheme == manifest.SchemeAny:
		return bad("must name its scheme: with http the secret is sent in the clear")
	case (in.Header == "") == (in.Query == ""):
		return bad("must name a header or a query parameter, exactly one")
	case in.Header != "" && (!isToken(in.Header) || forbiddenHeader(in.Header)):
		return bad("%q is no header that can be added", in.Header)
	case in.Query != "" && (in.Prefix != "" || !isToken(in.Query)):
		return bad("a query parameter is a plain name, without a prefix for its value")
	case !isValue(in.Prefix + "x"):
		return bad("the prefix holds a character that no header can carry")
	}
	value, err := secret.Lookup(secrets, in.Secret, on)
	if err != nil {
		return injection{}, "", err
	}
	return injection{on: c, header: in.Header, query: in.Query, value: in.Prefix + value}, value, nil
}

// added is what one hop of a request gets.
type added struct {
	headers http.Header
	query   string
}

// applies returns what is added to a request to t: of several injections into
// one place the first.
func (b *Backend) applies(t *target) []injection {
	var list []injection
	seen := map[string]bool{}
	for _, in := range b.injections {
		place := "h " + headerKey(in.header)
		if in.query != "" {
			place = "q " + in.query
		}
		if !seen[place] && t.covered(in.on) {
			seen[place] = true
			list = append(list, in)
		}
	}
	return list
}

// inject judges what the guest set itself, and returns what is added.
func inject(list []injection, headers http.Header, t *target) (added, *backend.Refusal) {
	a := added{headers: http.Header{}}
	for _, in := range list {
		if in.header != "" {
			for name := range headers {
				if headerKey(name) == headerKey(in.header) {
					return added{}, taken("header " + in.header)
				}
			}
			a.headers.Set(in.header, in.value)
			continue
		}
		if queryHas(t.query, in.query) {
			return added{}, taken("query parameter " + in.query)
		}
		if a.query != "" {
			a.query += "&"
		}
		a.query += url.QueryEscape(in.query) + "=" + url.QueryEscape(in.value)
	}
	return a, nil
}

func taken(what string) *backend.Refusal {
	return &backend.Refusal{
		Code: backend.Denied, Rule: ruleInjection, Hint: "leave it out: the host adds it",
		Reason: "the " + what + " is set by the node for this host",
	}
}

// queryHas tells whether a query may hold a parameter of that name to anybody
// who reads it; what cannot be read counts.
func queryHas(query, name string) bool {
	for part := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		key, _, _ := strings.Cut(part, "=")
		decoded, err := url.QueryUnescape(key)
		// name[] and name[0] fill name in some frameworks.
		decoded, _, _ = strings.Cut(decoded, "[")
		if err != nil || strings.EqualFold(strings.TrimSpace(decoded), name) {
			return true
		}
	}
	return false
}
