package egress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testnet"
	"github.com/mentatlab/mentat/internal/version"
	"github.com/mentatlab/mentat/manifest"
)

func on(s *testnet.Server, scheme, host string) string {
	return "network:" + scheme + ":" + host + ":" + s.Port
}

func TestAGrantedRequestIsServed(t *testing.T) {
	rec := &recorder{serve: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("X-Two", "a")
		w.Header().Add("X-Two", "b")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "short and stout")
	}}
	s := testnet.Plain(t, rec)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	head := get(s.At("api.example", "/a%7Eb?q=1"), "method", "PUT", "headers", [][]string{{"x-mine", "1"}, {"x-mine", "2"}})
	a := w.fetch(t, c, head, "body").gives(t, http.StatusTeapot, "short and stout")
	if a.URL != s.At("api.example", "/a~b?q=1") || a.header("Keep-Alive") != "" {
		t.Errorf("%+v", a.responseHead)
	}
	if n := slices.IndexFunc(a.Headers, func(h [2]string) bool { return h[0] == "X-Two" }); n < 0 || a.Headers[n][1] != "a" || a.Headers[n+1] != [2]string{"X-Two", "b"} {
		t.Errorf("%v", a.Headers)
	}
	r := rec.last()
	if r.Method != "PUT" || r.Host != "api.example:"+s.Port || r.RequestURI != "/a~b?q=1" || strings.Join(r.Header["X-Mine"], ",") != "1,2" || rec.body[0] != "body" {
		t.Errorf("%s %s %s %v %q", r.Method, r.Host, r.RequestURI, r.Header, rec.body)
	}
}

// What is on the wire, byte for byte.
func TestARequestIsSentExactlyAsItWasJudged(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var lines []string
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
			lines = append(lines, line)
		}
		got <- strings.Join(lines, "")
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	w := newWorld(t, []string{"network:http:api.example:" + port}, nil)
	w.fetch(t, "network:http:api.example:"+port, get("http://API.example:"+port+"/a//%2f;x?b=%20|#f", "headers", [][]string{{"accept", "x"}}), "").gives(t, 204, "")
	want := "GET /a//%2f;x?b=%20| HTTP/1.1\r\nHost: api.example:" + port + "\r\nUser-Agent: mentat/" + version.Version + "\r\nAccept: x\r\n"
	if text := <-got; text != want {
		t.Errorf("sent %q, want %q", text, want)
	}
}

func TestWhatIsNotCoveredIsDeniedAndNothingIsSent(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	granted := on(s, "http", "api.example") + "/v1"
	w := newWorld(t, []string{granted, "network:http:*.granted.example"}, nil)
	for _, url := range []string{
		s.At("other.example", "/v1"), s.At("sub.api.example", "/v1"), s.At("127.0.0.1", "/v1"), s.At("api.example", "/"), s.At("api.example", "/v1x"), s.At("api.example", "/v1//"),
		strings.Replace(s.At("api.example", "/v1"), "http:", "https:", 1), "http://api.example/v1", "http://x.granted.example/v1",
	} {
		w.fetch(t, granted, get(url), "").wants(t, backend.Denied, "does not cover")
	}
	for _, c := range []string{"network:http:other.example", "network:https:api.example", on(s, "http", "api.example"), on(s, "http", "127.0.0.1"), "network:http:granted.example"} {
		if _, refusal := w.Open(t.Context(), "run", backend.Grant{Capability: parsed(t, c)}); refusal == nil || refusal.Code != backend.Denied || !strings.Contains(refusal.Hint, parsed(t, c).String()) {
			t.Errorf("%s: %v", c, refusal)
		}
	}
	if _, refusal := w.Open(t.Context(), "run", backend.Grant{Capability: parsed(t, "env:X")}); refusal == nil {
		t.Error("a variable is opened")
	}
	if _, refusal := w.open(t, granted).Invoke(t.Context(), "connect", get(s.At("api.example", "/v1")), nil); refusal == nil || refusal.Code != backend.Unsupported {
		t.Errorf("%v", refusal)
	}
	if rec.count() != 0 {
		t.Errorf("%d requests were sent", rec.count())
	}
}

