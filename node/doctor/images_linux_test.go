package doctor

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

const (
	bob       = "bob@example.com"
	countedBy = `required_signers: [{at_least: 2, of: ["email:` + testpki.Email + `", "email:` + bob + `"]}]`
)

// endingIn ends a leaf after so many days.
func endingIn(days int) testpki.Knob {
	return func(r *testpki.Recipe) { r.Leaf.NotAfter = testpki.Now.AddDate(0, 0, days) }
}

// person is somebody with a key of their own.
func person(t *testing.T, email string, knobs ...testpki.Knob) *testpki.PKI {
	t.Helper()
	return testpki.New(t, append([]testpki.Knob{testpki.LeafEmails(email), testpki.LeafSerial(int64(1000 + len(email))), testpki.LeafKey(testpki.RSA(t, email, 2048))}, knobs...)...)
}

// stampBy has an authority stamp a signature.
func stampBy(tsa *testpki.TSA) func([]byte) ([]byte, *verifier.TimeStamp, error) {
	return func(s []byte) ([]byte, *verifier.TimeStamp, error) {
		at := testpki.Now.Add(-20 * time.Minute)
		return tsa.Token(s, at), &verifier.TimeStamp{Time: at}, nil
	}
}

// holding is an inventory of a node whose one scope says some more.
func holding(t *testing.T, tsa *testpki.TSA, more string) *inventory {
	t.Helper()
	cfg, _ := trusting(t)
	put(t, filepath.Join(cfg.Verify.Trust, "stamps", "root.pem"), 0o644, string(testpki.PEM(tsa.Root)))
	put(t, filepath.Join(cfg.Dir, "stamps.crl"), 0o644, string(tsa.CRL()))
	text := strings.Replace(read(t, cfg.Verify.Policy), "unsigned_containers: deny", "unsigned_containers: deny, "+more, 1)
	put(t, cfg.Verify.Policy, 0o644, text+`    - {issuer: "`+tsa.Root.Subject.String()+`", file: stamps.crl}
`)
	v, err := verifier.Open(cfg.Verify, testpki.Clock, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil {
		t.Fatal(err)
	}
	return &inventory{report: &Report{}, judge: v, config: cfg.Verify}
}

// tells holds an inventory to one warning of certificates with these words, or none.
func (i *inventory) tells(t *testing.T, in verifier.Input, words ...string) {
	t.Helper()
	i.agent(t.Context(), "here", in)
	if i.refused != 0 {
		t.Fatalf("it is refused: %+v", i.report.Findings)
	}
	got := i.report.Findings
	if len(words) == 0 && len(got) == 0 {
		return
	}
	if len(words) == 0 || len(got) != 1 || got[0].Check != checkCert || got[0].Severity != Warning {
		t.Fatalf("want a warning of %q, got %+v", words, got)
	}
	for _, w := range words {
		if f := got[0]; !strings.Contains(f.What+" | "+f.Why+" | "+f.Do, w) {
			t.Errorf("no word of %q in %+v", w, f)
		}
	}
}

func TestTheCertificatesOfAllWhoSignedAreLookedAt(t *testing.T) {
	tsa := testpki.NewTSA(t, "stamp", testpki.Now)
	const stamps = "timestamp_stores: [stamps]"
	good := testpki.New(t)
	for _, c := range []struct {
		name         string
		scope        string
		first, other *testpki.PKI
		stamped      [2]bool
		words        []string
	}{
		{"nobody's ends", countedBy, good, person(t, bob), [2]bool{}, nil},
		{"the first signer's", countedBy, testpki.New(t, endingIn(3)), person(t, bob), [2]bool{}, []string{
			"was signed by " + testpki.Email + ", whose certificate", "in 3 days", "does not start after that", "signed anew",
		}},
		{"the countersigner's", countedBy, good, person(t, bob, endingIn(3)), [2]bool{}, []string{
			"was countersigned by " + bob + ", whose certificate", "in 3 days", "required_signers", "have " + bob + " countersign it anew",
		}},
		{"that of the countersigner's issuer", countedBy, good, person(t, bob, func(r *testpki.Recipe) { r.Agent.NotAfter = testpki.Now.AddDate(0, 0, 5) }), [2]bool{}, []string{
			"was countersigned by " + bob + ", whose issuer's certificate", "Agent", "in 5 days",
		}},
		{"the countersigner's, stamped", countedBy + ", " + stamps, good, person(t, bob, endingIn(3)), [2]bool{false, true}, nil},
		{"the first's, of which only the other is stamped", countedBy + ", " + stamps, testpki.New(t, endingIn(3)), person(t, bob, endingIn(3)), [2]bool{false, true}, []string{"was signed by " + testpki.Email}},
		{"the countersigner's, of which only the first is stamped", countedBy + ", " + stamps, testpki.New(t, endingIn(3)), person(t, bob, endingIn(3)), [2]bool{true, false}, []string{"was countersigned by " + bob}},
		{"stamped by an authority that the scope does not ask", "", testpki.New(t, endingIn(3)), nil, [2]bool{true}, []string{"was signed by " + testpki.Email}},
		{"of one who is not asked for", stamps, good, person(t, bob, endingIn(3)), [2]bool{}, nil},
		{"of one who signed and does not count", countedBy, good, person(t, bob), [2]bool{}, nil},
		{"at a level that lets it by", "level: permissive", testpki.New(t, endingIn(3)), nil, [2]bool{}, []string{"in 3 days", "only because its scope is at the level permissive"}},
		{"ended, at a level that lets it by", "level: permissive", testpki.New(t, testpki.LeafExpired, signedLongAgo), nil, [2]bool{}, []string{"ended at", "only because"}},
		{"the countersigner's, at a level that does not let that by", countedBy + ", level: permissive", good, person(t, bob, endingIn(3)), [2]bool{}, []string{"required_signers"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := testpki.Now.Add(-30 * time.Minute)
			if c.first.Leaf.NotAfter.Before(at) {
				at = c.first.Leaf.NotAfter.Add(-time.Hour)
			}
			req := verifier.SignRequest{
				Raw: testagent.Unsigned(t), Key: c.first.LeafKey, Chain: c.first.Chain(), Time: at,
				Subject: verifier.Subject{ID: "mentatlab.echo", Version: "1.0.0", Repository: "registry.example/agents/echo"},
			}
			if c.stamped[0] {
				req.Stamp = stampBy(tsa)
			}
			raw, _, err := verifier.Sign(req)
			if err != nil {
				t.Fatal(err)
			}
			if c.other != nil {
				req := verifier.CountersignRequest{Raw: raw, Key: c.other.LeafKey, Chain: c.other.Chain(), Time: at}
				if c.stamped[1] {
					req.Stamp = stampBy(tsa)
				}
				if raw, _, err = verifier.Countersign(req); err != nil {
					t.Fatal(err)
				}
			}
			if c.name == "of one who signed and does not count" {
				p := person(t, "mallory@example.com", endingIn(3))
				if raw, _, err = verifier.Countersign(verifier.CountersignRequest{Raw: raw, Key: p.LeafKey, Chain: p.Chain(), Time: at}); err != nil {
					t.Fatal(err)
				}
			}
			more := c.scope
			if more == "" {
				more = "unsigned_agents: deny"
			}
			holding(t, tsa, more).tells(t, verifier.Input{Reference: testagent.Reference, Artifact: testagent.Read(t, raw)}, c.words...)
		})
	}
}

func signedLongAgo(r *testpki.Recipe) { r.Leaf.NotBefore = testpki.Now.AddDate(0, -2, 0) }

// Of several Notary Project signatures one that counts is enough.
func TestTheCertificatesOfNotaryProjectSignaturesAreLookedAt(t *testing.T) {
	tsa := testpki.NewTSA(t, "stamp", testpki.Now)
	a := testagent.Read(t, testagent.Unsigned(t))
	by := func(p *testpki.PKI, stamped bool) verifier.Envelope {
		data, err := notation.Sign(notation.Request{Target: verifier.Target(a), Key: p.LeafKey, Chain: append(p.Chain(), p.Root), Time: testpki.Now.Add(-time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		e := verifier.Envelope{MediaType: notation.MediaType, Data: data}
		if !stamped {
			return e
		}
		content, err := notation.Reader{}.ReadEnvelope(e, verifier.Target(a))
		if err != nil {
			t.Fatal(err)
		}
		var whole map[string]any
		if err := json.Unmarshal(data, &whole); err != nil {
			t.Fatal(err)
		}
		token := tsa.Token(content.Signature, testpki.Now.Add(-20*time.Minute))
		whole["header"].(map[string]any)["io.cncf.notary.timestampSignature"] = base64.StdEncoding.EncodeToString(token)
		if e.Data, err = json.Marshal(whole); err != nil {
			t.Fatal(err)
		}
		return e
	}
	soon, sooner := testpki.New(t, endingIn(10)), testpki.New(t, endingIn(3))
	foreign := testpki.New(t, testpki.OtherRoot(t))
	for _, c := range []struct {
		name  string
		found []verifier.Envelope
		words []string
	}{
		{"it does not end", []verifier.Envelope{by(testpki.New(t), false)}, nil},
		{"it ends", []verifier.Envelope{by(sooner, false)}, []string{"was signed (Notary Project) by " + testpki.Email, "in 3 days", "notation sign"}},
		{"the last of them decides", []verifier.Envelope{by(sooner, false), by(soon, false)}, []string{"in 10 days"}},
		{"one does not end", []verifier.Envelope{by(sooner, false), by(testpki.New(t), false)}, nil},
		{"one is stamped", []verifier.Envelope{by(soon, false), by(sooner, true)}, nil},
		{"one that does not count is no help", []verifier.Envelope{by(foreign, false), by(sooner, false)}, []string{"in 3 days"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := holding(t, tsa, "timestamp_stores: [stamps], binding: none, notation: accept")
			if err := envelopes.In(i.config.State).Keep(a.Digest, c.found); err != nil {
				t.Fatal(err)
			}
			i.tells(t, verifier.Input{Reference: testagent.Reference, Artifact: a}, c.words...)
		})
	}
}

func TestTheCertificateThatEndsFirstIsNamed(t *testing.T) {
	p := testpki.New(t, endingIn(400))
	p.Agent.NotAfter = testpki.Now.AddDate(0, 0, 200)
	if got := soonest([]*x509.Certificate{p.Leaf, p.Agent}); got != p.Agent {
		t.Errorf("%s ends first", got.Subject)
	}
}
