package node

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/testpki"
)

// logged is a log that is read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The server of a list fails, in one way after another, while the service goes on: each
// failure is counted and told with the list's address, and the list that was there stays.
func TestAListServerThatFailsIsToldAndItsListStays(t *testing.T) {
	dir := t.TempDir()
	pki := testpki.New(t)
	c := configIn(dir)
	var page atomic.Pointer[http.HandlerFunc]
	put := func(h http.HandlerFunc) { page.Store(&h) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*page.Load())(w, r) }))
	t.Cleanup(server.Close)
	put(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(pki.RootCRL(testpki.Numbered(5))) })
	c.Verify.Policy = filepath.Join(dir, "policy.yaml")
	for name, data := range map[string][]byte{"trust/agents/root.pem": testpki.PEM(pki.Root), "policy.yaml": fmt.Appendf(nil, `version: 1
scopes:
  - {name: agents, match: ["registry.example/**"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: allow}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", url: "%s/root.crl"}
`, server.URL)} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Each look finds the list an hour older, and so due.
	var looks atomic.Int64
	clock := func() time.Time { return testpki.Now.Add(time.Duration(min(looks.Add(1), 12)) * time.Hour) }
	var log logged
	serve(t, c, Options{Interval: time.Hour, Refresh: time.Millisecond, Clock: clock, Log: slog.New(slog.NewTextHandler(&log, nil))})
	state := func() map[string]string {
		all := map[string]string{}
		entries, err := os.ReadDir(c.Verify.State)
		if err != nil {
			return nil
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(c.Verify.State, e.Name()))
			if err == nil && !strings.HasPrefix(e.Name(), ".") {
				all[e.Name()] = string(data)
			}
		}
		return all
	}
	eventually(t, "the list is compiled", func() bool { return len(state()) == 1 })
	for say, h := range map[string]http.HandlerFunc{
		"503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://localhost:1/", http.StatusFound)
		},
		"older than":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(pki.RootCRL(testpki.Numbered(4))) },
		"is malformed": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
	} {
		put(h)
		looks.Store(0)
		eventually(t, "the log says "+say, func() bool { return strings.Contains(log.String(), say) })
		// A round that began before the server changed may have renewed the list.
		before := state()
		eventually(t, "it fails again", func() bool { return strings.Count(log.String(), say) > 2 })
		if after := state(); len(after) != 1 || !maps.Equal(before, after) {
			t.Errorf("%s: the files are %d, or changed", say, len(after))
		}
	}
	if !strings.Contains(log.String(), server.URL+"/root.crl") {
		t.Errorf("the log does not say which list: %s", log.String())
	}
}