func TestWhatADenialCutsOutIsRefused(t *testing.T) {
	rec := redirector()
	s := testnet.Plain(t, rec)
	c := on(s, "http", "*.example")
	holes := []hostdoc.Hole{
		{Capability: "network:http:other.example", Rule: "no-other"},
		{Capability: "network:*:api.example/admin", Rule: "no-admin"},
		{Capability: "network:http:127.0.0.2", Rule: "no-two"},
		{Capability: "network:https:127.0.0.3", Rule: "not-http"},
		{Capability: "network:http:api.example/counted", Rule: "counted", DryRun: true},
	}
	w := newWorld(t, []string{c}, func(c *Config) { c.Document.Holes = holes })
	w.resolver.Set("two.example", "127.0.0.2").Set("both.example", "127.0.0.2 127.0.0.1").Set("three.example", "127.0.0.3 127.0.0.1")
	for url, rule := range map[string]string{
		s.At("other.example", "/"):           "no-other",
		s.At("api.example", "/admin"):        "no-admin",
		s.At("api.example", "/%61dmin/x"):    "no-admin",
		s.At("api.example", "//admin"):       "no-admin", // a path that may mean anything
		s.At("api.example", "/x%2fadmin/"):   "no-admin",
		s.At("two.example", "/"):             "no-two",
		s.At("api.example", "/302?to=admin"): "no-admin",
	} {
		a := w.fetch(t, c, get(url, "redirects", 1), "")
		a.wants(t, backend.Denied, "")
		if a.refusal != nil && a.refusal.Rule != rule {
			t.Errorf("%s: by %q, want %q", url, a.refusal.Rule, rule)
		}
	}
	if rec.count() != 1 {
		t.Errorf("%d requests were sent", rec.count())
	}
	if _, refusal := w.Open(t.Context(), "run", backend.Grant{Capability: parsed(t, on(s, "http", "other.example"))}); refusal == nil || refusal.Rule != "no-other" {
		t.Errorf("%v", refusal)
	}
	for _, url := range []string{s.At("api.example", "/administrator"), s.At("both.example", "/"), s.At("three.example", "/"), s.At("sub.api.example", "/admin")} {
		if a := w.fetch(t, c, get(url), ""); a.refusal != nil {
			t.Errorf("%s: %v", url, a.refusal)
		}
	}
	var counted []string
	ctx := backend.WithCounter(t.Context(), func(c manifest.Capability, rules []string) { counted = append(counted, c.Path+" "+rules[0]) })
	got, refusal := w.open(t, c).Invoke(ctx, "fetch", get(s.At("api.example", "/counted")), nil)
	if refusal != nil {
		t.Fatal(refusal)
	}
	whole(t, got).gives(t, 200, "GET /counted")
	if len(counted) != 1 || counted[0] != "/counted counted" {
		t.Errorf("counted %q", counted)
	}
}

func TestFullModeReachesPublicHostsWithoutAGrantAndNothingElse(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	w := newWorld(t, []string{on(s, "http", "api.example")}, func(c *Config) { c.Document.Network.Mode = hostdoc.NetworkFull })
	w.resolver.Set("public.example", "192.0.2.1") // no such address, but a name may be opened
	w.open(t, "network:https:public.example")
	v := newWorld(t, nil, func(c *Config) {
		c.Document.Network.Mode, c.Document.Holes = hostdoc.NetworkFull, []hostdoc.Hole{{Capability: "network:*:*.example", Rule: "none"}}
	})
	if _, refusal := v.Open(t.Context(), "run", backend.Grant{Capability: parsed(t, "network:https:public.example")}); refusal == nil || refusal.Rule != "none" {
		t.Errorf("%v", refusal)
	}
	// Nothing private without a grant, even where the node opens a range.
	for _, host := range []string{"other.example", "127.0.0.1"} {
		w.fetch(t, on(s, "http", host), get(s.At(host, "/")), "").wants(t, backend.Denied, "loopback")
	}
	w.fetch(t, on(s, "http", "api.example"), get(s.At("api.example", "/")), "").gives(t, 200, "ok")
	if rec.count() != 1 {
		t.Errorf("%d requests", rec.count())
	}
}

func TestAPrivateAddressNeedsARangeOfTheNodeOrOfTheGrant(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	name, literal := on(s, "http", "api.example"), on(s, "http", "127.0.0.1")
	closed := func(c *Config) { c.Document.Network.AllowPrivate = nil }
	everything := "network:http:0.0.0.0/0:" + s.Port
	loop := "network:http:127.0.0.0/8:" + s.Port
	for _, c := range []struct {
		what, grant, open, url string
		edit                   func(*Config)
		ok                     bool
	}{
		{"a name and no range", name, name, s.At("api.example", "/"), closed, false},
		{"a name and the node's range", name, name, s.At("api.example", "/"), nil, true},
		{"a range of private addresses", loop, literal, s.At("127.0.0.1", "/"), closed, true},
		{"a single address", literal, literal, s.At("127.0.0.1", "/"), closed, true},
		{"a part of every address", everything, literal, s.At("127.0.0.1", "/"), closed, false},
		{"every address", everything, everything, s.At("127.0.0.1", "/"), closed, false},
		{"an unusual form", "network:http:[::]/0:" + s.Port, "network:http:[::]/0:" + s.Port, "http://[64:ff9b::7f00:1]:" + s.Port + "/", closed, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			before := rec.count()
			a := newWorld(t, []string{c.grant}, c.edit).fetch(t, c.open, get(c.url), "")
			if c.ok {
				a.gives(t, 200, "ok")
				return
			}
			a.wants(t, backend.Denied, "loopback")
			if rec.count() != before {
				t.Error("a request was sent")
			}
		})
	}
	// Of two grants the narrower counts, in any order.
	for _, grants := range [][]string{{everything, loop}, {loop, everything}} {
		newWorld(t, grants, closed).fetch(t, literal, get(s.At("127.0.0.1", "/")), "").gives(t, 200, "ok")
	}
}

