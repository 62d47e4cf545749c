package egress

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/testnet"
)

// canary is the secret that must show nowhere but at the server it is for.
const canary = "sk-CANARY/4f+1=9&c d"

func injecting(list ...hostdoc.Injection) func(*Config) {
	return func(c *Config) {
		c.Document.Network.Inject = list
		c.Secrets = hostdoc.Secrets{"key": canary, "other": "another-secret-value"}
	}
}

func TestASecretIsAddedToWhatItsCapabilityCoversAndNothingElse(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	c, api := on(s, "http", "*.example"), on(s, "http", "api.example")
	w := newWorld(t, []string{c}, injecting(
		hostdoc.Injection{Capability: api + "/v1", Header: "authorization", Prefix: "Bearer ", Secret: "key"},
		hostdoc.Injection{Capability: api, Header: "Authorization", Secret: "other"},
		hostdoc.Injection{Capability: api + "/v1", Query: "key", Secret: "key"},
	))
	for _, r := range []struct{ url, auth, query string }{
		{s.At("api.example", "/v1?a=b"), "Bearer " + canary, "a=b&key=" + url.QueryEscape(canary)},
		{s.At("api.example", "/v1/x"), "Bearer " + canary, "key=" + url.QueryEscape(canary)},
		{s.At("api.example", "/v2"), "another-secret-value", ""},
		{s.At("api.example", "/v1//x"), "another-secret-value", ""}, // a path that nothing but every path covers
		{s.At("other.example", "/v1"), "", ""},
		{s.At("sub.api.example", "/v1"), "", ""},
	} {
		a := w.fetch(t, c, get(r.url), "").gives(t, 200, "ok")
		got := rec.last()
		if got.Header.Get("Authorization") != r.auth || got.URL.RawQuery != r.query {
			t.Errorf("%s: authorization %q, query %q", r.url, got.Header.Get("Authorization"), got.URL.RawQuery)
		}
		if a.URL != r.url {
			t.Errorf("the guest sees %s", a.URL)
		}
	}
}

func TestAGuestCannotSetWhatIsInjected(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	api := on(s, "http", "api.example")
	w := newWorld(t, []string{api}, injecting(
		hostdoc.Injection{Capability: api, Header: "X-Api-Key", Secret: "key"},
		hostdoc.Injection{Capability: api, Query: "key", Secret: "key"},
	))
	for _, name := range []string{"X-Api-Key", "x-api-key", "X_API_KEY", "x-api_key"} {
		w.fetch(t, api, get(s.At("api.example", "/"), "headers", [][]string{{name, "mine"}}), "").wants(t, backend.Denied, ruleInjection)
	}
	for _, query := range []string{"key=mine", "a=b&key=mine", "KEY=mine", "a;key=mine", "%6bey=mine", "key", "key[]=mine", "+key=x", "%zz=1", "k%65y%5b0%5d=x"} {
		w.fetch(t, api, get(s.At("api.example", "/?"+query)), "").wants(t, backend.Denied, ruleInjection)
	}
	if rec.count() != 0 {
		t.Errorf("%d requests were sent", rec.count())
	}
	w.fetch(t, api, get(s.At("api.example", "/?keys=1&a=key&monkey=2"), "headers", [][]string{{"X-Api-Keys", "mine"}}), "").gives(t, 200, "ok")
}

