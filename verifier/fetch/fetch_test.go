package fetch_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// node has a policy with the root's list in a file and the agent CA's at a URL.
type node struct {
	t   *testing.T
	pki *testpki.PKI
	dir string
	cfg nodeconfig.Verify
	now time.Time

	hits atomic.Int32
	mu   sync.Mutex
	page http.HandlerFunc // guarded by mu
}

const policyText = `version: 1
scopes:
  - {name: agents, match: ["*"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: deny}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", url: "%s/agent.crl", certificate: agent-ca.pem}
`

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, pki: testpki.New(t), dir: t.TempDir(), now: testpki.Now}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.hits.Add(1)
		n.mu.Lock()
		page := n.page
		n.mu.Unlock()
		page(w, r)
	}))
	t.Cleanup(server.Close)
	n.cfg = nodeconfig.Verify{Policy: filepath.Join(n.dir, "policy.yaml"), Trust: filepath.Join(n.dir, "trust"), State: filepath.Join(n.dir, "state", "deep")}
	n.put("trust/agents/root.pem", testpki.PEM(n.pki.Root))
	n.put("agent-ca.pem", testpki.PEM(n.pki.Agent))
	n.put("root.crl", n.pki.RootCRL())
	n.put("policy.yaml", fmt.Appendf(nil, policyText, server.URL))
	n.serve(n.pki.AgentCRL())
	return n
}

func (n *node) put(name string, data []byte) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) serve(list []byte) {
	n.handle(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(list) })
}

func (n *node) handle(page http.HandlerFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.page = page
}

func (n *node) refresh(force bool) error {
	v, err := n.verifier(func() time.Time { return n.now })
	if err != nil {
		return err
	}
	return fetch.Refresh(n.t.Context(), v, n.cfg, nil, force)
}

func (n *node) verifier(clock func() time.Time) (*verifier.Verifier, error) {
	return verifier.Open(n.cfg, clock, nil)
}

func (n *node) index(issuer *x509.Certificate) *verifier.CRLIndex {
	n.t.Helper()
	ix, err := verifier.LoadIndex(n.cfg.State, issuer)
	if err != nil {
		n.t.Fatal(err)
	}
	return ix
}

func TestRefreshBringsEveryListOnce(t *testing.T) {
	n := newNode(t)
	for range 3 {
		if err := n.refresh(false); err != nil {
			t.Fatal(err)
		}
	}
	if n.index(n.pki.Agent) == nil || n.index(n.pki.Root) == nil {
		t.Fatal("an index is missing")
	}
	if hits := n.hits.Load(); hits != 1 {
		t.Errorf("%d requests", hits)
	}
	if err := n.refresh(true); err != nil || n.hits.Load() != 2 {
		t.Errorf("force: %v, %d requests", err, n.hits.Load())
	}
}

func TestRefreshComesAgainWhenItIsDue(t *testing.T) {
	for _, c := range []struct {
		name  string
		life  time.Duration // from an hour before now
		after time.Duration
		due   bool
	}{
		{"young", 48 * time.Hour, 59 * time.Minute, false},
		{"an hour old", 48 * time.Hour, time.Hour, true},
		{"short-lived, first half", 2*time.Hour + 40*time.Minute, 10 * time.Minute, false},
		{"short-lived, second half", 2*time.Hour + 40*time.Minute, 25 * time.Minute, true},
		{"ended", 70 * time.Minute, 15 * time.Minute, true},
		{"clock turned back", 48 * time.Hour, -time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.serve(n.pki.AgentCRL(func(l *x509.RevocationList) { l.NextUpdate = l.ThisUpdate.Add(c.life) }))
			if err := n.refresh(false); err != nil {
				t.Fatal(err)
			}
			n.now = n.now.Add(c.after)
			if err := n.refresh(false); err != nil {
				t.Fatal(err)
			}
			if got := n.hits.Load() == 2; got != c.due {
				t.Errorf("%d requests", n.hits.Load())
			}
		})
	}
}

func TestAChangedFileIsDue(t *testing.T) {
	n := newNode(t)
	if err := n.refresh(false); err != nil {
		t.Fatal(err)
	}
	n.put("root.crl", n.pki.RootCRL(testpki.Numbered(2), testpki.Revoking(n.pki.Agent)))
	if err := n.refresh(false); err != nil {
		t.Fatal(err)
	}
	if ix := n.index(n.pki.Root); ix.Number().Int64() != 2 || ix.Len() != 1 {
		t.Errorf("index %s with %d entries", ix.Number(), ix.Len())
	}
}

