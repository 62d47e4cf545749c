package timestamp_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

var update = flag.Bool("update", false, "have openssl make the kept token anew")

// must is for fixtures.
func must[T any](tb testing.TB) func(T, error) T {
	return func(v T, err error) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

// with puts a token into a signed manifest, as anybody can.
func with(tb testing.TB, raw, token []byte) *oci.Artifact {
	tb.Helper()
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		tb.Fatal(err)
	}
	if token != nil {
		annotations := m["annotations"].(map[string]any)
		var b verifier.Block
		if err := json.Unmarshal([]byte(annotations[oci.AnnotationAttestation].(string)), &b); err != nil {
			tb.Fatal(err)
		}
		b.TimestampToken = base64.StdEncoding.EncodeToString(token)
		annotations[oci.AnnotationAttestation] = string(must[[]byte](tb)(canonical.Marshal(b)))
	}
	return testagent.Read(tb, must[[]byte](tb)(canonical.Marshal(m)))
}

const policyText = `version: 1
scopes:
  - name: agents
    match: ["registry.example/agents/**"]
    stores: [agents]
    timestamp_stores: [time]
    timestamp: optional
    identities: ["email:dev@example.com"]
    unsigned_containers: deny
outside: {ordinary_images: deny}
`

// node judges at a time, with lists of which the test turns the knobs.
type node struct {
	policy             string
	now                time.Time
	root, agent, stamp []testpki.CRLKnob
	noStampList        bool
	noAgentList        bool
	reader             verifier.StampReader
}

func newNode(now time.Time) *node {
	return &node{policy: policyText, now: now, reader: timestamp.Reader{}}
}

func (n *node) verifier(tb testing.TB, p *testpki.PKI, tsa *testpki.TSA) (*verifier.Verifier, error) {
	tb.Helper()
	policy := must[*verifier.Policy](tb)(verifier.ParsePolicy("policy.yaml", []byte(n.policy)))
	current := testpki.Until(n.now.Add(time.Hour))
	lists := verifier.Indexes{}
	add := func(der []byte, issuer *x509.Certificate) {
		lists = append(lists, must[*verifier.CRLIndex](tb)(verifier.CompileCRL(der, issuer, verifier.CRLOrigin{}, n.now)))
	}
	add(p.RootCRL(append(n.root, current)...), p.Root)
	if !n.noAgentList {
		add(p.AgentCRL(append(n.agent, current)...), p.Agent)
	}
	if !n.noStampList {
		add(tsa.CRL(append(n.stamp, current)...), tsa.Root)
	}
	return verifier.New(verifier.Config{
		Policy: policy,
		Stores: map[string]*verifier.Store{
			"agents": must[*verifier.Store](tb)(verifier.NewStore("agents", p.Root)),
			"time":   must[*verifier.Store](tb)(verifier.NewStore("time", tsa.Root)),
		},
		Revocation: lists, Stamps: n.reader, Clock: func() time.Time { return n.now },
	})
}

func judge(tb testing.TB, v *verifier.Verifier, a *oci.Artifact) *verifier.Verdict {
	tb.Helper()
	in := verifier.Input{Reference: testagent.Reference, Artifact: a}
	vd := v.Verify(tb.Context(), in)
	// An explanation says the same, and the step that failed says why.
	var trace verifier.Trace
	in.Trace = &trace
	if again := v.Verify(tb.Context(), in); again.Allowed != vd.Allowed || again.Reason != vd.Reason || again.Stamped != vd.Stamped {
		tb.Errorf("explained %+v, judged %+v", again, vd)
	}
	for _, s := range trace.Steps {
		if s.Outcome == verifier.Failed && s.Reason != vd.Reason || s.Name == verifier.StepTimestamp && s.Outcome == verifier.Passed && len(s.Parts) == 0 && !vd.Stamped.IsZero() {
			tb.Errorf("step %+v of %+v", s, vd)
		}
	}
	return vd
}

// expect holds a verdict to a reason; "" is allowed.
func expect(tb testing.TB, vd *verifier.Verdict, want fault.Reason) {
	tb.Helper()
	if vd.Allowed != (want == "") || vd.Reason != want {
		tb.Errorf("verdict %q (%s), want reason %q", vd.Line(), vd.Reason, want)
	}
}

var (
	signedAt  = testpki.Now.Add(-time.Hour)
	stampedAt = testpki.Now.Add(-59 * time.Minute)
	// afterAll is when the signer's certificate and the authority's have expired.
	afterAll = testpki.Now.AddDate(2, 0, 0)
	keeps    = testpki.KeepsExpired(testpki.Now.AddDate(-1, 0, 0))
)