func TestMetadataServicesStayClosed(t *testing.T) {
	for _, c := range []struct{ grant, open, url string }{
		{"network:http:meta.example", "network:http:meta.example", "http://meta.example/latest/meta-data/"},
		{"network:http:169.254.0.0/16", "network:http:169.254.169.254", "http://169.254.169.254/latest/meta-data/"},
		{"network:http:169.254.0.0/16", "network:http:169.254.0.0/16", "http://169.254.169.254/"},
		{"network:http:[fd00::]/8", "network:http:[fd00::]/8", "http://[fd00:ec2::254]/"},
		{"network:http:0.0.0.0/0", "network:http:169.254.169.254", "http://169.254.169.254/"},
	} {
		w := newWorld(t, []string{c.grant}, func(c *Config) { c.Document.Network.AllowPrivate = []string{"169.254.0.0/16"} })
		w.resolver.Set("meta.example", "169.254.169.254")
		w.fetch(t, c.open, get(c.url), "").wants(t, backend.Denied, "metadata")
	}
}

func TestDNSRebindingDoesNotReachInside(t *testing.T) {
	rec := &recorder{serve: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close") // the next request needs a new connection
		_, _ = io.WriteString(w, "ok")
	}}
	s := testnet.Plain(t, rec)
	c := on(s, "http", "rebind.example")
	w := newWorld(t, []string{c}, func(c *Config) { c.Document.Network.AllowPrivate = []string{"127.0.0.2/32"} })
	// The first answer is allowed, the second is not: each request that
	// connects is judged by the one answer that it dials.
	w.resolver.Set("rebind.example", "127.0.0.2", "127.0.0.1")
	l, err := net.Listen("tcp", "127.0.0.2:"+s.Port)
	if err != nil {
		t.Fatal(err)
	}
	second := &http.Server{Handler: rec, ReadHeaderTimeout: time.Minute}
	go func() { _ = second.Serve(l) }()
	defer second.Close()
	w.fetch(t, c, get(s.At("rebind.example", "/")), "").gives(t, 200, "ok")
	if w.resolver.Asked("rebind.example") != 1 {
		t.Errorf("the name was resolved %d times for one request", w.resolver.Asked("rebind.example"))
	}
	w.fetch(t, c, get(s.At("rebind.example", "/")), "").wants(t, backend.Denied, "loopback")
	if rec.count() != 1 {
		t.Errorf("%d requests", rec.count())
	}
}

func TestBlockedPortsAreRefusedWhateverIsGranted(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	var port int
	if _, err := fmt.Sscan(s.Port, &port); err != nil {
		t.Fatal(err)
	}
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c, "network:http:api.example:25"}, func(c *Config) { c.Document.Network.BlockedPorts = []int{port} })
	w.fetch(t, c, get(s.At("api.example", "/")), "").wants(t, backend.Denied, "blocked")
	w.fetch(t, "network:http:api.example:25", get("http://api.example:25/"), "").wants(t, backend.Denied, "other than HTTP")
	if rec.count() != 0 || w.resolver.Asked("api.example") != 0 {
		t.Error("something was asked")
	}
}

func TestArgumentsNarrowTheMethods(t *testing.T) {
	rec := &recorder{serve: func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/other" {
			http.Redirect(w, r, "/", http.StatusSeeOther)
		}
	}}
	s := testnet.Plain(t, rec)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	open := func(args string) (backend.Capability, *backend.Refusal) {
		return w.Open(t.Context(), "run", backend.Grant{Capability: parsed(t, c), Args: json.RawMessage(args)})
	}
	only, refusal := open(`{"methods":["POST","HEAD"]}`)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := only.Invoke(t.Context(), "fetch", get(s.At("api.example", "/")), nil); refusal == nil || refusal.Code != backend.Denied || refusal.Rule != ruleMethods {
		t.Errorf("%v", refusal)
	}
	if rec.count() != 0 {
		t.Error("a request was sent")
	}
	// A redirect does not make another method out of it.
	got, refusal := only.Invoke(t.Context(), "fetch", get(s.At("api.example", "/other"), "method", "POST", "redirects", 1), nil)
	if refusal != nil {
		t.Fatal(refusal)
	}
	whole(t, got).wants(t, backend.Denied, "method")
	for _, args := range []string{`[]`, `{"hosts":["x"]}`, `{"methods":["get"]}`, `{"methods":["TRACE"]}`, `{"methods":"GET"}`, `{`} {
		if _, refusal := open(args); refusal == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	for _, args := range []string{``, `{}`, `{"methods":[]}`} {
		if _, refusal := open(args); refusal != nil {
			t.Errorf("%s: %v", args, refusal)
		}
	}
}

