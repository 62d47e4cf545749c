package doctor

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// fetching is a node whose lists come from a server, and have never been fetched.
func fetching(t *testing.T, base string) (*nodeconfig.Config, *testpki.PKI) {
	t.Helper()
	cfg, p := trusting(t)
	text := strings.Replace(read(t, cfg.Verify.Policy), "file: root.crl", "url: "+base+"/root.crl", 1)
	text = strings.Replace(text, "file: agent.crl", "url: "+base+"/agent.crl, certificate: agent.pem", 1)
	put(t, cfg.Verify.Policy, 0o644, text+"releases: [{name: agents, url: "+base+"/releases, stores: [agents], identities: [\"email:"+testpki.Email+"\"]}]\n")
	put(t, filepath.Join(cfg.Dir, "agent.pem"), 0o644, string(testpki.PEM(p.Agent)))
	return cfg, p
}

// publishing is the server of them.
func publishing(t *testing.T, p **testpki.PKI) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		p := *p
		body := map[string][]byte{"/root.crl": p.RootCRL(), "/agent.crl": p.AgentCRL()}[q.URL.Path]
		if q.URL.Path == "/releases" {
			var err error
			if body, err = verifier.SignReleases(verifier.Releases{Number: 7, NextUpdate: "2026-01-20T00:00:00Z"}, p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour)); err != nil {
				t.Error(err)
			}
		}
		_, _ = w.Write(body)
	}
}

// What a gate fetches when it first needs it is fetched for the report, too: on a node
// without the service nobody did before.
func TestListsThatNobodyFetchedYetAreFetchedAsAGateDoes(t *testing.T) {
	var p *testpki.PKI
	server := httptest.NewServer(publishing(t, &p))
	defer server.Close()
	check := func(cfg *nodeconfig.Config, env ...string) *Report {
		r := &Report{}
		if checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock}, env) == nil {
			t.Fatalf("%+v", r)
		}
		return r
	}
	ok := []want{{checkCRL, OK, "Root"}, {checkCRL, OK, "Agent"}, {checkReleases, OK, "number 7"}}
	t.Run("up", func(t *testing.T) {
		var cfg *nodeconfig.Config
		cfg, p = fetching(t, server.URL)
		r := check(cfg)
		holds(t, r, ok...)
		if r.Count(Warning)+r.Count(Note) != 0 {
			t.Errorf("%+v", r.Findings)
		}
	})
	t.Run("by the proxies of the gates and not its own", func(t *testing.T) {
		var cfg *nodeconfig.Config
		cfg, p = fetching(t, "http://lists.invalid")
		t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
		holds(t, check(cfg, "http_proxy="+server.URL), ok...)
		cfg, p = fetching(t, "http://lists.invalid")
		t.Setenv("HTTP_PROXY", server.URL)
		holds(t, check(cfg), want{checkCRL, Failure, "Root"}, want{checkCRL, Failure, "Agent"}, want{checkReleases, Failure, "tried now"})
	})
	t.Run("down later", func(t *testing.T) {
		gone := httptest.NewServer(publishing(t, &p))
		var cfg *nodeconfig.Config
		cfg, p = fetching(t, gone.URL)
		check(cfg)
		gone.Close()
		later := func() time.Time { return testpki.Now.Add(2 * time.Hour) }
		r := &Report{}
		checkTrust(t.Context(), r, cfg, Options{Clock: later}, nil)
		holds(t, r, append(ok, want{checkCRL, Note, "Agent CA,O=MentatLab,C=US the list cannot be refreshed now: " + gone.URL + "/agent.crl: cannot fetch"})...)
	})
	t.Run("down", func(t *testing.T) {
		gone := httptest.NewServer(http.NotFoundHandler())
		gone.Close()
		cfg, _ := fetching(t, gone.URL)
		r := check(cfg)
		holds(t, r, want{checkCRL, Failure, "Root CA,O=MentatLab,C=US no list is at hand: nothing was kept under verify.state, and none can be fetched now: " + gone.URL + "/root.crl: cannot fetch"},
			want{checkCRL, Failure, "connection refused"}, want{checkReleases, Failure, "was not fetched from"})
		r.count(t, checkCRL, Failure, 2)
		for _, f := range r.Findings {
			if f.Check == checkCRL && (strings.Contains(f.Do, "run the node service") || strings.Contains(f.On, "Root") == strings.Contains(f.What, "agent.crl")) {
				t.Errorf("misleading: %+v", f)
			}
		}
	})
	t.Run("silent", func(t *testing.T) {
		release := make(chan struct{})
		silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
			select {
			case <-release:
			case <-q.Context().Done():
			}
		}))
		defer silent.Close()
		defer close(release)
		cfg, _ := fetching(t, silent.URL)
		r := check(cfg)
		r.count(t, checkCRL, Failure, 2)
		// Its own time ended first, not the client's, which is longer.
		if text := fmt.Sprint(r.Findings); !strings.Contains(text, "deadline exceeded") || strings.Contains(text, "Client.Timeout") {
			t.Error(text)
		}
	})
	t.Run("a state that cannot be made", func(t *testing.T) {
		var cfg *nodeconfig.Config
		cfg, p = fetching(t, server.URL)
		put(t, cfg.Verify.State, 0o644, "")
		r := check(cfg)
		r.count(t, checkCRL, Failure, 2)
		for _, f := range r.Findings {
			if f.Check == checkCRL && !strings.Contains(f.What, cfg.Verify.State) {
				t.Errorf("does not name what is in the way: %+v", f)
			}
		}
	})
}

