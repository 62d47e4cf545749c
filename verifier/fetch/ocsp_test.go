package fetch_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// asked is a node whose policy asks a responder about the agent CA's
// certificates.
type asked struct {
	t    *testing.T
	pki  *testpki.PKI
	dir  string
	cfg  nodeconfig.Verify
	now  time.Time
	hits atomic.Int32
	page atomic.Pointer[http.HandlerFunc]
	url  string
}

const askingPolicy = `version: 1
scopes:
  - {name: agents, match: ["*"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: deny}
trust: {publishers: ["email:dev@example.com"]}
revocation:
  grace: %s
  ocsp:
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", %s}
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
`

func newAsked(t *testing.T, knobs ...testpki.Knob) *asked {
	t.Helper()
	n := &asked{t: t, dir: t.TempDir(), now: testpki.Now}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.hits.Add(1)
		(*n.page.Load())(w, r)
	}))
	t.Cleanup(server.Close)
	n.url = server.URL
	n.pki = testpki.New(t, append(knobs, func(r *testpki.Recipe) { r.Leaf.OCSPServer = []string{"http://169.254.169.254/latest", n.url} })...)
	n.cfg = nodeconfig.Verify{Policy: filepath.Join(n.dir, "policy.yaml"), Trust: filepath.Join(n.dir, "trust"), State: filepath.Join(n.dir, "state")}
	n.put("trust/agents/root.pem", testpki.PEM(n.pki.Root))
	n.put("root.crl", n.pki.RootCRL(func(l *x509.RevocationList) { l.NextUpdate = testpki.Now.AddDate(0, 1, 0) }))
	n.policy("0s", fmt.Sprintf("url: %q", n.url))
	n.answer(n.pki.OCSP())
	return n
}

func (n *asked) put(name string, data []byte) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *asked) policy(grace, who string, more ...string) {
	n.put("policy.yaml", []byte(fmt.Sprintf(askingPolicy, grace, who)+strings.Join(more, "")))
}

func (n *asked) handle(page http.HandlerFunc) { n.page.Store(&page) }

func (n *asked) answer(der []byte) {
	n.handle(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(der)
	})
}