func TestASecretNeverFollowsARedirectToAnotherOrigin(t *testing.T) {
	rec, elsewhere := redirector(), redirector()
	s, e := testnet.Plain(t, rec), testnet.Plain(t, elsewhere)
	api, other := on(s, "http", "*.example"), on(e, "http", "api.example")
	// Even where the other origin would get a secret of its own.
	w := newWorld(t, []string{api, other}, injecting(
		hostdoc.Injection{Capability: api, Header: "X-Key", Secret: "key"},
		hostdoc.Injection{Capability: api, Query: "key", Secret: "key"},
		hostdoc.Injection{Capability: other, Header: "X-Key", Secret: "key"},
	))
	hops := func(r *recorder) (with, without int) {
		for _, req := range r.seen {
			if strings.Contains(fmt.Sprint(req.Header)+req.RequestURI, "CANARY") {
				with++
			} else {
				without++
			}
		}
		return with, without
	}
	a := w.fetch(t, api, get(s.At("api.example", "/302"), "redirects", 5), "") // "to" is not set: no redirect
	a.gives(t, 200, "GET /302")
	back := s.At("other.example", "/302?to="+url.QueryEscape(s.At("api.example", "/end")))
	start := newRedirect(rec, back)
	w.fetch(t, api, get(s.At("api.example", start), "redirects", 5), "").gives(t, 200, "GET /end")
	if with, without := hops(rec); with != 2 || without != 2 {
		t.Errorf("%d requests with the secret, %d without", with, without)
	}
	// Within the origin the capability of the injection decides, hop by hop.
	rec.seen = nil
	w.fetch(t, api, get(s.At("api.example", newRedirect(rec, "/end")), "redirects", 5), "").gives(t, 200, "GET /end")
	if with, without := hops(rec); with != 2 || without != 0 {
		t.Errorf("%d requests with the secret, %d without", with, without)
	}
	if len(elsewhere.seen) != 0 {
		t.Errorf("%d requests elsewhere", len(elsewhere.seen))
	}
}

// newRedirect makes the recorder redirect from the path that it returns.
func newRedirect(r *recorder, to string) string {
	inner := r.serve
	path := fmt.Sprintf("/redirect%d", len(r.seen))
	r.serve = func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == path {
			http.Redirect(w, req, to, http.StatusFound)
			return
		}
		inner(w, req)
	}
	return path
}

// echo answers with everything that it was sent, in many forms.
func echo(w http.ResponseWriter, r *http.Request) {
	all := fmt.Sprintf("%s %v", r.RequestURI, r.Header)
	key := r.Header.Get("X-Key") + r.URL.Query().Get("key")
	w.Header().Set("X-Echo", r.Header.Get("X-Key"))
	w.Header().Set("X-Basic", base64.StdEncoding.EncodeToString([]byte("user:"+key)))
	if r.URL.Path == "/moved" {
		w.Header().Set("Location", "/there?"+r.URL.RawQuery)
		w.WriteHeader(http.StatusFound)
	}
	fmt.Fprintln(w, all)
	fmt.Fprintln(w, key, url.QueryEscape(key), url.PathEscape(key), hex.EncodeToString([]byte(key)))
	for _, before := range []string{"", "u", "us", "user:"} {
		fmt.Fprintln(w, base64.StdEncoding.EncodeToString([]byte(before+key)), base64.URLEncoding.EncodeToString([]byte(before+key+"x")))
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"key": key})
	_ = http.NewResponseController(w).Flush()
}

// leaks are the forms in which the secret would be the secret.
func leaks(text string) []string {
	var found []string
	forms := map[string]string{
		"plain": canary, "query": url.QueryEscape(canary), "path": url.PathEscape(canary), "hex": hex.EncodeToString([]byte(canary)),
		"json": strings.ReplaceAll(canary, "&", `\u0026`), "a part": canary[:12], "an escaped part": url.QueryEscape(canary)[:14],
	}
	for _, before := range []string{"", "u", "us"} {
		core := base64.StdEncoding.EncodeToString([]byte(before + canary))
		forms["base64 after "+before] = core[4 : len(core)-4]
	}
	for name, form := range forms {
		if strings.Contains(text, form) {
			found = append(found, name)
		}
	}
	return found
}

