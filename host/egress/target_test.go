package egress

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
)

func TestAURLHasOneSpelling(t *testing.T) {
	for in, want := range map[string]string{
		"https://api.example":                     "https://api.example/",
		"HTTPS://API.Example:443/":                "https://api.example/",
		"http://api.example:80/a":                 "http://api.example/a",
		"https://api.example:80/a":                "https://api.example:80/a",
		"https://api.example?q":                   "https://api.example/?q",
		"https://api.example/a?":                  "https://api.example/a?",
		"https://api.example/a?b=c&d=%20#x":       "https://api.example/a?b=c&d=%20",
		"https://api.example/%7euser/%3a":         "https://api.example/~user/%3A",
		"https://api.example/a?u=https://x@y/../": "https://api.example/a?u=https://x@y/../",
		"https://api.example/x@y:z":               "https://api.example/x@y:z",
		"http://10.1.2.3/8":                       "http://10.1.2.3/8",
		"http://[::1]/":                           "http://[::1]/",
		"http://[2001:DB8::0]:8080/":              "http://[2001:db8::]:8080/",
		"https://xn--bcher-kva.example/":          "https://xn--bcher-kva.example/",
		"https://api.example/a//b":                "https://api.example/a//b",
		"https://api.example/a%2Fb":               "https://api.example/a%2Fb",
		"https://api.example/a*b*":                "https://api.example/a*b*",
		"https://api.example#@evil.example/":      "https://api.example/",
		"https://localhost:8443/":                 "https://localhost:8443/",
	} {
		got, refusal := parseTarget(in)
		if refusal != nil || got.String() != want {
			t.Errorf("%s: %s, %v, want %s", in, got.String(), refusal, want)
		}
	}
}

func TestAURLThatCouldMeanTwoThingsIsRefused(t *testing.T) {
	for _, in := range []string{
		"", "api.example", "//api.example/", "/a", "ftp://api.example/", "file:///etc/passwd", "javascript://api.example/", "unix:///run/x", "http:api.example", "http:/api.example/",
		"https://", "https:///a", "https://?a", "https://:443/",
		"https://user@api.example/", "https://user:pass@api.example/", "https://@api.example/", "https://api.example@evil.example/", "https://api.example%40evil.example/",
		"https://api.example:/", "https://api.example:0/", "https://api.example:65536/", "https://api.example:0443/", "https://api.example:+443/", "https://api.example:443:443/", "https://api.example:80x/", "https://api.example:-1/",
		"https://api.example./", "https://.example/", "https://a..example/", "https://exa_mple.com/", "https://*.example/", "https://-a.example/", "https://api.example,evil.example/", "https://api.example;evil/",
		"https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.0.0.1./", "https://1.2.3/", "https://127.0.0.0x1/", "https://①②⑦.0.0.1/",
		"https://::1/", "https://[::1/", "https://::1]/", "https://[127.0.0.1]/", "https://[::ffff:127.0.0.1]/", "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1]x/", "https://[::1]:80:80/", "https://[]/",
		"https://bücher.example/", "https://api。example/", "https://api%2eexample/", "https://api.example\x00/", "https://api.example\t/", "https://api.example\\@evil.example/", "https://api.example\\evil/",
		"https://api.example/a b", "https://api.example/a\r\nHost: evil", "https://api.example/a\nb", "https://api.example/ä", "https://api.example/\x7f", " https://api.example/", "https://api.example/ ",
		"https://api.example/../a", "https://api.example/a/..", "https://api.example/./a", "https://api.example/a/%2e%2E/b", "https://api.example/a/.%2e/b", "https://api.example/a%2f..%2fb", "https://api.example/a/..;x/b", "https://api.example/a/.;/b", "https://api.example/a%5c..%5cb",
		"https://api.example/%", "https://api.example/%2", "https://api.example/%zz", "https://api.example/a{b}", "https://api.example/a|b", `https://api.example/a"b`, "https://api.example/<a>",
		"https://api.example/" + strings.Repeat("a", limits.URLBytes),
	} {
		if got, refusal := parseTarget(in); refusal == nil || refusal.Code != backend.Invalid {
			t.Errorf("%q is taken for %s", in, got.String())
		}
	}
}