func (n *asked) open() (*verifier.Verifier, verifier.Input) {
	n.t.Helper()
	v, err := verifier.Open(n.cfg, func() time.Time { return n.now }, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	raw, _ := testagent.Sign(n.t, n.pki, n.pki.Leaf.NotBefore.AddDate(0, 0, 1))
	return v, verifier.Input{Reference: testagent.Reference, Artifact: testagent.Read(n.t, raw)}
}

func (n *asked) judge(client *http.Client) *verifier.Verdict {
	n.t.Helper()
	v, in := n.open()
	return fetch.Judge(n.t.Context(), v, n.cfg, client, in, v.Verify)
}

// expect holds a verdict to a reason, "" for allowed, and to words of its message.
func (n *asked) expect(vd *verifier.Verdict, want fault.Reason, says string) {
	n.t.Helper()
	if vd.Allowed != (want == "") || vd.Reason != want || !strings.Contains(vd.Message, says) {
		n.t.Errorf("verdict %q (%s), want %q saying %q", vd.Line(), vd.Reason, want, says)
	}
}

func bent(der []byte) []byte {
	der[len(der)-1] ^= 1
	return der
}

func TestOnlyAnAuthorisedCurrentAnswerCounts(t *testing.T) {
	shared := newAsked(t).pki
	by := func(knobs ...func(*x509.Certificate)) func(...func(*ocsp.Response)) []byte {
		c, key := shared.Responder(knobs...)
		return func(more ...func(*ocsp.Response)) []byte { return shared.OCSPBy(c, key, more...) }
	}
	noCheckless := func(c *x509.Certificate) { c.ExtraExtensions = nil }
	revoked := func(r *ocsp.Response) {
		r.Status, r.RevokedAt, r.RevocationReason = ocsp.Revoked, testpki.Now.Add(-2*time.Hour), ocsp.KeyCompromise
	}
	other := testpki.New(t, testpki.AgentKey(testpki.RSA(t, "other agent", 2048)))
	foreign, foreignKey := other.Responder()
	anotherIssuer, err := ocsp.CreateResponse(shared.Root, shared.Agent, ocsp.Response{
		Status: ocsp.Good, SerialNumber: shared.Leaf.SerialNumber, ThisUpdate: testpki.Now, NextUpdate: testpki.Now.Add(time.Hour),
	}, shared.AgentKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		der  []byte
		want fault.Reason
		says string
	}{
		{"good, by the issuer", shared.OCSP(), "", ""},
		{"good, by a responder", by()(), "", ""},
		{"revoked", shared.OCSP(revoked), fault.Revoked, "keyCompromise"},
		{"revoked, by a responder", by()(revoked), fault.Revoked, "keyCompromise"},
		{"unknown", shared.OCSP(func(r *ocsp.Response) { r.Status = ocsp.Unknown }), fault.RevocationUnknown, "does not know it"},
		{"forged", bent(shared.OCSP()), fault.RevocationUnknown, "cannot be used"},
		{"forged, by a responder", bent(by()()), fault.RevocationUnknown, "cannot be used"},
		{"replayed, about another", shared.OCSP(func(r *ocsp.Response) { r.SerialNumber = shared.Agent.SerialNumber }), fault.RevocationUnknown, "about another certificate"},
		{"about another issuer's", anotherIssuer, fault.RevocationUnknown, "of another issuer"},
		{"expired", shared.OCSP(func(r *ocsp.Response) { r.NextUpdate = testpki.Now.Add(-time.Second) }), fault.RevocationUnknown, "out of date"},
		{"endless", shared.OCSP(func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), fault.RevocationUnknown, "until when it counts"},
		{"from the future", shared.OCSP(func(r *ocsp.Response) { r.ThisUpdate = testpki.Now.Add(time.Hour) }), fault.RevocationUnknown, "from the future"},
		{"by the signer himself", shared.OCSPBy(shared.Leaf, shared.LeafKey), fault.RevocationUnknown, "not certified to answer"},
		{"by a responder for code", by(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })(), fault.RevocationUnknown, "not certified to answer"},
		{"by another CA's responder", shared.OCSPBy(foreign, foreignKey), fault.RevocationUnknown, "cannot be used"},
		{"by an expired responder", by(func(c *x509.Certificate) { c.NotAfter = testpki.Now.Add(-time.Second) })(), fault.RevocationUnknown, "not valid at"},
		{"by a responder that could be revoked", by(noCheckless)(), fault.RevocationUnknown, "could be revoked"},
		{"a refusal", ocsp.UnauthorizedErrorResponse, fault.RevocationUnknown, "the responder says"},
		{"rubbish", []byte("rubbish"), fault.RevocationUnknown, "cannot be used"},
		{"empty", nil, fault.RevocationUnknown, "cannot be used"},
		{"trailing", append(shared.OCSP(), 0), fault.RevocationUnknown, "cannot be used"},
		{"huge", append(shared.OCSP(), make([]byte, limits.OCSPBytes)...), fault.RevocationUnknown, "limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newAsked(t)
			n.pki = shared
			n.answer(c.der)
			n.expect(n.judge(nil), c.want, c.says)
			if n.hits.Load() == 0 {
				t.Error("the responder was not asked")
			}
			// What was refused was not kept either: without the responder the answer
			// is the same.
			n.handle(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) })
			n.expect(n.judge(nil), c.want, "")
		})
	}
}

func TestAResponderThatFailsIsNoGoodAnswer(t *testing.T) {
	var elsewhere atomic.Int32
	good := testpki.New(t).OCSP()
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		elsewhere.Add(1)
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(good)
	}))
	t.Cleanup(thief.Close)
	for name, page := range map[string]http.HandlerFunc{
		"slow":       func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"broken off": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "9000") },
		"an error":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"a page":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newAsked(t)
			n.handle(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // or a client that leaves is not seen
				page(w, r)
			})
			n.expect(n.judge(&http.Client{Timeout: time.Second}), fault.RevocationUnknown, n.url)
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("the client went where the responder sent it")
	}
}