// redirector sends /to?URL there with a status.
func redirector() *recorder {
	return &recorder{serve: func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/loop" {
			http.Redirect(w, r, "/loop", http.StatusFound)
			return
		}
		if to, ok := strings.CutPrefix(r.URL.RawQuery, "to="); ok {
			if text, err := url.QueryUnescape(to); err == nil {
				to = text
			}
			status := http.StatusFound
			if n, err := fmt.Sscanf(r.URL.Path, "/%d", &status); n != 1 || err != nil {
				status = http.StatusFound
			}
			w.Header().Set("Location", to)
			w.WriteHeader(status)
			return
		}
		_, _ = io.WriteString(w, r.Method+" "+r.URL.Path)
	}}
}

func TestRedirectsAreNotFollowedUnlessAsked(t *testing.T) {
	rec := redirector()
	s := testnet.Plain(t, rec)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	a := w.fetch(t, c, get(s.At("api.example", "/302?to=/end")), "")
	if a.refusal != nil || a.Status != 302 || a.header("Location") != "/end" || rec.count() != 1 {
		t.Errorf("%+v, %d requests", a, rec.count())
	}
}

func TestRedirectsAreFollowedWithinTheCapability(t *testing.T) {
	rec := redirector()
	s := testnet.Plain(t, rec)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	for _, r := range []struct {
		status       int
		method, want string
	}{
		{301, "GET", "GET /end"}, {302, "GET", "GET /end"}, {303, "GET", "GET /end"}, {307, "GET", "GET /end"}, {308, "GET", "GET /end"},
		{301, "POST", "GET /end"}, {302, "POST", "GET /end"}, {303, "PUT", "GET /end"}, {307, "POST", "POST /end"}, {308, "PUT", "PUT /end"}, {302, "PUT", "PUT /end"},
	} {
		a := w.fetch(t, c, get(s.At("api.example", fmt.Sprintf("/%d?to=../end", r.status)), "method", r.method, "redirects", 5), "body").gives(t, 200, r.want)
		if a.URL != s.At("api.example", "/end") {
			t.Errorf("%s", a.URL)
		}
		if body := rec.body[len(rec.body)-1]; (body == "body") != strings.HasPrefix(r.want, r.method) && r.method != "GET" {
			t.Errorf("%v: the body was %q", r, body)
		}
	}
	before := rec.count()
	w.fetch(t, c, get(s.At("api.example", "/loop"), "redirects", 3), "").wants(t, backend.Limit, "more than 3 times")
	if rec.count()-before != 4 {
		t.Errorf("%d requests", rec.count()-before)
	}
}

func TestARedirectOutOfTheCapabilityIsRefusedAndNotFollowed(t *testing.T) {
	inside := &recorder{}
	target := testnet.Plain(t, inside)
	secure := redirector()
	rec := redirector()
	s := testnet.Plain(t, rec)
	wide := []string{on(s, "http", "api.example"), on(target, "http", "other.example"), on(target, "http", "127.0.0.1"), on(target, "http", "*.inside.example")}
	w := newWorld(t, wide, nil)
	tls := w.ca.Secure(t, secure, nil, "api.example")
	c := on(s, "http", "api.example")
	for _, to := range []string{
		target.At("other.example", "/"), target.At("127.0.0.1", "/"), target.At("127.1", "/"), "//other.example:" + target.Port + "/", "http://user@api.example:" + s.Port + "/",
		"https://api.example:" + s.Port + "/", "http://api.example/", "ftp://api.example/", "javascript:x", "http://", "\\\\other.example:" + target.Port + "/", "http:\\\\other.example/",
		target.At("169.254.169.254", "/"), "file:///etc/passwd",
	} {
		a := w.fetch(t, c, get(s.At("api.example", "/302?to="+url.QueryEscape(to)), "redirects", 5), "")
		if a.refusal == nil && a.Status == 200 && strings.HasPrefix(a.URL, s.At("api.example", "/")) {
			continue // a backslash is no slash: it stays at the host
		}
		if a.refusal == nil || !strings.Contains(a.refusal.Reason, "the host redirects") || a.refusal.Code != backend.Denied && a.refusal.Code != backend.Unavailable {
			t.Errorf("%s: %d %q, %+v", to, a.Status, a.URL, a.refusal)
		}
	}
	// A name that the capability covers, and whose address is inside.
	w.resolver.Set("x.inside.example", "10.0.0.1")
	wild := "network:http:*.inside.example:" + target.Port
	w.fetch(t, wild, get("http://x.inside.example:"+target.Port+"/", "redirects", 5), "").wants(t, backend.Denied, "private")
	// From https to http, though both are granted.
	both := "network:*:api.example:" + tls.Port
	v := newWorld(t, []string{both}, func(c *Config) { c.Document.Network.CAFile = w.ca.File })
	v.fetch(t, both, get(tls.At("api.example", "/302?to=http://api.example:"+tls.Port+"/"), "redirects", 5), "").wants(t, backend.Denied, "https to http")
	if inside.count() != 0 {
		t.Errorf("%d requests came through", inside.count())
	}
}

