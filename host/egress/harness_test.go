package egress

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/testnet"
	"github.com/mentatlab/mentat/manifest"
)

// world is a backend with what it talks to.
type world struct {
	*Backend
	ca       *testnet.CA
	resolver *testnet.Resolver
}

// newWorld grants what is named; every name ends at 127.0.0.1, which the node
// allows. edit may change the configuration.
func newWorld(t testing.TB, grants []string, edit func(*Config)) *world {
	t.Helper()
	w := &world{ca: testnet.NewCA(t), resolver: testnet.NewResolver()}
	for _, name := range []string{"api.example", "other.example", "sub.api.example"} {
		w.resolver.Set(name, "127.0.0.1")
	}
	network := &hostdoc.Network{
		Mode: hostdoc.NetworkRestricted, AllowPrivate: []string{"127.0.0.0/8"}, CAFile: w.ca.File,
		Limits: hostdoc.NetworkLimits{Concurrent: 8, RequestBytes: 1 << 20, ResponseBytes: 1 << 20, TimeoutMillis: 60_000},
	}
	c := Config{Document: &hostdoc.Document{Network: network}, Resolver: w.resolver}
	for _, g := range grants {
		c.Document.Grants = append(c.Document.Grants, hostdoc.Grant{Capability: g, Rule: "test"})
	}
	if edit != nil {
		edit(&c)
	}
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	w.Backend = b
	return w
}

func parsed(t testing.TB, s string) manifest.Capability {
	t.Helper()
	c, err := manifest.ParseCapability(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) open(t testing.TB, s string) backend.Capability {
	t.Helper()
	c, refusal := w.Open(t.Context(), "run", backend.Grant{Capability: parsed(t, s)})
	if refusal != nil {
		t.Fatalf("%s: %v", s, refusal)
	}
	return c
}

// get is the head of a request; more sets further keys.
func get(url string, more ...any) json.RawMessage {
	head := map[string]any{"method": "GET", "url": url, "headers": [][]string{}}
	for i := 0; i < len(more); i += 2 {
		head[more[i].(string)] = more[i+1]
	}
	data, err := json.Marshal(head)
	if err != nil {
		panic(err)
	}
	return data
}

// answer is a whole answer, or why there is none.
type answer struct {
	responseHead
	body    string
	refusal *backend.Refusal
}

func (a answer) header(name string) string {
	for _, h := range a.Headers {
		if h[0] == name {
			return h[1]
		}
	}
	return ""
}

// whole reads an answer to its end.
func whole(t testing.TB, got backend.Answer) answer {
	t.Helper()
	defer got.Close()
	var a answer
	head, refusal := got.Head()
	if refusal != nil {
		a.refusal = refusal
		return a
	}
	if err := json.Unmarshal(head, &a.responseHead); err != nil {
		t.Fatalf("%s: %v", head, err)
	}
	body, err := io.ReadAll(got)
	a.body = string(body)
	if err != nil && !errors.As(err, &a.refusal) {
		t.Fatalf("%v is no refusal", err)
	}
	return a
}

func (w *world) fetch(t testing.TB, on string, head json.RawMessage, body string) answer {
	t.Helper()
	got, refusal := w.open(t, on).Invoke(t.Context(), "fetch", head, []byte(body))
	if refusal != nil {
		return answer{refusal: refusal}
	}
	return whole(t, got)
}

// wants checks a refusal by its code and a word of its reason or rule.
func (a answer) wants(t testing.TB, code backend.Code, word string) {
	t.Helper()
	if a.refusal == nil {
		t.Errorf("not refused: status %d, %q", a.Status, a.body)
		return
	}
	if a.refusal.Code != code || !strings.Contains(a.refusal.Reason+" "+a.refusal.Rule, word) {
		t.Errorf("refused with %d %q by %q, want %d %q", a.refusal.Code, a.refusal.Reason, a.refusal.Rule, code, word)
	}
}

func (a answer) gives(t testing.TB, status int, body string) answer {
	t.Helper()
	if a.refusal != nil || a.Status != status || a.body != body {
		t.Errorf("got %d %q, %v; want %d %q", a.Status, a.body, a.refusal, status, body)
	}
	return a
}

// recorder is a handler that keeps what it was asked.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request
	body []string
	// serve answers; nil says "ok".
	serve http.HandlerFunc
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	r.mu.Lock()
	r.seen = append(r.seen, req.Clone(context.Background()))
	r.body = append(r.body, string(body))
	r.mu.Unlock()
	if r.serve != nil {
		r.serve(w, req)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

func (r *recorder) last() *http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[len(r.seen)-1]
}

// within waits for a condition.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("does not happen: " + what)
}
