package egress

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
)

// requestHead is the head of a fetch (abi.md).
type requestHead struct {
	Method    string      `json:"method"`
	URL       string      `json:"url"`
	Headers   [][2]string `json:"headers"`
	TimeoutMS *int64      `json:"timeout_ms"`
	Redirects int         `json:"redirects"`
}

// request is a judged request.
type request struct {
	method    string
	target    target
	headers   http.Header
	body      []byte
	timeout   time.Duration
	redirects int
}

// decode reads JSON strictly: no unknown, repeated or differently written keys,
// nothing after the end.
func decode(data json.RawMessage, to any) bool {
	return jsonv2.Unmarshal(data, to, jsonv2.RejectUnknownMembers(true)) == nil
}

// parseHead reads a request's head. What it refuses has not been looked up, let
// alone sent.
func parseHead(data json.RawMessage) (request, *backend.Refusal) {
	var h requestHead
	if len(data) > limits.RequestHeadBytes {
		return request{}, invalid("the request's head is too long", "")
	}
	if !decode(data, &h) {
		return request{}, invalid("the request's head is not as it must be",
			"it is {method, url, headers: [[name, value]…], timeout_ms?, redirects?}, each key once")
	}
	t, refusal := parseTarget(h.URL)
	if refusal != nil {
		return request{}, refusal
	}
	if refusal := checkMethod(h.Method); refusal != nil {
		return request{}, refusal
	}
	headers, refusal := parseHeaders(h.Headers)
	if refusal != nil {
		return request{}, refusal
	}
	r := request{method: h.Method, target: t, headers: headers, redirects: h.Redirects}
	if h.TimeoutMS != nil {
		if *h.TimeoutMS <= 0 || *h.TimeoutMS > int64(24*time.Hour/time.Millisecond) {
			return request{}, invalid("timeout_ms must be a number of milliseconds, up to a day", "")
		}
		r.timeout = time.Duration(*h.TimeoutMS) * time.Millisecond
	}
	if h.Redirects < 0 || h.Redirects > limits.Redirects {
		return request{}, invalid("redirects must be a number from 0 to 5", "")
	}
	return r, nil
}

// checkMethod refuses what makes a tunnel or shows a request's own headers, in
// any spelling.
func checkMethod(m string) *backend.Refusal {
	if m == "" || len(m) > 32 || strings.ContainsFunc(m, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' }) {
		return invalid("the method must be a word of capital letters, like GET", "")
	}
	if slices.Contains([]string{"CONNECT", "TRACE", "TRACK"}, m) {
		return &backend.Refusal{Code: backend.Denied, Rule: ruleMethods, Reason: "the method " + m + " is never allowed"}
	}
	return nil
}

// Rules that refusals name.
const (
	ruleMethods    = "methods"
	ruleHeaders    = "headers"
	ruleRedirects  = "redirects"
	ruleInjection  = "injection"
	ruleCapability = "capability"
)

// ownHeaders are the host's to set, or speak to the connection instead of the
// server, or name another host or path than the URL does.
var ownHeaders = []string{
	"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings",
	"host", "content-length", "expect", "via", "forwarded", "alt-used",
	"x-original-url", "x-rewrite-url", "x-original-host", "x-host", "x-real-ip",
	"x-http-method", "x-http-method-override", "x-method-override",
}

var ownPrefixes = []string{"proxy-", "x-forwarded-"}

// headerKey is a header's name as servers compare it: some take an underscore
// for a hyphen.
func headerKey(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

func forbiddenHeader(name string) bool {
	key := headerKey(name)
	return slices.Contains(ownHeaders, key) || slices.ContainsFunc(ownPrefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// isToken tells whether s is a header's name.
func isToken(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// isValue tells whether s is a header's value: one line, without space around.
func isValue(s string) bool {
	if strings.Trim(s, " \t") != s {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

func parseHeaders(list [][2]string) (http.Header, *backend.Refusal) {
	if len(list) > limits.HTTPHeaders {
		return nil, invalid("there are too many headers", "")
	}
	headers := http.Header{}
	size := 0
	for _, h := range list {
		name, value := h[0], h[1]
		size += len(name) + len(value) + 4
		switch {
		case !isToken(name):
			return nil, invalid("a header's name is not a word of the characters that names have", "")
		case !isValue(value):
			return nil, invalid("the header "+name+" holds a line break, a control character, or space at an end", "")
		case forbiddenHeader(name):
			return nil, &backend.Refusal{Code: backend.Denied, Rule: ruleHeaders, Reason: "the header " + name + " is the host's to set", Hint: "leave it out"}
		case size > limits.HTTPHeaderBytes:
			return nil, invalid("the headers are too long together", "")
		}
		headers.Add(name, value)
	}
	return headers, nil
}