// kept makes all lists say that they keep expired certificates.
func kept(n *node) { n.root, n.agent, n.stamp = list(keeps), list(keeps), list(keeps) }

func list(knobs ...testpki.CRLKnob) []testpki.CRLKnob { return knobs }

// later judges when certificates have expired.
func later(n *node) { n.now = afterAll }

func required(n *node) {
	n.policy = strings.Replace(n.policy, "timestamp: optional", "timestamp: required", 1)
}

func noAgentList(n *node) { n.noAgentList = true }

func permissive(n *node) {
	n.policy = strings.Replace(n.policy, "    stores: [agents]\n", "    stores: [agents]\n    level: permissive\n", 1)
}

func withoutStores(n *node) {
	n.policy = strings.Replace(n.policy, "    timestamp_stores: [time]\n", "", 1)
}

func plain(tsa *testpki.TSA, signature []byte) []byte { return tsa.Token(signature, stampedAt) }

func none(*testpki.TSA, []byte) []byte { return nil }

func at(t time.Time, knobs ...func(*testpki.Stamp)) func(*testpki.TSA, []byte) []byte {
	return func(tsa *testpki.TSA, signature []byte) []byte { return tsa.Token(signature, t, knobs...) }
}

// changed turns one byte, the nth from the end.
func changed(n int) func(*testpki.TSA, []byte) []byte {
	return func(tsa *testpki.TSA, signature []byte) []byte {
		token := plain(tsa, signature)
		token[len(token)-n] ^= 1
		return token
	}
}