func TestCredentialsStayWithTheirOrigin(t *testing.T) {
	rec := redirector()
	s := testnet.Plain(t, rec)
	c := on(s, "http", "*.example")
	w := newWorld(t, []string{c}, nil)
	headers := [][]string{{"Authorization", "guest-credential"}, {"Cookie", "guest-credential"}, {"X-Api-Key", "guest-credential"}, {"Accept", "text/plain"}}
	// Back to where it came from, too, nothing is sent again.
	to := s.At("other.example", "/302?to="+s.At("api.example", "/end"))
	w.fetch(t, c, get(s.At("api.example", "/302?to="+to), "headers", headers, "redirects", 5), "").gives(t, 200, "GET /end")
	if rec.count() != 3 {
		t.Fatalf("%d requests", rec.count())
	}
	for i, r := range rec.seen {
		text := fmt.Sprint(r.Header)
		if strings.Contains(text, "guest-credential") != (i == 0) || r.Header.Get("Accept") != "text/plain" || strings.Contains(text, "Referer") {
			t.Errorf("hop %d: %s", i, text)
		}
	}
	// Within the origin they go along.
	w.fetch(t, c, get(s.At("api.example", "/302?to=/end"), "headers", headers, "redirects", 5), "").gives(t, 200, "GET /end")
	if rec.last().Header.Get("Authorization") != "guest-credential" {
		t.Errorf("%v", rec.last().Header)
	}
	before := rec.count()
	w.fetch(t, c, get(s.At("api.example", "/307?to="+s.At("other.example", "/end")), "method", "POST", "redirects", 5), "body").wants(t, backend.Denied, "body to another origin")
	if rec.count() != before+1 {
		t.Error("the body was sent")
	}
}

func TestSizesAreBounded(t *testing.T) {
	rec := &recorder{serve: func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/declared":
			w.Header().Set("Content-Length", "101")
			_, _ = w.Write(make([]byte, 101))
		case "/chunked":
			for range 101 {
				_, _ = w.Write([]byte("x"))
				if f, ok := w.(http.Flusher); ok {
					f.Flush()
				}
			}
		case "/headers":
			w.Header().Set("X-Long", strings.Repeat("x", 2*limits.HTTPHeaderBytes))
		case "/exact":
			_, _ = w.Write(bytes.Repeat([]byte("x"), 100))
		case "/zip":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(make([]byte, 10_000))
			_ = z.Close()
		}
	}}
	s := testnet.Plain(t, rec)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, func(c *Config) {
		c.Document.Network.Limits.RequestBytes, c.Document.Network.Limits.ResponseBytes = 10, 100
	})
	w.fetch(t, c, get(s.At("api.example", "/"), "method", "POST"), "12345678901").wants(t, backend.Limit, "request size")
	if rec.count() != 0 {
		t.Error("a request was sent")
	}
	w.fetch(t, c, get(s.At("api.example", "/"), "method", "POST"), "1234567890").gives(t, 200, "")
	w.fetch(t, c, get(s.At("api.example", "/exact")), "").gives(t, 200, strings.Repeat("x", 100))
	w.fetch(t, c, get(s.At("api.example", "/declared")), "").wants(t, backend.Limit, "response size")
	w.fetch(t, c, get(s.At("api.example", "/declared"), "method", "HEAD"), "").gives(t, 200, "")
	a := w.fetch(t, c, get(s.At("api.example", "/chunked")), "")
	a.wants(t, backend.Limit, "response size")
	if len(a.body) != 100 {
		t.Errorf("%d bytes before the limit", len(a.body))
	}
	w.fetch(t, c, get(s.At("api.example", "/headers")), "").wants(t, backend.Unavailable, "")
	// A bomb stays folded.
	if a := w.fetch(t, c, get(s.At("api.example", "/zip")), ""); a.refusal != nil || a.header("Content-Encoding") != "gzip" || len(a.body) > 100 {
		t.Errorf("%d bytes, %v", len(a.body), a.refusal)
	}
	if ae := rec.last().Header.Get("Accept-Encoding"); ae != "" {
		t.Errorf("compression was asked for: %q", ae)
	}
}

// hanging answers when it is told to, or never.
func hanging(t *testing.T) (s *testnet.Server, arrived chan string, release func()) {
	arrived, stop := make(chan string, 1000), make(chan struct{})
	release = sync.OnceFunc(func() { close(stop) })
	s = testnet.Plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		if r.URL.Path == "/body" {
			_, _ = io.WriteString(w, "first")
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-stop:
		case <-r.Context().Done():
			arrived <- "gone"
		}
	}))
	t.Cleanup(release)
	return s, arrived, release
}