// A list that was there once goes on to count for the gates: a file that is gone or was
// put back refuses nothing, and reveals nothing that was revoked since.
func TestAListThatTheGatesRememberIsUsed(t *testing.T) {
	for name, spoil := range map[string]func(cfg *nodeconfig.Config, p *testpki.PKI){
		"gone": func(cfg *nodeconfig.Config, _ *testpki.PKI) { remove(t, filepath.Join(cfg.Dir, "root.crl")) },
		"put back": func(cfg *nodeconfig.Config, p *testpki.PKI) {
			put(t, filepath.Join(cfg.Dir, "root.crl"), 0o644, string(p.RootCRL(testpki.Numbered(1))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, p := trusting(t)
			put(t, filepath.Join(cfg.Dir, "root.crl"), 0o644, string(p.RootCRL(testpki.Numbered(9))))
			checkTrust(t.Context(), &Report{}, cfg, Options{Clock: testpki.Clock}, nil)
			spoil(cfg, p)
			r := &Report{}
			v := checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock}, nil)
			holds(t, r, want{checkCRL, OK, "Root"}, want{checkCRL, Warning, "remember from before is used: "})
			raw, _ := testagent.Sign(t, p, testpki.Now.Add(-time.Hour))
			if vd := v.Verify(t.Context(), verifier.Input{Reference: testagent.Reference, Artifact: testagent.Read(t, raw)}); !vd.Allowed {
				t.Errorf("a gate says otherwise: %s", vd.Line())
			}
		})
	}
}

func (r *Report) count(t *testing.T, check string, s Severity, n int) {
	t.Helper()
	got := 0
	for _, f := range r.Findings {
		if f.Check == check && f.Severity == s {
			got++
		}
	}
	if got != n {
		t.Errorf("%d findings of %s with %s, want %d: %+v", got, check, s, n, r.Findings)
	}
}

// A policy that asks responders only needs no lists.
func TestRespondersDoWhereThereAreNoLists(t *testing.T) {
	cfg, p := trusting(t)
	text := read(t, cfg.Verify.Policy)
	text = text[:strings.Index(text, "  crls:")] + `  ocsp:
    - {issuer: "` + p.Root.Subject.String() + `", url: "http://ocsp.invalid"}
    - {issuer: "` + p.Agent.Subject.String() + `", url: "http://ocsp.invalid"}
`
	put(t, cfg.Verify.Policy, 0o644, text)
	r := &Report{}
	checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock}, nil)
	holds(t, r, want{checkCRL, Note, "OCSP responders and no revocation lists"})
	if r.Count(Warning) != 0 {
		t.Errorf("%+v", r.Findings)
	}
	if _, err := os.Stat(cfg.Verify.State); err == nil {
		t.Error("the doctor made a directory that it has no use for")
	}
}
