package fetch_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// alive is an answer that is good from an hour before at, for so long.
func (n *asked) alive(at time.Time, life time.Duration) {
	n.answer(n.pki.OCSP(func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = at.Add(-time.Hour), at.Add(life-time.Hour) }))
}

func (n *asked) refresh() (int, error) {
	n.t.Helper()
	v, _ := n.open()
	return fetch.RefreshOCSP(n.t.Context(), v, n.cfg, nil)
}

func TestAnswersAreRefreshedBeforeAGateWouldAsk(t *testing.T) {
	n := newAsked(t)
	if kept, err := n.refresh(); kept != 0 || err != nil || n.hits.Load() != 0 {
		t.Errorf("nothing was seen: %d, %v, %d requests", kept, err, n.hits.Load())
	}
	n.alive(n.now, 24*time.Hour)
	n.expect(n.judge(nil), "", "")
	for _, c := range []struct {
		after time.Duration
		asks  int32
	}{{0, 0}, {6 * time.Hour, 0}, {8 * time.Hour, 1}, {9 * time.Hour, 0}} {
		n.now = testpki.Now.Add(c.after)
		before := n.hits.Load()
		n.alive(n.now, 24*time.Hour)
		if kept, err := n.refresh(); kept != 1 || err != nil || n.hits.Load()-before != c.asks {
			t.Errorf("after %s: %d kept, %v, %d requests", c.after, kept, err, n.hits.Load()-before)
		}
	}
	// The responder is gone, and a gate need not ask: it would have since three hours.
	n.handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	before := n.hits.Load()
	n.now = testpki.Now.Add(15 * time.Hour)
	n.expect(n.judge(nil), "", "")
	if n.hits.Load() != before {
		t.Error("the gate asked")
	}
	// Nor does a failure take away what there is.
	n.now = testpki.Now.Add(18 * time.Hour)
	if kept, err := n.refresh(); kept != 1 || fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("%d kept, %v", kept, err)
	}
	n.expect(n.judge(nil), "", "")
}

func TestARevocationIsHeardOfByRefreshingAndKept(t *testing.T) {
	n := newAsked(t)
	n.alive(n.now, 24*time.Hour)
	n.expect(n.judge(nil), "", "")
	n.now = testpki.Now.Add(10 * time.Hour)
	n.answer(n.pki.OCSP(func(r *ocsp.Response) {
		r.Status, r.RevokedAt, r.ThisUpdate, r.NextUpdate = ocsp.Revoked, n.now, n.now, n.now.Add(24*time.Hour)
	}))
	if _, err := n.refresh(); err != nil {
		t.Fatal(err)
	}
	before := n.hits.Load()
	n.expect(n.judge(nil), fault.Revoked, "its OCSP responder says")
	n.now = n.now.Add(200 * time.Hour)
	if kept, err := n.refresh(); kept != 1 || err != nil || n.hits.Load() != before {
		t.Errorf("%d kept, %v, %d requests more", kept, err, n.hits.Load()-before)
	}
}

func TestOfTwoAnswersOfOneSecondTheRevocationCounts(t *testing.T) {
	n := newAsked(t)
	good := n.pki.OCSP()
	revoked := n.pki.OCSP(func(r *ocsp.Response) { r.Status, r.RevokedAt = ocsp.Revoked, n.now.Add(-time.Hour) })
	if err := os.MkdirAll(n.cfg.State, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		der  []byte
		want fault.Reason
	}{{good, ""}, {good, ""}, {revoked, ""}, {good, fault.RevocationUnknown}, {revoked, ""}} {
		if err := verifier.StoreOCSP(n.cfg.State, n.pki.Leaf, n.pki.Agent, c.der, n.now); fault.ReasonOf(err) != c.want {
			t.Errorf("stored: %v, want %q", err, c.want)
		}
	}
	n.handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	n.expect(n.judge(nil), fault.Revoked, "its OCSP responder says")
}