func TestTimeStampsAreJudged(t *testing.T) {
	p := testpki.New(t)
	raw, signature := testagent.Sign(t, p, signedAt)
	good := testpki.NewTSA(t, "stamp", testpki.Now)
	revokedLeaf := testpki.Revoking(p.Leaf)
	for _, c := range []struct {
		name  string
		tsa   *testpki.TSA // good, unless set
		token func(*testpki.TSA, []byte) []byte
		knobs []func(*node)
		want  fault.Reason
	}{
		// What a stamp is for.
		{"stamped", nil, plain, nil, ""},
		{"stamped, all expired since", nil, plain, []func(*node){later, kept}, ""},
		{"stamped, required", nil, plain, []func(*node){required}, ""},
		{"not stamped", nil, none, nil, ""},
		{"not stamped, expired", nil, none, []func(*node){later, kept}, fault.OutsideValidity},
		{"not stamped, required", nil, none, []func(*node){required}, fault.PolicyDenied},
		{"stamped, no authority named", nil, plain, []func(*node){withoutStores}, ""},
		{"stamped, expired, no authority named", nil, plain, []func(*node){withoutStores, later, kept}, fault.OutsideValidity},
		{"expired, lists that drop what expired", nil, plain, []func(*node){later}, fault.RevocationUnknown},
		{"expired, lists that keep too little", nil, plain, []func(*node){later, kept, func(n *node) { n.agent = list(testpki.KeepsExpired(afterAll)) }}, fault.RevocationUnknown},
		{"expired, the authority's list drops", nil, plain, []func(*node){later, kept, func(n *node) { n.stamp = nil }}, fault.RevocationUnknown},

		// Revocation.
		{"invalid since after the stamp", nil, plain, []func(*node){func(n *node) { n.agent = list(revokedLeaf, testpki.InvalidSince(stampedAt.Add(time.Minute))) }}, ""},
		{"invalid since before the stamp", nil, plain, []func(*node){func(n *node) { n.agent = list(revokedLeaf, testpki.InvalidSince(stampedAt.Add(-time.Minute))) }}, fault.Revoked},
		{"invalid since the stamp", nil, plain, []func(*node){func(n *node) { n.agent = list(revokedLeaf, testpki.InvalidSince(stampedAt)) }}, fault.Revoked},
		{"revoked, no date of invalidity", nil, plain, []func(*node){func(n *node) { n.agent = list(revokedLeaf) }}, fault.Revoked},
		{"listed twice, once without a date", nil, plain, []func(*node){func(n *node) { n.agent = list(revokedLeaf, testpki.InvalidSince(testpki.Now), revokedLeaf) }}, fault.Revoked},
		{"invalid since later, not stamped", nil, none, []func(*node){func(n *node) { n.agent = list(revokedLeaf, testpki.InvalidSince(testpki.Now)) }}, fault.Revoked},
		{"invalid since later, stamp of nobody named", nil, plain, []func(*node){withoutStores, func(n *node) { n.agent = list(revokedLeaf, testpki.InvalidSince(testpki.Now)) }}, fault.Revoked},
		{"authority revoked", nil, plain, []func(*node){func(n *node) { n.stamp = list(testpki.Revoking(good.Cert)) }}, fault.Revoked},
		{"nothing known of the signer, at a lenient level", nil, plain, []func(*node){permissive, noAgentList}, ""},
		{"authority revoked, nothing known of the signer, at a lenient level", nil, plain, []func(*node){permissive, noAgentList, func(n *node) { n.stamp = list(testpki.Revoking(good.Cert)) }}, fault.Revoked},
		{"authority revoked, invalid since later", nil, plain, []func(*node){func(n *node) {
			n.stamp = list(testpki.Revoking(good.Cert), testpki.InvalidSince(testpki.Now))
		}}, fault.Revoked},
		{"authority without a list", nil, plain, []func(*node){func(n *node) { n.noStampList = true }}, fault.RevocationUnknown},

		// Times.
		{"before the signer's certificate", nil, at(p.Leaf.NotBefore.Add(-time.Second)), nil, fault.OutsideValidity},
		{"before it by the accuracy alone", nil, at(p.Leaf.NotBefore.Add(time.Second), func(s *testpki.Stamp) { s.Seconds = 2 }), nil, fault.OutsideValidity},
		{"after the signer's certificate", nil, at(p.Leaf.NotAfter.Add(time.Second)), []func(*node){later, kept}, fault.OutsideValidity},
		{"from the future", nil, at(testpki.Now.Add(time.Hour)), nil, fault.OutsideValidity},
		{"before it was signed", nil, at(signedAt.Add(-time.Hour)), nil, fault.OutsideValidity},
		{"authority expired before", testpki.NewTSA(t, "stamp", testpki.Now, func(c *x509.Certificate) { c.NotAfter = stampedAt.Add(-time.Second) }), plain, nil, fault.OutsideValidity},
		{"authority not yet valid", testpki.NewTSA(t, "stamp", testpki.Now, func(c *x509.Certificate) { c.NotBefore = stampedAt.Add(time.Second) }), plain, nil, fault.OutsideValidity},

		// Forgeries.
		{"of another signature", nil, func(tsa *testpki.TSA, _ []byte) []byte { return plain(tsa, []byte("another signature")) }, nil, fault.SignatureInvalid},
		{"of the signature's digest", nil, func(tsa *testpki.TSA, s []byte) []byte {
			sum := sha256.Sum256(s)
			return plain(tsa, sum[:])
		}, nil, fault.SignatureInvalid},
		{"signature changed", nil, changed(1), nil, fault.SignatureInvalid},
		{"time changed", nil, func(tsa *testpki.TSA, s []byte) []byte {
			return bytes.Replace(plain(tsa, s), []byte(stampedAt.Format("20060102150405Z")), []byte(stampedAt.Add(time.Second).Format("20060102150405Z")), 1)
		}, nil, fault.SignatureInvalid},
		{"signed with another key", nil, at(stampedAt, func(s *testpki.Stamp) { s.Key = p.LeafKey }), nil, fault.SignatureInvalid},
		{"unknown root", nil, func(_ *testpki.TSA, s []byte) []byte { return plain(testpki.NewTSA(t, "other stamp", testpki.Now), s) }, nil, fault.ChainUntrusted},
		{"signed by the signer", nil, at(stampedAt, func(s *testpki.Stamp) {
			s.Cert, s.Key, s.Certs = p.Leaf, p.LeafKey, p.Chain()
		}), nil, fault.ChainUntrusted},
		{"authority for code", testpki.NewTSA(t, "stamp", testpki.Now, testpki.ForCode), plain, nil, fault.ChainUntrusted},
		{"usage not critical", testpki.NewTSA(t, "stamp", testpki.Now, testpki.UsageNotCritical), plain, nil, fault.ChainUntrusted},
		{"authority with a weak key", testpki.NewTSA(t, "stamp", testpki.Now), func(tsa *testpki.TSA, s []byte) []byte {
			weak := testpki.RSA(t, "weak stamp", 1024)
			template := *tsa.Cert
			template.ExtKeyUsage, template.ExtraExtensions = nil, tsa.Cert.Extensions
			c := testpki.Issue(t, &template, tsa.Root, weak.Public(), tsa.RootKey)
			return tsa.Token(s, stampedAt, func(s *testpki.Stamp) { s.Cert, s.Key, s.Certs = c, weak, []*x509.Certificate{c} })
		}, nil, fault.ChainUntrusted},

		// Form.
		{"cut off", nil, func(tsa *testpki.TSA, s []byte) []byte { return plain(tsa, s)[:100] }, nil, fault.AttestationFormat},
		{"one byte short", nil, func(tsa *testpki.TSA, s []byte) []byte {
			token := plain(tsa, s)
			return token[:len(token)-1]
		}, nil, fault.AttestationFormat},
		{"trailing", nil, func(tsa *testpki.TSA, s []byte) []byte { return append(plain(tsa, s), 0) }, nil, fault.AttestationFormat},
		{"rubbish", nil, func(*testpki.TSA, []byte) []byte { return []byte("rubbish") }, nil, fault.AttestationFormat},
		{"huge", nil, func(*testpki.TSA, []byte) []byte { return make([]byte, limits.TimeStampBytes+1) }, nil, fault.AttestationFormat},
		{"without its certificate", nil, at(stampedAt, func(s *testpki.Stamp) { s.Certs = nil }), nil, fault.AttestationFormat},
		{"with another's certificate only", nil, at(stampedAt, func(s *testpki.Stamp) { s.Certs = p.Chain() }), nil, fault.AttestationFormat},
		{"with too many certificates", nil, at(stampedAt, func(s *testpki.Stamp) {
			s.Certs = append(s.Certs, p.Leaf, p.Agent, p.Root, p.Leaf, p.Agent)
		}), nil, fault.AttestationFormat},
		{"too inaccurate", nil, at(stampedAt, func(s *testpki.Stamp) { s.Seconds = 61 }), nil, fault.AttestationFormat},
		{"of negative accuracy", nil, at(stampedAt, func(s *testpki.Stamp) { s.Seconds = -1 }), nil, fault.AttestationFormat},
		{"unknown critical extension", nil, at(stampedAt, func(s *testpki.Stamp) { s.Critical = true }), nil, fault.AttestationFormat},
		// A stamp that nobody asked for is looked at all the same.
		{"replayed, no authority named", nil, func(tsa *testpki.TSA, _ []byte) []byte { return plain(tsa, []byte("x")) }, []func(*node){withoutStores}, fault.SignatureInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			tsa := c.tsa
			if tsa == nil {
				tsa = good
			}
			n := newNode(testpki.Now)
			for _, k := range c.knobs {
				k(n)
			}
			a := with(t, raw, c.token(tsa, signature))
			vd := judge(t, must[*verifier.Verifier](t)(n.verifier(t, p, tsa)), a)
			expect(t, vd, c.want)
			counts := a != nil && strings.Contains(n.policy, "timestamp_stores") && !strings.HasPrefix(c.name, "not stamped")
			if vd.Allowed && vd.Stamped.Equal(stampedAt) != counts {
				t.Errorf("stamped at %s", vd.Stamped)
			}
		})
	}
}