func TestAnotherURLIsDue(t *testing.T) {
	n := newNode(t)
	if err := n.refresh(false); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(n.cfg.Policy)
	if err != nil {
		t.Fatal(err)
	}
	n.put("policy.yaml", []byte(strings.Replace(string(text), "/agent.crl", "/lists/agent.crl", 1)))
	if err := n.refresh(false); err != nil || n.hits.Load() != 2 {
		t.Errorf("%v, %d requests", err, n.hits.Load())
	}
}

func TestWhatIsFetchedReplacesOnlyIfItIsBetter(t *testing.T) {
	n := newNode(t)
	n.serve(n.pki.AgentCRL(testpki.Numbered(5), testpki.Revoking(n.pki.Leaf)))
	if err := n.refresh(false); err != nil {
		t.Fatal(err)
	}
	other := testpki.New(t, testpki.AgentKey(testpki.RSA(t, "other agent", 2048)))
	list := n.pki.AgentCRL(testpki.Numbered(9))
	for name, c := range map[string]struct {
		page http.HandlerFunc
		want fault.Reason
	}{
		"lower number":     {write(n.pki.AgentCRL(testpki.Numbered(4))), fault.RevocationUnknown},
		"another issuer's": {write(n.pki.RootCRL(testpki.Numbered(9))), fault.RevocationUnknown},
		"another key's":    {write(other.AgentCRL(testpki.Numbered(9))), fault.RevocationUnknown},
		"a page":           {write([]byte("<html>")), fault.RevocationUnknown},
		"nothing":          {write(nil), fault.RevocationUnknown},
		"cut off":          {write(list[:len(list)-9]), fault.RevocationUnknown},
		"breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99999")
			_, _ = w.Write(list)
		}, fault.Unavailable},
		"error": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }, fault.Unavailable},
		"oversized": {func(w http.ResponseWriter, _ *http.Request) {
			for range 33 {
				_, _ = w.Write(make([]byte, 1<<20))
			}
		}, fault.RevocationUnknown},
		"redirects for ever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			n.handle(c.page)
			if err := n.refresh(true); fault.ReasonOf(err) != c.want {
				t.Errorf("got %v (%s)", err, fault.ReasonOf(err))
			}
			if ix := n.index(n.pki.Agent); ix.Number().Int64() != 5 || ix.Len() != 1 {
				t.Errorf("index %s with %d entries", ix.Number(), ix.Len())
			}
		})
	}
	n.serve(n.pki.AgentCRL(testpki.Numbered(6)))
	if err := n.refresh(true); err != nil || n.index(n.pki.Agent).Number().Int64() != 6 {
		t.Errorf("the better one: %v", err)
	}
}

func write(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
}

func TestOneBrokenSourceDoesNotStopTheOthers(t *testing.T) {
	n := newNode(t)
	n.put("root.crl", []byte("broken"))
	if err := n.refresh(false); fault.ReasonOf(err) != fault.RevocationUnknown {
		t.Errorf("%v", err)
	}
	if n.index(n.pki.Agent) == nil || n.index(n.pki.Root) != nil {
		t.Error("wrong indexes")
	}
}

func TestASilentServerIsGivenUp(t *testing.T) {
	n := newNode(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	n.handle(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	v, err := n.verifier(testpki.Clock)
	if err != nil {
		t.Fatal(err)
	}
	err = fetch.Refresh(ctx, v, n.cfg, nil, false)
	if fault.ReasonOf(err) != fault.Unavailable || ctx.Err() == nil {
		t.Errorf("%v", err)
	}
}

func TestTheConfigurationMustFit(t *testing.T) {
	for name, c := range map[string]struct{ old, with string }{
		"certificate missing":       {`, certificate: agent-ca.pem`, ""},
		"certificate of another":    {`agent-ca.pem`, "trust/agents/root.pem"},
		"certificate not there":     {`agent-ca.pem`, "nobody.pem"},
		"store that does not exist": {"stores: [agents]", "stores: [nobody]"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			text, err := os.ReadFile(n.cfg.Policy)
			if err != nil {
				t.Fatal(err)
			}
			n.put("policy.yaml", []byte(strings.Replace(string(text), c.old, c.with, 1)))
			if err := n.refresh(false); fault.ReasonOf(err) != fault.PolicyInvalid {
				t.Errorf("%v", err)
			}
			if n.hits.Load() != 0 {
				t.Error("fetched what cannot be checked")
			}
		})
	}
}

func TestNothingConfiguredNeedsNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	v, err := verifier.Open(nodeconfig.Verify{State: dir}, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetch.Refresh(t.Context(), v, nodeconfig.Verify{State: dir}, nil, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("made a directory for nothing")
	}
}

func TestManyRefreshesAtOnce(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := n.refresh(true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(n.cfg.State)
	if err != nil || len(left) != 4 { // two indexes and two locks
		t.Errorf("%v, %v", left, err)
	}
}