// An address that the certificate names is the word of whoever issued it.
func TestOnlyAHostThatThePolicyAllowsIsAsked(t *testing.T) {
	n := newAsked(t)
	host := strings.TrimPrefix(n.url, "http://")
	for _, c := range []struct {
		hosts string
		want  fault.Reason
		hits  int32
	}{
		{"ocsp.example", fault.RevocationUnknown, 0},
		{strings.Split(host, ":")[0], fault.RevocationUnknown, 0}, // another port
		{host, "", 1},
	} {
		n.policy("0s", fmt.Sprintf("hosts: [%q]", c.hosts))
		vd := n.judge(nil)
		says := ""
		if c.want != "" {
			says = "of which the policy allows none"
		}
		n.expect(vd, c.want, says)
		if n.hits.Load() != c.hits {
			t.Errorf("%s: %d requests", c.hosts, n.hits.Load())
		}
	}
}

func TestAnAnswerIsKeptUntilHalfOfItsLife(t *testing.T) {
	n := newAsked(t)
	for _, c := range []struct {
		name string
		at   time.Time
		hits int32 // of all so far
		want fault.Reason
	}{
		{"first", testpki.Now, 1, ""},
		{"kept", testpki.Now.Add(10 * time.Hour), 1, ""},
		{"due, still counts", testpki.Now.Add(12 * time.Hour), 2, ""},
		{"past its end", testpki.Now.Add(24 * time.Hour), 3, fault.RevocationUnknown},
	} {
		n.now = c.at
		vd := n.judge(nil)
		n.expect(vd, c.want, "")
		if n.hits.Load() != c.hits {
			t.Errorf("%s: %d requests", c.name, n.hits.Load())
		}
	}
	// Within the grace it counts, but nobody is VERIFIED by it.
	n.policy("2h", fmt.Sprintf("url: %q", n.url))
	if vd := n.judge(nil); !vd.Allowed || vd.Trust != verifier.Signed || len(vd.Warnings) == 0 {
		t.Errorf("%s, %v", vd.Line(), vd.Warnings)
	}
}

func TestAnOlderAnswerIsNotTakenOver(t *testing.T) {
	n := newAsked(t)
	at := func(status int, d time.Duration) []byte {
		return n.pki.OCSP(func(r *ocsp.Response) {
			r.Status, r.ThisUpdate, r.RevokedAt = status, testpki.Now.Add(d), testpki.Now.Add(-time.Hour)
		})
	}
	n.answer(at(ocsp.Revoked, -time.Minute))
	n.expect(n.judge(nil), fault.Revoked, "")
	n.now = testpki.Now.Add(20 * time.Hour) // due
	n.answer(at(ocsp.Good, -time.Hour))     // from before
	n.expect(n.judge(nil), fault.Revoked, "")
	n.answer(at(ocsp.Good, 19*time.Hour)) // what the responder says by now
	n.expect(n.judge(nil), "", "")
}