func TestTimeIsBoundedByTheTighterOfGuestAndNode(t *testing.T) {
	t.Parallel()
	s, _, _ := hanging(t)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, func(c *Config) { c.Document.Network.Limits.TimeoutMillis = 50 })
	w.fetch(t, c, get(s.At("api.example", "/")), "").wants(t, backend.Deadline, "longer than 50 ms")
	w.fetch(t, c, get(s.At("api.example", "/"), "timeout_ms", 20), "").wants(t, backend.Deadline, "longer than 20 ms")
	w.fetch(t, c, get(s.At("api.example", "/"), "timeout_ms", 60_000), "").wants(t, backend.Deadline, "longer than 50 ms")
	// What came before stays.
	v := newWorld(t, []string{c}, func(c *Config) { c.Document.Network.Limits.TimeoutMillis = 5000 })
	a := v.fetch(t, c, get(s.At("api.example", "/body")), "")
	a.wants(t, backend.Deadline, "longer than 5000 ms")
	if a.body != "first" {
		t.Errorf("%q", a.body)
	}
}

func TestACallEndsWithItsRunAndTheServerNotices(t *testing.T) {
	s, arrived, _ := hanging(t)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	for _, path := range []string{"/head", "/body"} {
		for name, end := range map[string]struct {
			cause error
			code  backend.Code
		}{
			"canceled": {errors.New("SIGTERM"), backend.Canceled},
			"deadline": {context.DeadlineExceeded, backend.Deadline},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			got, refusal := w.open(t, c).Invoke(ctx, "fetch", get(s.At("api.example", path)), nil)
			if refusal != nil {
				t.Fatal(refusal)
			}
			if at := <-arrived; at != path {
				t.Fatal(at)
			}
			if path == "/body" {
				if _, err := io.ReadFull(got, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
			}
			cancel(end.cause)
			a := whole(t, got)
			if a.refusal == nil || a.refusal.Code != end.code {
				t.Errorf("%s %s: %+v", path, name, a.refusal)
			}
			if at := <-arrived; at != "gone" {
				t.Errorf("the server saw %q", at)
			}
		}
		// The guest closes the handle.
		got, refusal := w.open(t, c).Invoke(t.Context(), "fetch", get(s.At("api.example", path)), nil)
		if refusal != nil {
			t.Fatal(refusal)
		}
		<-arrived
		if err := got.Close(); err != nil {
			t.Fatal(err)
		}
		if at := <-arrived; at != "gone" {
			t.Errorf("the server saw %q", at)
		}
	}
}

func TestRequestsRunInParallelUpToTheNodesNumber(t *testing.T) {
	s, arrived, release := hanging(t)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, func(c *Config) { c.Document.Network.Limits.Concurrent = 3 })
	opened := w.open(t, c)
	var answers []backend.Answer
	for i := range 5 {
		// Invoke does not wait for the answer.
		got, refusal := opened.Invoke(t.Context(), "fetch", get(s.At("api.example", fmt.Sprint("/", i))), nil)
		if refusal != nil {
			t.Fatal(refusal)
		}
		answers = append(answers, got)
	}
	for range 3 {
		<-arrived
	}
	select {
	case path := <-arrived:
		t.Errorf("%s runs beside three others", path)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	for _, got := range answers {
		whole(t, got).gives(t, 200, "")
	}
	within(t, "the others run, too", func() bool { return len(arrived) == 2 })
}

func TestCallsBeyondTheQueueAreRefusedAtOnce(t *testing.T) {
	s, _, release := hanging(t)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, func(c *Config) { c.Document.Network.Limits.RequestBytes = 100 })
	opened := w.open(t, c)
	var answers []backend.Answer
	for range 4 {
		got, refusal := opened.Invoke(t.Context(), "fetch", get(s.At("api.example", "/"), "method", "POST"), make([]byte, 100))
		if refusal != nil {
			t.Fatal(refusal)
		}
		answers = append(answers, got)
	}
	if _, refusal := opened.Invoke(t.Context(), "fetch", get(s.At("api.example", "/"), "method", "POST"), []byte("x")); refusal == nil || refusal.Code != backend.Limit || refusal.RetryAfter == 0 {
		t.Errorf("%v", refusal)
	}
	for len(answers) < limits.QueuedCalls {
		got, refusal := opened.Invoke(t.Context(), "fetch", get(s.At("api.example", "/")), nil)
		if refusal != nil {
			t.Fatal(refusal)
		}
		answers = append(answers, got)
	}
	if _, refusal := opened.Invoke(t.Context(), "fetch", get(s.At("api.example", "/")), nil); refusal == nil || refusal.Code != backend.Limit {
		t.Errorf("%v", refusal)
	}
	release()
	for _, got := range answers {
		got.Close()
	}
	within(t, "the places are free again", func() bool {
		got, refusal := opened.Invoke(t.Context(), "fetch", get(s.At("api.example", "/")), nil)
		if refusal == nil {
			got.Close()
		}
		return refusal == nil
	})
}