func TestTheLeakTestFindsLeaks(t *testing.T) {
	for _, text := range []string{canary, url.QueryEscape(canary), base64.StdEncoding.EncodeToString([]byte("xy" + canary)), hex.EncodeToString([]byte(canary)), string(mustJSON(canary))} {
		if len(leaks("<"+text+">")) == 0 {
			t.Errorf("%s is not found", text)
		}
	}
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// Everything that a guest, a log or an audit record could see of requests that
// carry the secret: answers of servers that repeat it, refusals, failures of
// every kind.
func TestTheSecretShowsNowhere(t *testing.T) {
	ca := testnet.NewCA(t)
	var served atomic.Int32
	s := testnet.Plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if !strings.Contains(r.URL.Query().Get("key")+r.Header.Get("X-Key"), canary) {
			t.Errorf("%s arrives without the secret", r.RequestURI)
		}
		echo(w, r)
	}))
	secure := ca.Secure(t, http.HandlerFunc(echo), nil, "api.example")
	stranger := testnet.NewCA(t).Secure(t, http.HandlerFunc(echo), nil, "api.example")
	ports := []string{s.Port, raw(t, "nonsense"), raw(t, ""), raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), raw(t, "HTTP/1.1 302 Found\r\nLocation: http://%zz/\r\n\r\n"), "1"}
	var grants []string
	for _, p := range ports {
		grants = append(grants, "network:http:api.example:"+p)
	}
	grants = append(grants, on(secure, "https", "api.example"), on(stranger, "https", "api.example"), "network:http:private.example", "network:http:missing.example")
	var inject []hostdoc.Injection
	for _, g := range grants {
		inject = append(inject, hostdoc.Injection{Capability: g, Header: "X-Key", Prefix: "Bearer ", Secret: "key"}, hostdoc.Injection{Capability: g, Query: "key", Secret: "key"})
	}
	w := newWorld(t, grants, func(c *Config) {
		injecting(inject...)(c)
		c.Document.Network.CAFile = ca.File
		c.Document.Network.Limits.ResponseBytes = 4096
	})
	w.resolver.Set("private.example", "10.0.0.1")

	answered, refused := 0, 0
	see := func(what string, a answer) {
		seen := fmt.Sprintf("%q %+v %v %s", a.body, a.responseHead, a.refusal, mustJSON(a.responseHead))
		if a.refusal != nil {
			refused++
			seen += fmt.Sprintf("%+v", *a.refusal)
		} else {
			answered++
			if a.body != "" && !strings.Contains(a.body, "****") {
				t.Errorf("%s: the server did not repeat the secret: %s", what, a.body)
			}
		}
		if found := leaks(seen); len(found) > 0 {
			t.Errorf("%s shows the secret (%s): %s", what, strings.Join(found, ", "), seen)
		}
	}
	for _, p := range ports {
		for _, path := range []string{"/", "/moved", "/?a=b"} {
			for _, redirects := range []int{0, 3} {
				see("port "+p+path, w.fetch(t, "network:http:api.example:"+p, get("http://api.example:"+p+path, "redirects", redirects), ""))
			}
		}
	}
	see("https", w.fetch(t, on(secure, "https", "api.example"), get(secure.At("api.example", "/")), ""))
	see("a stranger", w.fetch(t, on(stranger, "https", "api.example"), get(stranger.At("api.example", "/")), ""))
	see("a private address", w.fetch(t, "network:http:private.example", get("http://private.example/"), ""))
	see("no such name", w.fetch(t, "network:http:missing.example", get("http://missing.example/"), ""))
	see("the guest's own header", w.fetch(t, grants[0], get(s.At("api.example", "/"), "headers", [][]string{{"x-key", "guess"}}), ""))
	see("a timeout", w.fetch(t, grants[0], get(s.At("api.example", "/"), "timeout_ms", 1), strings.Repeat("x", 100_000)))
	if served.Load() == 0 || answered < 6 || refused < 10 {
		t.Errorf("%d served, %d answered, %d refused: the test has lost its subject", served.Load(), answered, refused)
	}
	// The backend itself, as a careless log line would print it.
	if found := leaks(fmt.Sprintf("%v %+v", w.open(t, grants[0]), backend.Grant{Capability: parsed(t, grants[0])})); len(found) > 0 {
		t.Errorf("a printed capability shows the secret: %v", found)
	}
}

// A compressed answer could not be searched, so none is asked for.
func TestNoCompressedAnswerIsAskedForWithASecret(t *testing.T) {
	rec := &recorder{}
	s := testnet.Plain(t, rec)
	api := on(s, "http", "api.example")
	w := newWorld(t, []string{api}, injecting(hostdoc.Injection{Capability: api, Header: "X-Key", Secret: "key"}))
	w.fetch(t, api, get(s.At("api.example", "/"), "headers", [][]string{{"Accept-Encoding", "gzip"}}), "").gives(t, 200, "ok")
	if got := rec.last().Header["Accept-Encoding"]; len(got) != 1 || got[0] != "identity" {
		t.Errorf("%q", got)
	}
}