func TestACapabilityCoversExactlyItsURLs(t *testing.T) {
	for _, c := range []struct {
		capability, url string
		ok              bool
	}{
		{"network:https:api.example", "https://api.example/any?q", true},
		{"network:https:api.example", "https://api.example/a//b", true},
		{"network:https:api.example", "http://api.example/", false},
		{"network:https:api.example", "https://api.example:8443/", false},
		{"network:https:api.example", "https://sub.api.example/", false},
		{"network:https:api.example:8443", "https://api.example:8443/", true},
		{"network:*:api.example", "http://api.example/", true},
		{"network:*:api.example", "http://api.example:443/", false},
		{"network:https:*.example", "https://api.example/", true},
		{"network:https:*.example", "https://example/", false},
		{"network:https:*.example", "https://api.example.evil/", false},
		{"network:http:10.0.0.0/8", "http://10.2.3.4/", true},
		{"network:http:10.0.0.0/8", "http://11.2.3.4/", false},
		{"network:http:10.0.0.0/8", "http://api.example/", false},
		{"network:http:[fd00::]/8", "http://[fd12::1]/", true},
		{"network:https:api.example/v1", "https://api.example/v1", true},
		{"network:https:api.example/v1", "https://api.example/v1/x?y=/../", true},
		{"network:https:api.example/v1", "https://api.example/%76%31/x", true},
		{"network:https:api.example/v1", "https://api.example/v1beta", false},
		{"network:https:api.example/v1", "https://api.example/", false},
		{"network:https:api.example/v1", "https://api.example/*", false},
		{"network:https:api.example/v1", "https://api.example//v1", false},
		{"network:https:api.example/v1", "https://api.example/v1//x", false},
		{"network:https:api.example/v1", "https://api.example/v1/a%2Fb", false},
		{"network:https:api.example/v1", "https://api.example/v1/%252e%252e/b", false},
		{"network:https:api.example/v1", "https://api.example/v1/*", false},
		{"network:https:api.example/v1", "https://api.example/v1/" + strings.Repeat("a", 2000), false},
	} {
		u, refusal := parseTarget(c.url)
		if refusal != nil {
			t.Fatalf("%s: %v", c.url, refusal)
		}
		if got := u.covered(parsed(t, c.capability)); got != c.ok {
			t.Errorf("%s for %.60s: %v", c.capability, c.url, got)
		}
	}
}

func TestAHeadIsReadStrictly(t *testing.T) {
	for _, text := range []string{
		``, `null`, `[]`, `{}`, `{"url":"https://api.example/"}`, `{"method":"GET"}`,
		`{"method":"GET","url":"https://api.example/","URL":"https://evil.example/"}`,
		`{"method":"GET","url":"https://api.example/","url":"https://evil.example/"}`,
		`{"method":"GET","url":"https://api.example/","host":"evil.example"}`,
		`{"method":"GET","url":"https://api.example/"} {}`,
		`{"Method":"GET","url":"https://api.example/"}`,
		`{"method":"GET","url":"https://api.example/","headers":{"a":"b"}}`,
		`{"method":"GET","url":"https://api.example/","headers":[["a"]]}`,
		`{"method":"GET","url":"https://api.example/","headers":[["a","b","c"]]}`,
		`{"method":"GET","url":"https://api.example/","headers":[["a",1]]}`,
		`{"method":"GET","url":"https://api.example/","timeout_ms":0}`,
		`{"method":"GET","url":"https://api.example/","timeout_ms":-1}`,
		`{"method":"GET","url":"https://api.example/","timeout_ms":1.5}`,
		`{"method":"GET","url":"https://api.example/","timeout_ms":1e30}`,
		`{"method":"GET","url":"https://api.example/","redirects":6}`,
		`{"method":"GET","url":"https://api.example/","redirects":-1}`,
		`{"method":"get","url":"https://api.example/"}`,
		`{"method":"","url":"https://api.example/"}`,
		`{"method":"GET /x HTTP/1.1\r\n","url":"https://api.example/"}`,
		`{"method":"G T","url":"https://api.example/"}`,
		`{"method":"` + strings.Repeat("G", 33) + `","url":"https://api.example/"}`,
		"{\"method\":\"GET\",\"url\":\"https://api.example/\xff\"}",
		`{"method":"GET","url":"https://api.example/"` + strings.Repeat(" ", limits.RequestHeadBytes) + `}`,
	} {
		if r, refusal := parseHead(json.RawMessage(text)); refusal == nil || refusal.Code != backend.Invalid {
			t.Errorf("%.80q: %+v, %v", text, r.target, refusal)
		}
	}
	for _, method := range []string{"CONNECT", "TRACE", "TRACK"} {
		if _, refusal := parseHead(get("https://api.example/", "method", method)); refusal == nil || refusal.Code != backend.Denied {
			t.Errorf("%s: %v", method, refusal)
		}
	}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "VERSION-CONTROL"} {
		if _, refusal := parseHead(get("https://api.example/", "method", method)); refusal != nil {
			t.Errorf("%s: %v", method, refusal)
		}
	}
}