// Present but broken is refused, with or without a policy, and by a program that
// cannot read time stamps all the more.
func TestABrokenTimeStampIsRefusedInDeveloperMode(t *testing.T) {
	p := testpki.New(t)
	raw, signature := testagent.Sign(t, p, signedAt)
	tsa := testpki.NewTSA(t, "stamp", testpki.Now)
	for _, c := range []struct {
		name   string
		reader verifier.StampReader
		token  []byte
		want   fault.Reason
	}{
		{"good", timestamp.Reader{}, plain(tsa, signature), ""},
		{"replayed", timestamp.Reader{}, plain(tsa, []byte("another")), fault.SignatureInvalid},
		{"rubbish", timestamp.Reader{}, []byte{1}, fault.AttestationFormat},
		{"no reader", nil, plain(tsa, signature), fault.AttestationFormat},
	} {
		v := must[*verifier.Verifier](t)(verifier.New(verifier.Config{Stamps: c.reader, Clock: testpki.Clock}))
		t.Run(c.name, func(t *testing.T) { expect(t, judge(t, v, with(t, raw, c.token)), c.want) })
	}
}

func TestAPolicyWithAuthoritiesNeedsAReader(t *testing.T) {
	n := newNode(testpki.Now)
	n.reader = nil
	if v, err := n.verifier(t, testpki.New(t), testpki.NewTSA(t, "stamp", testpki.Now)); v != nil || fault.ReasonOf(err) != fault.PolicyInvalid {
		t.Errorf("%v, %v", v, err)
	}
}