func TestAResponderThatFailedIsLeftAloneForAMomentWhileItsAnswerCounts(t *testing.T) {
	n := newAsked(t)
	n.alive(n.now, 24*time.Hour)
	n.expect(n.judge(nil), "", "")
	n.handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	for _, c := range []struct {
		after time.Duration
		asked int32
		want  fault.Reason
	}{
		{13 * time.Hour, 1, ""},
		{13*time.Hour + time.Second, 0, ""},
		{13*time.Hour + 65*time.Second, 1, ""},
		{25 * time.Hour, 1, fault.RevocationUnknown},
		{25*time.Hour + time.Second, 1, fault.RevocationUnknown},
	} {
		n.now = testpki.Now.Add(c.after)
		before := n.hits.Load()
		if vd := n.judge(nil); vd.Reason != c.want || n.hits.Load()-before != c.asked {
			t.Errorf("after %s: %s, %d requests, want %d", c.after, vd.Line(), n.hits.Load()-before, c.asked)
		}
	}
}

// A time stamp keeps the signature of an expired certificate good, and the answers
// about it are asked for as long as its responder gives some.
func TestAnExpiredCertificateIsAskedAboutWhileItsResponderTells(t *testing.T) {
	n := newAsked(t)
	end := n.pki.Leaf.NotAfter
	n.put("root.crl", n.pki.RootCRL(func(l *x509.RevocationList) { l.NextUpdate = end.AddDate(1, 0, 0) }))
	n.now = end.Add(-time.Hour)
	n.alive(n.now, 24*time.Hour)
	n.expect(n.judge(nil), "", "")
	n.now = end.Add(10 * time.Hour)
	n.alive(n.now, 24*time.Hour)
	before := n.hits.Load()
	if kept, err := n.refresh(); kept != 1 || err != nil || n.hits.Load() != before+1 {
		t.Errorf("%d kept, %v, %d requests", kept, err, n.hits.Load()-before)
	}
	n.now = end.Add(36 * time.Hour)
	if kept, err := n.refresh(); kept != 0 || err != nil || n.hits.Load() != before+1 {
		t.Errorf("after its last answer's end: %d kept, %v, %d requests", kept, err, n.hits.Load()-before)
	}
}