func TestABodyIsStreamed(t *testing.T) {
	more := make(chan string)
	s := testnet.Plain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for text := range more {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	got, refusal := w.open(t, c).Invoke(t.Context(), "fetch", get(s.At("api.example", "/")), nil)
	if refusal != nil {
		t.Fatal(refusal)
	}
	for _, text := range []string{"one", "two", "three"} {
		more <- text
		p := make([]byte, 100)
		n, err := io.ReadAtLeast(got, p, len(text))
		if err != nil || string(p[:n]) != text {
			t.Fatalf("%q, %v", p[:n], err)
		}
	}
	close(more)
	if rest, err := io.ReadAll(got); len(rest) != 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	got.Close()
}

// connections counts the connections that a server gets.
func connections(t *testing.T, h http.Handler) (*testnet.Server, *atomic.Int32) {
	t.Helper()
	n := new(atomic.Int32)
	ts := httptest.NewUnstartedServer(h)
	ts.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			n.Add(1)
		}
	}
	ts.Start()
	t.Cleanup(ts.Close)
	_, port, _ := net.SplitHostPort(ts.Listener.Addr().String())
	return &testnet.Server{Server: ts, Port: port}, n
}

func TestConnectionsAreReusedWithinAGrantAndNeverAcross(t *testing.T) {
	s, n := connections(t, &recorder{})
	a, b := on(s, "http", "api.example")+"/a", on(s, "http", "api.example")+"/b"
	w := newWorld(t, []string{a, b}, nil)
	for range 5 {
		w.fetch(t, a, get(s.At("api.example", "/a")), "").gives(t, 200, "ok")
		w.fetch(t, a+"/x", get(s.At("api.example", "/a/x")), "").gives(t, 200, "ok")
	}
	if n.Load() != 1 {
		t.Errorf("%d connections for one grant", n.Load())
	}
	for range 5 {
		w.fetch(t, b, get(s.At("api.example", "/b")), "").gives(t, 200, "ok")
	}
	if n.Load() != 2 {
		t.Errorf("%d connections for two grants", n.Load())
	}
}

func TestTLSNamesItsVersionAuthorityAndName(t *testing.T) {
	rec := &recorder{}
	w := newWorld(t, nil, nil)
	other := testnet.NewCA(t)
	serve := func(ca *testnet.CA, edit func(*httptest.Server), names ...string) *testnet.Server {
		return ca.Secure(t, rec, edit, names...)
	}
	quiet := func(s *httptest.Server) { s.Config.ErrorLog = log.New(io.Discard, "", 0) }
	for name, c := range map[string]struct {
		s    *testnet.Server
		want string
	}{
		"another authority": {serve(other, quiet, "api.example"), "no authority that this node trusts"},
		"another name":      {serve(w.ca, quiet, "evil.example"), "for another name"},
		"expired": {serve(w.ca, func(s *httptest.Server) {
			quiet(s)
			s.TLS.Certificates = []tls.Certificate{w.ca.Certificate(t, time.Now().Add(-time.Hour), "api.example")}
		}, "api.example"), "expired"},
		"an old version": {serve(w.ca, func(s *httptest.Server) {
			quiet(s)
			s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}, "api.example"), "TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			g := on(c.s, "https", "api.example")
			v := newWorld(t, []string{g}, func(c *Config) { c.Document.Network.CAFile = w.ca.File })
			v.fetch(t, g, get(c.s.At("api.example", "/")), "").wants(t, backend.Unavailable, c.want)
		})
	}
	if rec.count() != 0 {
		t.Errorf("%d requests were sent", rec.count())
	}
	good := serve(w.ca, nil, "api.example", "127.0.0.1")
	for _, host := range []string{"api.example", "127.0.0.1"} {
		g := on(good, "https", host)
		v := newWorld(t, []string{g}, func(c *Config) { c.Document.Network.CAFile = w.ca.File })
		v.fetch(t, g, get(good.At(host, "/")), "").gives(t, 200, "ok")
		if rec.last().ProtoMajor != 2 || rec.last().TLS.Version < tls.VersionTLS12 {
			t.Errorf("%s over %s, TLS %x", host, rec.last().Proto, rec.last().TLS.Version)
		}
	}
	old := serve(w.ca, func(s *httptest.Server) {
		s.EnableHTTP2 = false
		s.TLS.MaxVersion = tls.VersionTLS12
	}, "api.example")
	g := on(old, "https", "api.example")
	v := newWorld(t, []string{g}, func(c *Config) { c.Document.Network.CAFile = w.ca.File })
	v.fetch(t, g, get(old.At("api.example", "/")), "").gives(t, 200, "ok")
	if rec.last().ProtoMajor != 1 {
		t.Errorf("%s", rec.last().Proto)
	}
}