func TestOfListAndResponderTheWorseCounts(t *testing.T) {
	const list = `    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: agent.crl}
`
	revoked := func(r *ocsp.Response) { r.Status, r.RevokedAt = ocsp.Revoked, testpki.Now.Add(-time.Hour) }
	for _, c := range []struct {
		name   string
		list   func(*testpki.PKI) []byte
		answer func(*testpki.PKI) []byte
		want   fault.Reason
	}{
		{"both good", func(p *testpki.PKI) []byte { return p.AgentCRL() }, func(p *testpki.PKI) []byte { return p.OCSP() }, ""},
		{"listed", func(p *testpki.PKI) []byte { return p.AgentCRL(testpki.Revoking(p.Leaf)) }, func(p *testpki.PKI) []byte { return p.OCSP() }, fault.Revoked},
		{"answered", func(p *testpki.PKI) []byte { return p.AgentCRL() }, func(p *testpki.PKI) []byte { return p.OCSP(revoked) }, fault.Revoked},
		{"no answer", func(p *testpki.PKI) []byte { return p.AgentCRL() }, func(*testpki.PKI) []byte { return nil }, fault.RevocationUnknown},
		{"list out of date", func(p *testpki.PKI) []byte { return p.AgentCRL(testpki.Until(testpki.Now.Add(-time.Second))) }, func(p *testpki.PKI) []byte { return p.OCSP() }, fault.RevocationUnknown},
		{"responder listed", func(p *testpki.PKI) []byte {
			c, _ := p.Responder()
			return p.AgentCRL(testpki.Revoking(c))
		}, func(p *testpki.PKI) []byte {
			c, key := p.Responder()
			return p.OCSPBy(c, key)
		}, fault.RevocationUnknown},
		{"responder not listed", func(p *testpki.PKI) []byte { return p.AgentCRL() }, func(p *testpki.PKI) []byte {
			c, key := p.Responder(func(c *x509.Certificate) { c.ExtraExtensions = nil })
			return p.OCSPBy(c, key)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newAsked(t)
			n.policy("0s", fmt.Sprintf("url: %q", n.url), list)
			n.put("agent.crl", c.list(n.pki))
			n.answer(c.answer(n.pki))
			n.expect(n.judge(nil), c.want, "")
		})
	}
}

// openssl answers, about certificates of now.
func TestOpensslsResponderIsBelieved(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not here: install it (make testdeps)")
	}
	now := time.Now().UTC()
	shift := now.Sub(testpki.Now)
	n := newAsked(t, func(r *testpki.Recipe) {
		for _, c := range []*x509.Certificate{r.Root, r.Agent, r.Leaf} {
			c.NotBefore, c.NotAfter = c.NotBefore.Add(shift), c.NotAfter.Add(shift)
		}
	})
	n.now = now.Add(time.Minute) // its clock may be a moment ahead
	n.put("root.crl", n.pki.RootCRL(testpki.Until(now.Add(time.Hour))))
	responder, key := n.pki.Responder(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotBefore.Add(shift), c.NotAfter.Add(shift) })
	n.put("ca.pem", testpki.PEM(n.pki.Agent))
	n.put("responder.pem", testpki.PEM(responder))
	n.put("responder.key", testpki.KeyPEM(t, key))
	n.handle(func(w http.ResponseWriter, r *http.Request) {
		query, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n.put("query", query)
		cmd := exec.CommandContext(context.WithoutCancel(r.Context()), openssl, "ocsp", "-index", "index.txt", "-CA", "ca.pem",
			"-rsigner", "responder.pem", "-rkey", "responder.key", "-reqin", "query", "-respout", "reply", "-ndays", "1", "-rmd", "sha256")
		cmd.Dir = n.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			http.Error(w, string(out), http.StatusInternalServerError)
			return
		}
		reply, err := os.ReadFile(filepath.Join(n.dir, "reply"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(reply)
	})
	line := func(state, when string) []byte {
		return fmt.Appendf(nil, "%s\t%s\t%s\t%X\tunknown\t/CN=dev\n", state, n.pki.Leaf.NotAfter.Format("060102150405Z"), when, n.pki.Leaf.SerialNumber)
	}
	client := &http.Client{Timeout: time.Minute} // a program is started for each answer
	for _, c := range []struct {
		name  string
		index []byte
		want  fault.Reason
	}{
		{"valid", line("V", ""), ""},
		{"revoked", line("R", now.Add(-time.Hour).Format("060102150405Z")+",keyCompromise"), fault.Revoked},
		{"unknown", []byte{}, fault.RevocationUnknown},
	} {
		n.put("index.txt", c.index)
		n.cfg.State = filepath.Join(n.dir, "state "+c.name)
		v, in := n.open()
		questions := v.Verify(t.Context(), in).Questions
		if err := fetch.Ask(t.Context(), n.cfg, client, questions, n.now); err != nil || len(questions) != 1 {
			t.Fatalf("%s: %d questions, %v", c.name, len(questions), err)
		}
		n.expect(v.Verify(t.Context(), in), c.want, "")
	}
}