func TestWhatNobodyAsksAboutAnyMoreIsForgotten(t *testing.T) {
	files := func(n *asked) []string {
		all, err := filepath.Glob(filepath.Join(n.cfg.State, "*.ocsp*"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for name, change := range map[string]func(*asked){
		"expired": func(n *asked) {
			n.put("root.crl", n.pki.RootCRL(func(l *x509.RevocationList) { l.NextUpdate = n.pki.Leaf.NotAfter.AddDate(1, 0, 0) }))
			n.now = n.pki.Leaf.NotAfter.Add(time.Hour)
		},
		"no responder": func(n *asked) {
			n.put("agent.crl", n.pki.AgentCRL())
			n.put("policy.yaml", []byte(strings.ReplaceAll(fmt.Sprintf(askingPolicy, "0s", "url: \"http://x\""), "Agent CA", "Other CA")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newAsked(t)
			n.expect(n.judge(nil), "", "")
			if len(files(n)) != 2 {
				t.Fatalf("kept %q", files(n))
			}
			change(n)
			if kept, err := n.refresh(); kept != 0 || err != nil || len(files(n)) != 0 {
				t.Errorf("%d kept, %v, %q", kept, err, files(n))
			}
		})
	}
	n := newAsked(t)
	n.expect(n.judge(nil), "", "")
	for _, f := range files(n) {
		if strings.HasSuffix(f, ".ocsp-of") {
			if err := os.WriteFile(f, []byte("broken"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := n.refresh(); err == nil || len(files(n)) != 1 {
		t.Errorf("%v, %q", err, files(n))
	}
}

// listing is a node whose policy names a release list by its address.
type listing struct {
	*node
	server *httptest.Server
	fetchs int
}

func newListing(t *testing.T) *listing {
	t.Helper()
	l := &listing{node: newNode(t)}
	l.put("agent.crl", l.pki.AgentCRL())
	l.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		page := l.page
		l.fetchs++
		l.mu.Unlock()
		page(w, r)
	}))
	t.Cleanup(l.server.Close)
	l.policy(fmt.Sprintf(`url: %q`, l.server.URL))
	return l
}

func (l *listing) policy(where string) {
	l.put("policy.yaml", fmt.Appendf(nil, `version: 1
scopes:
  - {name: agents, match: ["*"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: deny}
revocation:
  grace: 1h
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: agent.crl, certificate: agent-ca.pem}
releases:
  - {name: ours, %s, stores: [agents], identities: ["email:dev@example.com"]}
`, where))
}

func (l *listing) list(number int64, edits ...func(*verifier.Releases)) []byte {
	return l.by(l.pki, number, edits...)
}

func (l *listing) by(p *testpki.PKI, number int64, edits ...func(*verifier.Releases)) []byte {
	l.t.Helper()
	r := verifier.Releases{Number: number, NextUpdate: testpki.Now.Add(47 * time.Hour).Format(time.RFC3339)}
	for _, e := range edits {
		e(&r)
	}
	data, err := verifier.SignReleases(r, p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		l.t.Fatal(err)
	}
	return data
}

func (l *listing) expect(want fault.Reason, says string) {
	l.t.Helper()
	v, err := l.verifier(func() time.Time { return l.now })
	if err != nil {
		l.t.Fatal(err)
	}
	raw, _ := testagent.Sign(l.t, l.pki, l.pki.Leaf.NotBefore.AddDate(0, 0, 1))
	vd := v.Verify(l.t.Context(), verifier.Input{Reference: testagent.Reference, Artifact: testagent.Read(l.t, raw)})
	if vd.Allowed != (want == "") || vd.Reason != want || !strings.Contains(vd.Message, says) {
		l.t.Errorf("verdict %q (%s), want %q saying %q", vd.Line(), vd.Reason, want, says)
	}
}

func deny(l *listing) func(*verifier.Releases) {
	raw, _ := testagent.Sign(l.t, l.pki, l.pki.Leaf.NotBefore.AddDate(0, 0, 1))
	att, err := verifier.ReadAttestation(raw)
	if err != nil {
		l.t.Fatal(err)
	}
	return func(r *verifier.Releases) { r.DeniedPayloads = append(r.DeniedPayloads, att.SignedDigest) }
}

func TestAReleaseListIsFetchedFromItsAddress(t *testing.T) {
	l := newListing(t)
	l.expect(fault.RevocationUnknown, "was not fetched from")
	l.serve(l.list(1))
	for range 3 {
		if err := l.refresh(false); err != nil {
			t.Fatal(err)
		}
	}
	l.expect("", "")
	if l.fetchs != 1 {
		t.Errorf("%d requests", l.fetchs)
	}
	// An hour later, and what it withdraws is withdrawn.
	l.serve(l.list(2, deny(l)))
	l.now = testpki.Now.Add(time.Hour)
	if err := l.refresh(false); err != nil || l.fetchs != 2 {
		t.Errorf("%v, %d requests", err, l.fetchs)
	}
	l.expect(fault.Withdrawn, "")
	// At half of its life, and when it came from elsewhere.
	l.now = testpki.Now.Add(time.Hour + 59*time.Minute)
	if err := l.refresh(false); err != nil || l.fetchs != 2 {
		t.Errorf("%v, %d requests", err, l.fetchs)
	}
	l.policy(fmt.Sprintf(`url: %q`, l.server.URL+"/elsewhere"))
	if err := l.refresh(false); err != nil || l.fetchs != 3 {
		t.Errorf("%v, %d requests", err, l.fetchs)
	}
}

func TestOnlyABelievedNewerReleaseListReplacesTheOneThatIsThere(t *testing.T) {
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	for name, c := range map[string]struct {
		page func(*listing) http.HandlerFunc
		want fault.Reason
	}{
		"an older one":    {func(l *listing) http.HandlerFunc { return page(l.list(1)) }, fault.RevocationUnknown},
		"the same number": {func(l *listing) http.HandlerFunc { return page(l.list(2)) }, fault.RevocationUnknown},
		"rubbish":         {func(*listing) http.HandlerFunc { return page([]byte("{}")) }, fault.SignatureInvalid},
		"a bent signature": {func(l *listing) http.HandlerFunc {
			return page(bentList(l.list(3)))
		}, fault.SignatureInvalid},
		"a stranger's": {func(l *listing) http.HandlerFunc { return page(l.by(testpki.New(t, testpki.OtherRoot(t)), 3)) }, fault.ChainUntrusted},
		"another's": {func(l *listing) http.HandlerFunc {
			return page(l.by(testpki.New(t, testpki.LeafEmails("friend@example.com")), 3))
		}, fault.IdentityUntrusted},
		"a huge one": {func(*listing) http.HandlerFunc { return page(make([]byte, limits.ReleasesBytes+1)) }, fault.RevocationUnknown},
		"a server that fails": {func(*listing) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
		}, fault.Unavailable},
		"elsewhere": {func(l *listing) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }
		}, fault.Unavailable},
		"itself again": {func(l *listing) http.HandlerFunc {
			good := l.list(3)
			return func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/there" {
					_, _ = w.Write(good)
					return
				}
				http.Redirect(w, r, "/there", http.StatusFound)
			}
		}, fault.Unavailable},
		"one that breaks off": {func(l *listing) http.HandlerFunc {
			good := l.list(3)
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(good)))
				_, _ = w.Write(good[:100])
			}
		}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			l := newListing(t)
			l.serve(l.list(2, deny(l)))
			if err := l.refresh(false); err != nil {
				t.Fatal(err)
			}
			kept := filepath.Join(l.cfg.State, "releases-ours.json")
			before, err := os.ReadFile(kept)
			if err != nil {
				t.Fatal(err)
			}
			l.handle(c.page(l))
			if err := l.refresh(true); !has(err, c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
			after, err := os.ReadFile(kept)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("it was replaced: %v", err)
			}
			l.expect(fault.Withdrawn, "")
		})
	}
}