// raw answers every connection with the same bytes.
func raw(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, text)
				}
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestAnswersThatAreNoneAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		code backend.Code
	}{
		"nothing":              {"", backend.Unavailable},
		"no HTTP":              {"SSH-2.0-OpenSSH\r\n", backend.Unavailable},
		"another protocol":     {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello", backend.Unavailable},
		"two lengths":          {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", backend.Unavailable},
		"a short body":         {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", backend.Unavailable},
		"a broken chunk":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", backend.Unavailable},
		"endless early hints":  {strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 10_000), backend.Unavailable},
		"a line without end":   {"HTTP/1.1 200 " + strings.Repeat("x", 4*limits.HTTPHeaderBytes), backend.Unavailable},
		"a length out of size": {"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", backend.Limit},
	} {
		t.Run(name, func(t *testing.T) {
			port := raw(t, c.text)
			g := "network:http:api.example:" + port
			a := newWorld(t, []string{g}, nil).fetch(t, g, get("http://api.example:"+port+"/"), "")
			a.wants(t, c.code, "")
		})
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	s, _, release := hanging(t)
	c := on(s, "http", "api.example")
	w := newWorld(t, []string{c}, nil)
	opened := w.open(t, c)
	before := runtime.NumGoroutine()
	for i := range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		got, refusal := opened.Invoke(ctx, "fetch", get(s.At("api.example", "/body")), nil)
		if refusal != nil {
			t.Fatal(refusal)
		}
		if i%2 == 0 {
			if _, refusal := got.Head(); refusal != nil {
				t.Fatal(refusal)
			}
		}
		if i%3 == 0 {
			cancel()
		}
		got.Close()
		cancel()
	}
	release()
	s.CloseClientConnections()
	within(t, "the goroutines of 200 calls end", func() bool {
		w.mu.Lock()
		for _, p := range w.pools {
			p.CloseIdleConnections()
		}
		w.mu.Unlock()
		return runtime.NumGoroutine() <= before+5
	})
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestAConfigurationThatCannotHoldIsRefused(t *testing.T) {
	good := func() Config {
		return Config{
			Document: &hostdoc.Document{Network: &hostdoc.Network{
				Mode: hostdoc.NetworkRestricted, Limits: hostdoc.NetworkLimits{Concurrent: 1, RequestBytes: 1, ResponseBytes: 1, TimeoutMillis: 1},
			}},
			Secrets: hostdoc.Secrets{"s": "long-enough"},
		}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	inject := func(in hostdoc.Injection) func(*Config) {
		return func(c *Config) { c.Document.Network.Inject = []hostdoc.Injection{in} }
	}
	for name, c := range map[string]struct {
		edit   func(*Config)
		reason fault.Reason
	}{
		"no limits":               {func(c *Config) { c.Document.Network.Limits = hostdoc.NetworkLimits{} }, fault.Internal},
		"no network":              {func(c *Config) { c.Document.Network = nil }, fault.Internal},
		"a broken hole":           {func(c *Config) { c.Document.Holes = []hostdoc.Hole{{Capability: "network:"}} }, fault.Internal},
		"no time":                 {func(c *Config) { c.Document.Network.Limits.TimeoutMillis = 0 }, fault.Internal},
		"a broken grant":          {func(c *Config) { c.Document.Grants = []hostdoc.Grant{{Capability: "network:"}} }, fault.Internal},
		"a public range":          {func(c *Config) { c.Document.Network.AllowPrivate = []string{"8.8.8.0/24"} }, fault.PolicyInvalid},
		"no authorities":          {func(c *Config) { c.Document.Network.CAFile = "/nonexistent" }, fault.PolicyInvalid},
		"no capability":           {inject(hostdoc.Injection{Capability: "x", Header: "a", Secret: "s"}), fault.PolicyInvalid},
		"another capability":      {inject(hostdoc.Injection{Capability: "env:X", Header: "a", Secret: "s"}), fault.PolicyInvalid},
		"either scheme":           {inject(hostdoc.Injection{Capability: "network:*:api.example", Header: "a", Secret: "s"}), fault.PolicyInvalid},
		"no place":                {inject(hostdoc.Injection{Capability: "network:https:api.example", Secret: "s"}), fault.PolicyInvalid},
		"two places":              {inject(hostdoc.Injection{Capability: "network:https:api.example", Header: "a", Query: "b", Secret: "s"}), fault.PolicyInvalid},
		"a header of the host":    {inject(hostdoc.Injection{Capability: "network:https:api.example", Header: "Host", Secret: "s"}), fault.PolicyInvalid},
		"no header's name":        {inject(hostdoc.Injection{Capability: "network:https:api.example", Header: "a b", Secret: "s"}), fault.PolicyInvalid},
		"a prefix in a query":     {inject(hostdoc.Injection{Capability: "network:https:api.example", Query: "a", Prefix: "x", Secret: "s"}), fault.PolicyInvalid},
		"a prefix with a line":    {inject(hostdoc.Injection{Capability: "network:https:api.example", Header: "a", Prefix: "x\r\n", Secret: "s"}), fault.PolicyInvalid},
		"a secret that is absent": {inject(hostdoc.Injection{Capability: "network:https:api.example", Header: "a", Secret: "t"}), fault.PolicyInvalid},
		"a short secret": {func(c *Config) {
			c.Secrets = hostdoc.Secrets{"s": "short"}
			inject(hostdoc.Injection{Capability: "network:https:api.example", Header: "a", Secret: "s"})(c)
		}, fault.PolicyInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good()
			c.edit(&cfg)
			if b, err := New(cfg); b != nil || fault.ReasonOf(err) != c.reason || strings.Contains(err.Error(), "long-enough") {
				t.Errorf("%v, %v", b, err)
			}
		})
	}
}