// A verdict that rests on a stamp is judged anew when a certificate of it
// expires, and not before one that did.
func TestAStampedVerdictRestsUntilTheNextExpiry(t *testing.T) {
	p := testpki.New(t)
	raw, signature := testagent.Sign(t, p, signedAt)
	tsa := testpki.NewTSA(t, "stamp", testpki.Now)
	n := newNode(testpki.Now.AddDate(0, 11, 10)) // the signer's has expired, the authority's not
	kept(n)
	a := with(t, raw, plain(tsa, signature))
	vd := judge(t, must[*verifier.Verifier](t)(n.verifier(t, p, tsa)), a)
	expect(t, vd, "")
	if !vd.Rests.Until.After(n.now) {
		t.Errorf("rests until %s, which is past", vd.Rests.Until)
	}
}

// openssl stamps, over HTTP, and what it says is believed.
func TestOpensslsTokenCounts(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	shift := now.Sub(testpki.Now)
	p := testpki.New(t, func(r *testpki.Recipe) {
		for _, c := range []*x509.Certificate{r.Root, r.Agent, r.Leaf} {
			c.NotBefore, c.NotAfter = c.NotBefore.Add(shift), c.NotAfter.Add(shift)
		}
	})
	tsa := testpki.NewTSA(t, "stamp", now)
	url := tsa.Serve()
	roots := x509.NewCertPool()
	roots.AddCert(tsa.Root)
	raw, signature := testagent.Sign(t, p, now)
	token, stamp, err := fetch.TimeStamp(t.Context(), nil, url, signature, roots)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		freeze(t, tsa, url)
	}
	if d := stamp.Time.Sub(now); d < -time.Minute || d > 5*time.Minute || stamp.Accuracy != time.Second {
		t.Errorf("stamped at %s, now is %s", stamp.Time, now)
	}
	n := newNode(now.AddDate(2, 0, 0))
	since := testpki.KeepsExpired(now.AddDate(-1, 0, 0))
	n.root, n.agent, n.stamp = list(since), list(since), list(since)
	v := must[*verifier.Verifier](t)(n.verifier(t, p, tsa))
	expect(t, judge(t, v, with(t, raw, token)), "")
	expect(t, judge(t, v, with(t, raw, nil)), fault.OutsideValidity)

	// The client believes no other authority.
	other := x509.NewCertPool()
	other.AddCert(testpki.NewTSA(t, "other stamp", now).Root)
	if _, _, err := fetch.TimeStamp(t.Context(), nil, url, signature, other); fault.ReasonOf(err) != fault.ChainUntrusted {
		t.Errorf("%v", err)
	}
}

const frozenMessage = "what was stamped"

func freeze(t *testing.T, tsa *testpki.TSA, url string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(tsa.Root)
	token, _, err := fetch.TimeStamp(t.Context(), nil, url, []byte(frozenMessage), roots)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"openssl.token": token, "root.pem": testpki.PEM(tsa.Root)} {
		if err := os.WriteFile(filepath.Join("testdata", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// frozen is a token that openssl made once, and its root.
func frozen(tb testing.TB) (token []byte, roots *x509.CertPool) {
	tb.Helper()
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(must[[]byte](tb)(os.ReadFile(filepath.Join("testdata", "root.pem")))) {
		tb.Fatal("no root")
	}
	return must[[]byte](tb)(os.ReadFile(filepath.Join("testdata", "openssl.token"))), roots
}

// FuzzToken: whatever the bytes, a token that is accepted tells the time that
// openssl signed, and is about nothing else.
func FuzzToken(f *testing.F) {
	token, roots := frozen(f)
	want, err := timestamp.Reader{}.Verify(token, []byte(frozenMessage), roots)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(token[:len(token)/2])
	f.Add(append(bytes.Clone(token), 0))
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Add([]byte{})
	for _, i := range []int{0, 1, 30, 60, 90, 120, len(token) / 2, len(token) - 1} {
		bent := bytes.Clone(token)
		bent[i] ^= 0x41
		f.Add(bent)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		shown := timestamp.Reader{}.Inspect(der, []byte(frozenMessage))
		got, err := timestamp.Reader{}.Verify(der, []byte(frozenMessage), roots)
		if err != nil {
			if fault.ReasonOf(err) == fault.Internal {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		if shown != nil {
			t.Fatalf("verified, but %v", shown)
		}
		if !got.Time.Equal(want.Time) || got.Accuracy != want.Accuracy || !got.Path[0].Equal(want.Path[0]) {
			t.Fatalf("tells %s, signed was %s", got.Time, want.Time)
		}
		if _, err := (timestamp.Reader{}).Verify(der, []byte("another"), roots); fault.ReasonOf(err) != fault.SignatureInvalid {
			t.Fatalf("about another message: %v", err)
		}
	})
}