func TestHeadersOfTheConnectionAndTheHostAreRefused(t *testing.T) {
	for _, name := range []string{
		"Host", "host", "HOST", "Connection", "Keep-Alive", "Proxy-Authorization", "proxy-connection", "Proxy-X", "TE", "Trailer", "Transfer-Encoding", "transfer_encoding", "Upgrade", "HTTP2-Settings",
		"Content-Length", "content_length", "Expect", "Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "x_forwarded_host", "X-Original-URL", "X-Rewrite-Url", "X-HTTP-Method-Override",
	} {
		if _, refusal := parseHeaders([][2]string{{name, "x"}}); refusal == nil || refusal.Code != backend.Denied || refusal.Rule != ruleHeaders {
			t.Errorf("%s: %v", name, refusal)
		}
	}
	for _, h := range [][2]string{
		{"", "x"}, {":authority", "x"}, {"a b", "x"}, {"a:", "x"}, {"a\r\nb", "x"}, {"ä", "x"}, {strings.Repeat("a", 257), "x"},
		{"a", "b\r\nc: d"}, {"a", "b\nc"}, {"a", "b\rc"}, {"a", "b\x00"}, {"a", "b\x7f"}, {"a", " b"}, {"a", "b "}, {"a", "\tb"},
	} {
		if _, refusal := parseHeaders([][2]string{h}); refusal == nil || refusal.Code != backend.Invalid {
			t.Errorf("%q: %v", h, refusal)
		}
	}
	many := make([][2]string, limits.HTTPHeaders+1)
	for i := range many {
		many[i] = [2]string{"a", "b"}
	}
	for _, list := range [][][2]string{many, {{"a", strings.Repeat("b", limits.HTTPHeaderBytes)}}} {
		if _, refusal := parseHeaders(list); refusal == nil || refusal.Code != backend.Invalid {
			t.Errorf("%d headers: %v", len(list), refusal)
		}
	}
	got, refusal := parseHeaders([][2]string{{"accept", "a"}, {"X-Api-Key", "k\t1"}, {"Accept", "b"}, {"empty", ""}, {"cookie", "ü=1"}})
	if refusal != nil || len(got["Accept"]) != 2 || got.Get("x-api-key") != "k\t1" {
		t.Errorf("%v, %v", got, refusal)
	}
}

// Whatever is accepted means the same to the standard library, is written in one
// way, and cannot end a line of a request.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{
		"https://api.example/v1/x?y#z", "http://[2001:DB8::0]:8080/%7e/%3a", "https://api.example@evil.example/", "https://127.1/", "https://api.example/a/..;/b",
		"https://api.example/a%2fb?c=%zz", "https://10.1.2.3:80/8", "https://a.example\\b", "HTTPS://A.example:443/*", "https://x/?a#b?c", "https://a.example#%",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, refusal := parseTarget(s)
		if refusal != nil {
			if refusal.Code != backend.Invalid || got != (target{}) {
				t.Fatalf("%q: %+v with %+v", s, refusal, got)
			}
			return
		}
		text := got.String()
		again, refusal := parseTarget(text)
		if refusal != nil || again != got {
			t.Fatalf("%q is written %q, which is %+v, %v", s, text, again, refusal)
		}
		if strings.ToLower(got.origin()) != got.origin() || strings.ContainsAny(text, " \r\n\t\x00\\") {
			t.Fatalf("%q is written %q", s, text)
		}
		sent, _, _ := strings.Cut(s, "#")
		theirs, err := url.Parse(sent)
		if err != nil {
			t.Fatalf("%q is no URL to others: %v", s, err)
		}
		ours, refusal := got.wire("")
		if refusal != nil {
			t.Fatalf("%q cannot be sent: %v", s, refusal)
		}
		if theirs.User != nil || !strings.EqualFold(theirs.Scheme, ours.Scheme) || ours.RawQuery != theirs.RawQuery || ours.Port() != "" && ours.Port() != theirs.Port() {
			t.Fatalf("%q: %v is not %v", s, ours, theirs)
		}
		if !strings.HasPrefix(got.host, "[") && !strings.EqualFold(theirs.Hostname(), got.host) {
			t.Fatalf("%q: host %q is not %q", s, got.host, theirs.Hostname())
		}
		if strings.TrimPrefix(theirs.Path, "/") != strings.TrimPrefix(ours.Path, "/") {
			t.Fatalf("%q: path %q is not %q", s, ours.Path, theirs.Path)
		}
		req := http.Request{Method: "GET", URL: ours, Host: ours.Host}
		if uri := req.URL.RequestURI(); uri != strings.TrimPrefix(text, got.origin()) {
			t.Fatalf("%q is sent as %q", text, uri)
		}
	})
}

// A head is refused, or what it becomes is what can be sent.
func FuzzParseHead(f *testing.F) {
	f.Add([]byte(`{"method":"GET","url":"https://api.example/","headers":[["a","b"]],"timeout_ms":5,"redirects":1}`))
	f.Add([]byte(`{"method":"TRACE","url":"https://api.example/"}`))
	f.Add([]byte(`{"method":"GET","url":"https://api.example/","headers":[["a\r\n","b"]]}`))
	f.Add([]byte(`{"method":"GET","url":"https://api.example/","url":"https://evil.example/"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, refusal := parseHead(data)
		if refusal != nil {
			if r.method != "" || r.headers != nil {
				t.Fatalf("%q: refused with a request", data)
			}
			return
		}
		if r.redirects < 0 || r.redirects > limits.Redirects || r.timeout < 0 {
			t.Fatalf("%q: %+v", data, r)
		}
		for name, values := range r.headers {
			for _, v := range values {
				if strings.ContainsAny(name+v, "\r\n\x00") || forbiddenHeader(name) {
					t.Fatalf("%q: header %q: %q", data, name, v)
				}
			}
		}
	})
}