// bentList changes one bit of the signature.
func bentList(data []byte) []byte {
	data[bytes.Index(data, []byte(`"signature":"`))+len(`"signature":"`)+20] ^= 1
	return data
}

func page(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
}

// has tells whether one of the joined errors has the reason.
func has(err error, want fault.Reason) bool {
	if err != nil && fault.ReasonOf(err) == want {
		return true
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if has(e, want) {
				return true
			}
		}
	}
	return false
}

func TestAReleaseListThatWasNotRenewedRefusesEveryAgent(t *testing.T) {
	l := newListing(t)
	l.serve(l.list(1))
	if err := l.refresh(false); err != nil {
		t.Fatal(err)
	}
	later := func(l *x509.RevocationList) { l.NextUpdate = testpki.Now.AddDate(0, 1, 0) }
	l.put("root.crl", l.pki.RootCRL(later))
	l.put("agent.crl", l.pki.AgentCRL(later))
	for _, c := range []struct {
		after time.Duration
		want  fault.Reason
		says  string
	}{{46 * time.Hour, "", ""}, {47*time.Hour + 59*time.Minute, "", ""}, {48*time.Hour + time.Minute, fault.RevocationUnknown, "is out of date since"}} {
		l.now = testpki.Now.Add(c.after)
		l.expect(c.want, c.says)
	}
	// The same list again is no help, and one that is late from the start only shuts
	// out those before it.
	if err := l.refresh(false); !has(err, fault.RevocationUnknown) {
		t.Errorf("error %v", err)
	}
	l.serve(l.list(9))
	if err := l.refresh(false); !has(err, fault.RevocationUnknown) {
		t.Errorf("error %v", err)
	}
	l.expect(fault.RevocationUnknown, "is out of date since")
	l.now = testpki.Now
	l.serve(l.list(8))
	if err := l.refresh(true); !has(err, fault.RevocationUnknown) {
		t.Errorf("error %v", err)
	}
}

func TestAReleaseListIsNamedByFileOrByAddress(t *testing.T) {
	l := newListing(t)
	for _, where := range []string{"file: releases.json, url: \"https://pki.example/releases.json\"", "url: \"\"", "url: releases.json", "url: \"file:///etc/passwd\""} {
		l.policy(where)
		if _, err := l.verifier(func() time.Time { return l.now }); fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v", where, err)
		}
	}
	l.policy("file: releases.json")
	if err := l.refresh(true); err != nil || l.fetchs != 0 {
		t.Errorf("a file is fetched: %v, %d requests", err, l.fetchs)
	}
	l.policy(fmt.Sprintf(`url: %q`, l.server.URL))
	if _, err := verifier.ExportTrust(l.cfg, 1, l.pki.LeafKey, l.pki.Chain(), l.now, nil); fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), "by url") {
		t.Errorf("carried: %v", err)
	}
	if errors.Is(l.refresh(true), nil) {
		t.Error("a page of nothing is a list")
	}
}
