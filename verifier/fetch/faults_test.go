package fetch_test

import (
	"context"
	"crypto/x509"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// files are a directory's, hidden ones too, with their content.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tried-") {
			continue // when a server failed, which is nothing that anybody believes
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

// A start does not wait again for a server that failed a moment ago, as long as its
// list counts.
func TestAServerThatFailedIsLeftAloneForAMoment(t *testing.T) {
	n := newNode(t)
	failing := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	for _, c := range []struct {
		name  string
		after time.Duration
		force bool
		asked int32
	}{
		{"nothing is at hand", 0, false, 1},
		{"still nothing is at hand", time.Second, false, 1},
		{"the list is there and not due", 2 * time.Second, false, 0},
		{"due", 2 * time.Hour, false, 1},
		{"due, and failed a moment ago", 2*time.Hour + time.Second, false, 0},
		{"by force", 2*time.Hour + 2*time.Second, true, 1},
		{"a minute later", 2*time.Hour + 65*time.Second, false, 1},
		{"the clock went back", 2*time.Hour - time.Minute, false, 1},
		{"the list is over", 25 * time.Hour, false, 1},
		{"the list is over, and failed a moment ago", 25*time.Hour + time.Second, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.now = testpki.Now.Add(c.after)
			if c.name == "the list is there and not due" {
				n.serve(n.pki.AgentCRL())
				if err := n.refresh(true); err != nil {
					t.Fatal(err)
				}
			}
			n.handle(failing)
			before := n.hits.Load()
			_ = n.refresh(c.force)
			if got := n.hits.Load() - before; got != c.asked {
				t.Errorf("asked %d times, want %d", got, c.asked)
			}
		})
	}
}

// says judges the agent at a time, from what is on disk.
func (n *node) says(at time.Time) *verifier.Verdict {
	n.t.Helper()
	v, err := n.verifier(func() time.Time { return at })
	if err != nil {
		n.t.Fatal(err)
	}
	raw, _ := testagent.Sign(n.t, n.pki, n.pki.Leaf.NotBefore.AddDate(0, 0, 1))
	return v.Verify(n.t.Context(), verifier.Input{Reference: testagent.Reference, Artifact: testagent.Read(n.t, raw)})
}

// Whatever becomes of the server of a list: the list that was there stays, byte by
// byte, and counts until its end and, loudly, through the grace; then agents are
// refused. The error names the address and says what happened.
func TestAListServerThatFailsChangesNothing(t *testing.T) {
	n := newNode(t)
	text, err := os.ReadFile(n.cfg.Policy)
	if err != nil {
		t.Fatal(err)
	}
	n.put("policy.yaml", append(text, "  grace: 24h\n"...))
	n.put("root.crl", n.pki.RootCRL(func(l *x509.RevocationList) { l.NextUpdate = testpki.Now.AddDate(0, 1, 0) }))
	n.serve(n.pki.AgentCRL(testpki.Numbered(5)))
	if err := n.refresh(false); err != nil {
		t.Fatal(err)
	}
	before := files(t, n.cfg.State)
	newer := n.pki.AgentCRL(testpki.Numbered(9), testpki.Revoking(n.pki.Leaf))

	var elsewhere atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		elsewhere.Add(1)
		_, _ = w.Write(newer)
	}))
	t.Cleanup(thief.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(thief.URL, "http://"), ":")
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	hang := func(r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	for name, c := range map[string]struct {
		page http.HandlerFunc
		want fault.Reason
		says string
	}{
		"down":   {func(w http.ResponseWriter, _ *http.Request) { hangUp(t, w) }, fault.Unavailable, "cannot fetch the revocation list"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { hang(r) }, fault.Unavailable, "cannot fetch the revocation list"},
		"slow": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(newer[:len(newer)/2])
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}, fault.Unavailable, "breaks off"},
		"an error with a list in it": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write(newer)
		}, fault.Unavailable, "503"},
		"a page": {write([]byte("<html>maintenance</html>")), fault.RevocationUnknown, "revocation list"},
		"huge": {func(w http.ResponseWriter, r *http.Request) {
			for part := make([]byte, 1<<20); r.Context().Err() == nil; {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		}, fault.RevocationUnknown, "cannot be used"},
		"to another host": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://localhost:"+port+"/agent.crl", http.StatusFound)
		}, fault.Unavailable, "another host"},
		"to a file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, fault.Unavailable, "another host"},
		"an older list": {write(n.pki.AgentCRL(testpki.Numbered(4))), fault.RevocationUnknown, "number"},
	} {
		t.Run(name, func(t *testing.T) {
			n.handle(c.page)
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if name == "silent" || name == "slow" {
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
			}
			defer cancel()
			v, err := n.verifier(testpki.Clock)
			if err != nil {
				t.Fatal(err)
			}
			err = fetch.Refresh(ctx, v, n.cfg, nil, true)
			if fault.ReasonOf(err) != c.want || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "/agent.crl") && !strings.Contains(err.Error(), "Agent CA") {
				t.Errorf("%v (%s), want %s, saying %q", err, fault.ReasonOf(err), c.want, c.says)
			}
			if after := files(t, n.cfg.State); !maps.Equal(before, after) {
				t.Errorf("the files changed: %d before, %d after", len(before), len(after))
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("a host that the policy does not name was asked")
	}
	for _, c := range []struct {
		at   time.Time
		want fault.Reason
		warn string
	}{
		{testpki.Now, "", ""},
		{testpki.Now.Add(24 * time.Hour), "", "grace holds until"},
		{testpki.Now.Add(48 * time.Hour), fault.RevocationUnknown, ""},
	} {
		vd := n.says(c.at)
		if vd.Reason != c.want || vd.Allowed != (c.want == "") || (c.warn == "") != (len(vd.Warnings) == 0) || !strings.Contains(strings.Join(vd.Warnings, " "), c.warn) {
			t.Errorf("at %s: %s, %q", c.at, vd.Line(), vd.Warnings)
		}
	}
	// It comes back, on another path of its own.
	n.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/agent.crl" {
			http.Redirect(w, r, "/moved/agent.crl", http.StatusMovedPermanently)
			return
		}
		_, _ = w.Write(newer)
	})
	if err := n.refresh(true); err != nil {
		t.Fatal(err)
	}
	if vd := n.says(testpki.Now); vd.Reason != fault.Revoked {
		t.Errorf("after it came back: %s", vd.Line())
	}
}

// hangUp ends a connection without an answer.
func hangUp(t *testing.T, w http.ResponseWriter) {
	t.Helper()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_ = conn.Close()
}
