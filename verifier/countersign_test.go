package verifier

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
)

const (
	dev   = testpki.Email
	bob   = "bob@example.com"
	carol = "carol@example.com"

	twoOfThree = `    required_signers: [{at_least: 2, of: ["email:dev@example.com", "email:bob@example.com", "email:carol@Example.com"]}]
`
)

// requiring is the test policy with text in the scope that covers ref.
func requiring(text string) string {
	return strings.Replace(testPolicy, "    unsigned_containers", text+"    unsigned_containers", 1)
}

// person is somebody with a key and a certificate of the usual CA.
func person(tb testing.TB, email string, knobs ...testpki.Knob) *testpki.PKI {
	tb.Helper()
	serial := int64(0x2000)
	for _, c := range email {
		serial = serial*31%0xffffff + int64(c)
	}
	all := []testpki.Knob{testpki.LeafEmails(email), testpki.LeafSerial(serial), testpki.LeafKey(testpki.RSA(tb, email, 2048)), func(r *testpki.Recipe) {
		r.Leaf.Subject = testpki.Name(email)
	}}
	return testpki.New(tb, append(all, knobs...)...)
}

// countersigning makes a countersignature over what a manifest's block is about, as
// a careless tool would: without any check.
func countersigning(tb testing.TB, raw []byte, p *testpki.PKI, edits ...func(*CountersignRequest)) Countersignature {
	tb.Helper()
	payload, err := signedBytes(raw, blockOf(tb, raw))
	if err != nil {
		tb.Fatal(err)
	}
	req := CountersignRequest{Key: p.LeafKey, Time: testpki.Now.Add(-30 * time.Minute)}
	for _, edit := range edits {
		edit(&req)
	}
	c, err := countersign(digest.FromBytes(payload), req, p.Chain())
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// adding adds countersignatures to a signed manifest.
func adding(tb testing.TB, raw []byte, more ...Countersignature) []byte {
	tb.Helper()
	b := blockOf(tb, raw)
	b.Countersignatures = append(b.Countersignatures, more...)
	return annotate(tb, raw, string(marshal(tb, b)))
}

// countersignedBy adds a countersignature of each of the people.
func countersignedBy(tb testing.TB, raw []byte, people ...*testpki.PKI) []byte {
	tb.Helper()
	for _, p := range people {
		raw = adding(tb, raw, countersigning(tb, raw, p))
	}
	return raw
}

// by is the standard agent, countersigned by one person.
func by(email string, knobs ...testpki.Knob) func(testing.TB) []byte {
	return func(tb testing.TB) []byte { return countersignedBy(tb, with()(tb), person(tb, email, knobs...)) }
}

// byBob is the standard agent, countersigned by Bob after something was changed about
// how he does it.
func byBob(edit func(*CountersignRequest)) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		raw := with()(tb)
		return adding(tb, raw, countersigning(tb, raw, person(tb, bob), edit))
	}
}

// bobLies is the same with a lie in the finished countersignature.
func bobLies(lie func(tb testing.TB, c *Countersignature)) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		raw := with()(tb)
		c := countersigning(tb, raw, person(tb, bob))
		lie(tb, &c)
		return adding(tb, raw, c)
	}
}

// bobText puts a text made from a good block, countersigned by Bob, where the block
// belongs.
func bobText(change func(good string) string) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		raw := by(bob)(tb)
		good := string(marshal(tb, blockOf(tb, raw)))
		changed := change(good)
		if changed == good {
			tb.Fatal("the vector changes nothing")
		}
		return annotate(tb, raw, changed)
	}
}

// bobSigns makes Bob sign something else than he should.
func bobSigns(payload func(c Countersignature, what digest.Digest) []byte) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		raw := with()(tb)
		p := person(tb, bob)
		c := countersigning(tb, raw, p)
		bytes, err := signedBytes(raw, blockOf(tb, raw))
		if err != nil {
			tb.Fatal(err)
		}
		c.Signature = signBytes(tb, p.LeafKey, payload(c, digest.FromBytes(bytes)), crypto.SHA256)
		return adding(tb, raw, c)
	}
}

const revokedBob = 0xbadb0b

// countersignedVectors are what a node says that requires two of three.
var countersignedVectors = []vector{
	{"two-signers", "", by(bob)},
	{"three-signers", "", func(tb testing.TB) []byte { return countersignedBy(tb, by(bob)(tb), person(tb, carol)) }},
	{"three-signers-other-order", "", func(tb testing.TB) []byte { return countersignedBy(tb, by(carol)(tb), person(tb, bob)) }},
	{"ecdsa-p256", "", func(tb testing.TB) []byte { return by(bob, testpki.LeafKey(testpki.EC(tb, bob, elliptic.P256())))(tb) }},
	{"ecdsa-p384", "", func(tb testing.TB) []byte { return by(bob, testpki.LeafKey(testpki.EC(tb, bob, elliptic.P384())))(tb) }},
	{"rsa-pss", "", byBob(func(r *CountersignRequest) { r.Algorithm = AlgorithmRSAPSS })},
	{"first-signature-encoded-anew", "", func(tb testing.TB) []byte {
		// Of the same bytes: what Bob countersigned is still what is there.
		raw := adding(tb, edited(func(b *Block) { b.Algorithm = AlgorithmRSAPSS })(tb))
		raw = countersignedBy(tb, raw, person(tb, bob))
		b := blockOf(tb, raw)
		payload, err := signedBytes(raw, b)
		if err != nil {
			tb.Fatal(err)
		}
		b.Signature = signBytes(tb, testpki.New(tb).LeafKey, payload, rsaPSS.opts)
		return annotate(tb, raw, string(marshal(tb, b)))
	}},
	{"eight", "", func(tb testing.TB) []byte {
		raw := by(bob)(tb)
		for i := range limits.Countersignatures - 1 {
			raw = countersignedBy(tb, raw, many(tb, i))
		}
		return raw
	}},
	{"same-person-beside-another", "", func(tb testing.TB) []byte { return countersignedBy(tb, by(bob)(tb), devAgain(tb)) }},
	{"stranger-beside-another", "", func(tb testing.TB) []byte {
		return countersignedBy(tb, by(bob)(tb), person(tb, carol, testpki.OtherRoot(tb)))
	}},

	{"stripped", fault.SignersMissing, with()},
	{"same-person-with-two-keys", fault.SignersMissing, func(tb testing.TB) []byte { return countersignedBy(tb, with()(tb), devAgain(tb)) }},
	{"not-named", fault.SignersMissing, by("mallory@example.com")},
	{"named-in-common-name-only", fault.SignersMissing, by(bob, testpki.LeafEmails("mallory@example.com"))},
	{"two-identities", fault.SignersMissing, by(bob, testpki.LeafEmails(bob, carol))},
	{"no-identity", fault.SignersMissing, by(bob, testpki.LeafEmails())},
	{"stranger", fault.SignersMissing, func(tb testing.TB) []byte { return by(bob, testpki.OtherRoot(tb))(tb) }},
	{"revoked", fault.SignersMissing, by(bob, testpki.LeafSerial(revokedBob))},
	{"expired", fault.SignersMissing, by(bob, testpki.LeafExpired)},
	{"not-yet-valid", fault.SignersMissing, by(bob, testpki.LeafNotYetValid)},
	{"wrong-usage-tls", fault.SignersMissing, by(bob, testpki.LeafForTLS)},
	{"wrong-usage-none", fault.SignersMissing, by(bob, testpki.LeafWithoutUsage)},
	{"wrong-key-usage", fault.SignersMissing, by(bob, testpki.LeafWithoutKeyUsage)},
	{"leaf-is-ca", fault.SignersMissing, by(bob, testpki.LeafIsCA)},
	{"without-intermediate", fault.SignersMissing, func(tb testing.TB) []byte {
		p := person(tb, bob)
		p.Agent = p.Leaf
		raw := with()(tb)
		c := countersigning(tb, raw, p)
		c.CertificateChain = c.CertificateChain[:1]
		return adding(tb, raw, resigned(tb, raw, p.LeafKey, c))
	}},
	{"from-the-future", fault.SignersMissing, byBob(func(r *CountersignRequest) { r.Time = testpki.Now.Add(time.Hour) })},
	{"made-before-its-certificate", fault.SignersMissing, byBob(func(r *CountersignRequest) { r.Time = testpki.Now.AddDate(-3, 0, 0) })},
	{"made-before-the-attestation", fault.SignersMissing, byBob(func(r *CountersignRequest) { r.Time = testpki.Now.Add(-2 * time.Hour) })},

	{"moved-from-another-artifact", fault.SignatureInvalid, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		other := mustSign(tb, agentOf(tb, "echo", "\x00asm\x01\x00\x00\x00\x00"), p.LeafKey, p.Chain())
		return adding(tb, with()(tb), countersigning(tb, other, person(tb, bob)))
	}},
	{"over-another-block", fault.SignatureInvalid, func(tb testing.TB) []byte {
		c := countersigning(tb, with()(tb), person(tb, bob))
		return adding(tb, edited(func(b *Block) { b.Timestamp = "2026-01-15T09:31:00Z" })(tb), c)
	}},
	{"over-the-block-of-another-signer", fault.SignatureInvalid, func(tb testing.TB) []byte {
		c := countersigning(tb, with()(tb), person(tb, bob))
		p := person(tb, carol)
		return adding(tb, mustSign(tb, wasmAgent(tb), p.LeafKey, p.Chain()), c)
	}},
	{"manifest-changed-after", fault.SignatureInvalid, func(tb testing.TB) []byte {
		raw := by(bob)(tb)
		return []byte(strings.Replace(string(raw), `"annotations":{`, `"annotations":{"a":"b",`, 1))
	}},
	{"broken", fault.SignatureInvalid, bobLies(func(_ testing.TB, c *Countersignature) { c.Signature = "AAAA" + c.Signature[4:] })},
	{"broken-beside-enough", fault.SignatureInvalid, func(tb testing.TB) []byte {
		raw := by(bob)(tb)
		c := countersigning(tb, raw, person(tb, carol))
		c.Signature = "AAAA" + c.Signature[4:]
		return adding(tb, raw, c)
	}},
	{"broken-of-a-stranger", fault.SignatureInvalid, func(tb testing.TB) []byte {
		raw := by(bob)(tb)
		c := countersigning(tb, raw, person(tb, "mallory@example.com", testpki.OtherRoot(tb)))
		c.Signature = "AAAA" + c.Signature[4:]
		return adding(tb, raw, c)
	}},
	{"by-another-key", fault.SignatureInvalid, func(tb testing.TB) []byte {
		raw := with()(tb)
		return adding(tb, raw, resigned(tb, raw, testpki.RSA(tb, "mallory", 2048), countersigning(tb, raw, person(tb, bob))))
	}},
	{"timestamp-changed", fault.SignatureInvalid, bobLies(func(_ testing.TB, c *Countersignature) { c.Timestamp = "2026-01-15T10:00:01Z" })},
	{"another-certificate-of-the-key", fault.SignatureInvalid, bobLies(func(tb testing.TB, c *Countersignature) {
		c.CertificateChain[0] = string(testpki.PEM(person(tb, bob, testpki.LeafSerial(7)).Leaf))
	})},
	{"of-the-attestations-type", fault.SignatureInvalid, bobSigns(func(c Countersignature, what digest.Digest) []byte {
		signed, _ := c.signed(what)
		_, body, _ := strings.Cut(string(signed), "{")
		return pae(PayloadType, []byte("{"+body))
	})},
	{"over-the-digest-alone", fault.SignatureInvalid, bobSigns(func(_ Countersignature, what digest.Digest) []byte {
		return pae(CountersignatureType, []byte(`"`+what+`"`))
	})},
	{"over-the-attestations-bytes", fault.SignatureInvalid, func(tb testing.TB) []byte {
		raw := with()(tb)
		p := person(tb, bob)
		c := countersigning(tb, raw, p)
		payload, err := signedBytes(raw, blockOf(tb, raw))
		if err != nil {
			tb.Fatal(err)
		}
		c.Signature = signBytes(tb, p.LeafKey, payload, crypto.SHA256)
		return adding(tb, raw, c)
	}},
	{"algorithm-mismatch", fault.SignatureInvalid, bobLies(func(_ testing.TB, c *Countersignature) { c.Algorithm = AlgorithmECDSA })},
	{"algorithm-none", fault.SignatureInvalid, bobLies(func(_ testing.TB, c *Countersignature) { c.Algorithm = "none" })},
	{"weak-key", fault.ChainUntrusted, func(tb testing.TB) []byte { return by(bob, testpki.LeafKey(testpki.RSA(tb, "weak", 1024)))(tb) }},
	{"key-of-unknown-kind", fault.ChainUntrusted, bobLies(func(tb testing.TB, c *Countersignature) {
		key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
		c.CertificateChain[0] = string(testpki.PEM(person(tb, bob, testpki.LeafKey(key)).Leaf))
	})},

	{"same-key-twice", fault.AttestationFormat, func(tb testing.TB) []byte {
		return countersignedBy(tb, by(bob)(tb), person(tb, bob))
	}},
	{"one-key-of-two-people", fault.AttestationFormat, func(tb testing.TB) []byte {
		return countersignedBy(tb, by(bob)(tb), person(tb, carol, testpki.LeafKey(testpki.RSA(tb, bob, 2048))))
	}},
	{"key-of-the-first-signer", fault.AttestationFormat, func(tb testing.TB) []byte {
		return by(bob, testpki.LeafKey(testpki.New(tb).LeafKey))(tb)
	}},
	{"nine", fault.AttestationFormat, func(tb testing.TB) []byte {
		raw := by(bob)(tb)
		for i := range limits.Countersignatures {
			raw = countersignedBy(tb, raw, many(tb, i))
		}
		return raw
	}},
	{"none-in-a-list", fault.AttestationFormat, text(func(good string) string {
		return strings.Replace(good, `,"signature":`, `,"countersignatures":[],"signature":`, 1)
	})},
	{"null", fault.AttestationFormat, text(func(good string) string {
		return strings.Replace(good, `,"signature":`, `,"countersignatures":null,"signature":`, 1)
	})},
	{"null-in-a-list", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":[`, `"countersignatures":[null,`, 1)
	})},
	{"list-of-other-case", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":`, `"Countersignatures":`, 1)
	})},
	{"not-in-order", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":[{"algorithm":"SHA256withRSA","certificate_chain"`, `"countersignatures":[{"certificate_chain"`, 1)
	})},
	{"with-a-space", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":[{`, `"countersignatures":[ {`, 1)
	})},
	{"unknown-key", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":[{`, `"countersignatures":[{"admin":true,`, 1)
	})},
	{"key-twice", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":[{`, `"countersignatures":[{"algorithm":"none",`, 1)
	})},
	{"with-a-subject", fault.AttestationFormat, bobText(func(good string) string {
		return strings.Replace(good, `"countersignatures":[{`, `"countersignatures":[{"a_subject":{},`, 1)
	})},
	{"signature-empty", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) { c.Signature = "" })},
	{"signature-with-newline", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) {
		c.Signature = c.Signature[:76] + "\n" + c.Signature[76:]
	})},
	{"timestamp-of-other-form", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) { c.Timestamp = "2026-01-15T11:00:00+01:00" })},
	{"timestamp-token", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) { c.TimestampToken = "MAA=" })},
	{"signer-is-not-the-leaf", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) { c.Signer.Subject = "CN=ceo@example.com" })},
	{"chain-empty", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) { c.CertificateChain = []string{} })},
	{"six-certificates", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) {
		for len(c.CertificateChain) <= limits.ChainCertificates {
			c.CertificateChain = append(c.CertificateChain, c.CertificateChain[1])
		}
	})},
	{"chain-with-root", fault.AttestationFormat, bobLies(func(tb testing.TB, c *Countersignature) {
		c.CertificateChain = append(c.CertificateChain, string(testpki.PEM(testpki.New(tb).Root)))
	})},
	{"block-oversized", fault.AttestationFormat, bobLies(func(_ testing.TB, c *Countersignature) { c.Algorithm = strings.Repeat("x", limits.AttestationBytes) })},
}

// resigned signs a finished countersignature again, with another key perhaps.
func resigned(tb testing.TB, raw []byte, key crypto.Signer, c Countersignature) Countersignature {
	tb.Helper()
	payload, err := signedBytes(raw, blockOf(tb, raw))
	if err != nil {
		tb.Fatal(err)
	}
	signed, err := c.signed(digest.FromBytes(payload))
	if err != nil {
		tb.Fatal(err)
	}
	c.Signature = signBytes(tb, key, signed, crypto.SHA256)
	return c
}

// devAgain is the first signer with another key and certificate.
func devAgain(tb testing.TB) *testpki.PKI {
	return person(tb, dev, testpki.LeafKey(testpki.RSA(tb, "dev again", 2048)))
}

// many are people whom no policy names.
func many(tb testing.TB, i int) *testpki.PKI {
	email := fmt.Sprintf("many%d@example.com", i)
	return person(tb, email, testpki.LeafKey(testpki.EC(tb, email, elliptic.P256())))
}

func revokedLeaf(tb testing.TB) *x509.Certificate {
	return person(tb, bob, testpki.LeafSerial(revokedBob)).Leaf
}

func countersignedNode(tb testing.TB) *node {
	n := newNode(testpki.New(tb))
	n.agent = n.pki.AgentCRL(testpki.Revoking(revokedLeaf(tb)))
	n.policy = requiring(twoOfThree)
	return n
}

func TestCountersignedVectors(t *testing.T) {
	v := countersignedNode(t).verifier(t)
	seen := map[string]bool{}
	for _, vec := range countersignedVectors {
		if seen[vec.name] {
			t.Fatalf("vector %s is there twice", vec.name)
		}
		seen[vec.name] = true
		t.Run(vec.name, func(t *testing.T) {
			vd := judgeRaw(t, v, vec.raw(t))
			expect(t, vd, vec.expect)
			if vd.Allowed && vd.Trust != Signed {
				t.Errorf("trust is %s", vd.Trust)
			}
		})
	}
}

var frozenCountersigned = filepath.Join(frozenDir, "countersigned")

// What was countersigned once verifies for ever, as what was signed does.
func TestFrozenCountersignedVectors(t *testing.T) {
	if *update {
		freeze(t, frozenCountersigned, countersignedVectors, revokedLeaf(t))
	}
	n := frozenNodeOf(t, frozenCountersigned, requiring(twoOfThree))
	v := n.verifier(t)
	for name, vec := range frozenIn(t, frozenCountersigned, countersignedVectors) {
		t.Run(name, func(t *testing.T) {
			raw := vec.raw(t)
			expect(t, judgeRaw(t, v, raw), vec.expect)
			if a, err := oci.Read(t.Context(), store, raw); err == nil {
				vd, _ := explained(t, v, Input{Reference: ref, Artifact: a})
				expect(t, vd, vec.expect)
			}
		})
	}
}

// A countersignature that is broken refuses the artifact where nobody asks for it,
// at the most lenient level, and without a policy. One that is only not wanted
// refuses nothing there.
func TestABrokenCountersignatureIsRefusedEverywhere(t *testing.T) {
	developer, err := New(Config{Clock: testpki.Clock})
	if err != nil {
		t.Fatal(err)
	}
	nobodyAsks, audit := countersignedNode(t), countersignedNode(t)
	nobodyAsks.policy = testPolicy
	audit.policy = strings.Replace(requiring(twoOfThree), "    unsigned_containers", "    level: audit\n    unsigned_containers", 1)
	for name, v := range map[string]*Verifier{"developer": developer, "nobody asks": nobodyAsks.verifier(t), "audit": audit.verifier(t)} {
		for _, vec := range countersignedVectors {
			want := vec.expect
			if want == fault.SignersMissing {
				want = ""
			}
			t.Run(name+"/"+vec.name, func(t *testing.T) { expect(t, judgeRaw(t, v, vec.raw(t)), want) })
		}
	}
}

// requires makes one entry of required_signers.
func requires(atLeast int, of ...string) string {
	return fmt.Sprintf("      - {at_least: %d, of: [\"email:%s\"]}\n", atLeast, strings.Join(of, `", "email:`))
}

func TestRequiredSignersTimesCountersigners(t *testing.T) {
	first := with()(t)
	const missing = fault.SignersMissing
	none, b, c, d, both := []string{}, []string{bob}, []string{carol}, []string{"dave@example.com"}, []string{bob, carol}
	for _, r := range []struct {
		required string
		by       [][]string
		want     []fault.Reason
	}{
		{"", [][]string{none, b, c, d, both}, []fault.Reason{"", "", "", "", ""}},
		{requires(1, dev), [][]string{none, b, c, d, both}, []fault.Reason{"", "", "", "", ""}},
		{requires(1, bob), [][]string{none, b, c, d, both}, []fault.Reason{missing, "", missing, missing, ""}},
		{requires(1, bob, carol), [][]string{none, b, c, d, both}, []fault.Reason{missing, "", "", missing, ""}},
		{requires(2, bob, carol), [][]string{none, b, c, d, both}, []fault.Reason{missing, missing, missing, missing, ""}},
		{requires(2, dev, bob, carol), [][]string{none, b, c, d, both}, []fault.Reason{missing, "", "", missing, ""}},
		{requires(3, dev, bob, carol), [][]string{none, b, c, d, both}, []fault.Reason{missing, missing, missing, missing, ""}},
		{requires(1, dev) + requires(1, bob), [][]string{none, b, c, d, both}, []fault.Reason{missing, "", missing, missing, ""}},
		{requires(1, bob) + requires(1, carol), [][]string{none, b, c, d, both}, []fault.Reason{missing, missing, missing, missing, ""}},
		{requires(2, dev, bob) + requires(1, carol, "dave@example.com"), [][]string{none, b, c, d, both}, []fault.Reason{missing, missing, missing, missing, ""}},
		{requires(1, "bob@EXAMPLE.com"), [][]string{none, b}, []fault.Reason{missing, ""}},
		{requires(1, "Bob@example.com"), [][]string{none, b}, []fault.Reason{missing, missing}},
	} {
		n := newNode(testpki.New(t))
		if r.required != "" {
			n.policy = requiring("    required_signers:\n" + r.required)
		}
		v := n.verifier(t)
		for i, people := range r.by {
			t.Run(fmt.Sprintf("%s by %s", r.required, people), func(t *testing.T) {
				raw := first
				for _, who := range people {
					raw = countersignedBy(t, raw, person(t, who))
				}
				vd, _ := explained(t, v, Input{Reference: ref, Artifact: read(t, raw)})
				expect(t, vd, r.want[i])
			})
		}
	}
}

func TestARefusalSaysWhoMayStillCountersign(t *testing.T) {
	v := countersignedNode(t).verifier(t)
	vd := judgeRaw(t, v, by(bob, testpki.LeafSerial(revokedBob))(t))
	expect(t, vd, fault.SignersMissing)
	for _, want := range []string{
		"2 of dev@example.com, bob@example.com, carol@example.com, and it is by dev@example.com only", "countersignature 1 does not count", "was revoked",
		"bob@example.com or carol@example.com can: mentatctl countersign " + ref,
	} {
		if !strings.Contains(vd.Message, want) {
			t.Errorf("%q does not say %q", vd.Message, want)
		}
	}
	if len(vd.Countersigners) != 1 || vd.Countersigners[0].Counts || vd.Countersigners[0].Email != bob || !strings.Contains(vd.Countersigners[0].Why, "revoked") {
		t.Errorf("%+v", vd.Countersigners)
	}
}

func TestARefusalNamesWhatIsThereToBeCountersigned(t *testing.T) {
	vd := countersignedNode(t).verifier(t).Verify(t.Context(), Input{Reference: ref, Where: "stage.example.com/a:1", Artifact: read(t, with()(t))})
	expect(t, vd, fault.SignersMissing)
	if !strings.HasSuffix(vd.Message, "can: mentatctl countersign stage.example.com/a:1)") {
		t.Errorf("%q", vd.Message)
	}
}

func TestAStrangersNameDoesNotPushOutWhoIsMissing(t *testing.T) {
	raw := by(bob, testpki.OtherRoot(t), func(r *testpki.Recipe) { r.Leaf.Subject.OrganizationalUnit = []string{strings.Repeat("é", 3000)} })(t)
	vd := judgeRaw(t, countersignedNode(t).verifier(t), raw)
	expect(t, vd, fault.SignersMissing)
	if len(vd.Message) > 1000 || !strings.HasSuffix(vd.Message, "can: mentatctl countersign "+ref+")") || !utf8.ValidString(vd.Message) {
		t.Errorf("%d bytes: %q", len(vd.Message), vd.Message)
	}
}

func TestWhoDoesNotCountIsAWarningBesideThoseWhoDo(t *testing.T) {
	v := countersignedNode(t).verifier(t)
	raw := countersignedBy(t, by(bob)(t), person(t, "mallory@example.com"))
	vd, trace := explained(t, v, Input{Reference: ref, Artifact: read(t, raw)})
	expect(t, vd, "")
	if len(vd.Warnings) != 1 || !strings.Contains(vd.Warnings[0], "mallory@example.com") || !slices.Equal(vd.Counted(), []string{bob}) {
		t.Errorf("%q, %q", vd.Warnings, vd.Counted())
	}
	if !strings.Contains(vd.Line(), "countersigned by bob@example.com") {
		t.Errorf("%q", vd.Line())
	}
	s := stepOf(trace, StepSigners)
	if s.Outcome != Passed || len(s.Parts) != 2 || s.Parts[0].Outcome != Passed || s.Parts[1].Outcome != NotAsked || len(s.Parts[0].Parts) < 6 {
		t.Errorf("%+v", s)
	}
	if vd, _ := explained(t, v, Input{Reference: ref, Artifact: read(t, by(bob)(t))}); len(vd.Warnings) != 0 {
		t.Errorf("warnings %q", vd.Warnings)
	}
	if vd, trace := explained(t, v, Input{Reference: ref, Artifact: read(t, by(bob, testpki.LeafExpired)(t))}); stepOf(trace, StepSigners).Parts[0].Outcome != Failed {
		t.Errorf("%s: %+v", vd.Line(), trace.Steps)
	}
}

// Too few signers are as an identity that the scope does not name.
func TestTooFewSignersAtEachLevel(t *testing.T) {
	a := read(t, with()(t))
	for level, want := range map[Level]fault.Reason{Strict: fault.SignersMissing, Permissive: fault.SignersMissing, Audit: ""} {
		n := countersignedNode(t)
		n.policy = requiring(twoOfThree + "    level: " + string(level) + "\n")
		vd := n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: a})
		expect(t, vd, want)
		if vd.Trust != Untrusted || vd.Allowed && (len(vd.Overlooked) != 1 || vd.Overlooked[0].Check != StepSigners) {
			t.Errorf("%s: %s, %+v", level, vd.Line(), vd.Overlooked)
		}
	}
}

// What has ended is let by for the first signer only: at no level does a
// countersigner count whose certificate has ended or about whom nothing is known.
func TestNoLevelMakesACountersignerCount(t *testing.T) {
	for name, raw := range map[string]func(testing.TB) []byte{"expired": by(bob, testpki.LeafExpired), "revoked": by(bob, testpki.LeafSerial(revokedBob))} {
		n := countersignedNode(t)
		n.policy = requiring(twoOfThree + "    level: permissive\n")
		t.Run(name, func(t *testing.T) { expect(t, judgeRaw(t, n.verifier(t), raw(t)), fault.SignersMissing) })
	}
}

// A first signer whom a lenient level lets by stands for nobody, and a
// countersignature by somebody else does not make up for the first.
func TestTheFirstSignerMustBeOneOfTheScope(t *testing.T) {
	p := person(t, bob)
	raw := countersignedBy(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()), testpki.New(t), person(t, carol))
	expect(t, judgeRaw(t, countersignedNode(t).verifier(t), raw), fault.IdentityUntrusted)
}

func TestTrustLevelsLookAtTheFirstSigner(t *testing.T) {
	n := countersignedNode(t)
	n.policy = strings.Replace(requiring(twoOfThree), "publisher@example.com", bob, 1)
	vd := judgeRaw(t, n.verifier(t), by(bob)(t))
	expect(t, vd, "")
	if vd.Trust != Signed {
		t.Errorf("a countersigner makes it %s", vd.Trust)
	}
	n.policy = strings.Replace(requiring(twoOfThree), "publisher@example.com", dev, 1)
	if vd := judgeRaw(t, n.verifier(t), by(bob)(t)); vd.Trust != Verified {
		t.Error(vd.Line())
	}
}

func TestAVerdictRestsOnItsCountersigners(t *testing.T) {
	soon := testpki.Now.Add(time.Hour)
	raw := by(bob, func(r *testpki.Recipe) { r.Leaf.NotAfter = soon })(t)
	n := countersignedNode(t)
	in := Input{Reference: ref, Artifact: read(t, raw)}
	vd := n.verifier(t).Verify(t.Context(), in)
	expect(t, vd, "")
	if !vd.Rests.Until.Equal(soon) {
		t.Errorf("it holds until %s, the countersigner's certificate until %s", vd.Rests.Until, soon)
	}
	n.clock = func() time.Time { return soon.Add(time.Second) }
	expect(t, n.verifier(t).Verify(t.Context(), in), fault.SignersMissing)

	n.clock = testpki.Clock
	changes := n.verifier(t).Forecast(t.Context(), in, soon.Add(time.Hour))
	if len(changes) != 2 || !changes[0].Allowed || changes[1].Allowed || changes[1].Reason != fault.SignersMissing || !strings.Contains(strings.Join(changes[1].Because, ";"), bob) {
		t.Errorf("%+v", changes)
	}
}

// A list that ends before it would hide what is certain: that a certificate ends.
func TestAForecastLooksBehindListsThatAreDue(t *testing.T) {
	ends := testpki.Now.Add(72 * time.Hour)
	raw := by(bob, func(r *testpki.Recipe) { r.Leaf.NotAfter = ends })(t)
	n := countersignedNode(t)
	in := Input{Reference: ref, Artifact: read(t, raw)}
	v, until := n.verifier(t), ends.Add(time.Hour)
	asIs := v.Forecast(t.Context(), in, until)
	if last := asIs[len(asIs)-1]; last.Reason != fault.RevocationUnknown {
		t.Errorf("as it is: %+v", asIs)
	}
	renewed := v.Renewing().Forecast(t.Context(), in, until)
	if len(renewed) != 2 || !renewed[0].Allowed || renewed[1].Reason != fault.SignersMissing || !renewed[1].At.Equal(ends.Add(time.Nanosecond)) {
		t.Errorf("renewed: %+v", renewed)
	}
	// It is for looking ahead only: the verifier itself is what it was.
	if vd := v.At(until).Verify(t.Context(), in); vd.Allowed || vd.Reason != fault.RevocationUnknown {
		t.Error(vd.Line())
	}
	// What is out of date already is not renewed.
	n.agent = n.pki.AgentCRL(testpki.Until(testpki.Now.Add(-30 * 24 * time.Hour)))
	if changes := n.verifier(t).Renewing().Forecast(t.Context(), in, until); changes[0].Allowed || changes[0].Reason != fault.RevocationUnknown {
		t.Errorf("%+v", changes)
	}
}

// Adding a countersignature changes the manifest and nothing that the first signer
// signed: lists that deny by signed digest go on denying.
func TestACountersignatureLeavesWhatWasSigned(t *testing.T) {
	raw := with()(t)
	before, err := ReadAttestation(raw)
	if err != nil {
		t.Fatal(err)
	}
	p := person(t, bob)
	signed, block, err := Countersign(CountersignRequest{Raw: raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now})
	if err != nil {
		t.Fatal(err)
	}
	after, err := ReadAttestation(signed)
	if err != nil || after.SignedDigest != before.SignedDigest || after.Signature != before.Signature || string(after.SignedBytes) != string(before.SignedBytes) {
		t.Fatalf("%v: %s was %s", err, after.SignedDigest, before.SignedDigest)
	}
	if digest.FromBytes(signed) == digest.FromBytes(raw) || string(marshal(t, after.Block)) != string(block) {
		t.Error("the block is not the one in the manifest")
	}
	if leaves := after.Countersigners(); len(leaves) != 1 || !leaves[0].Equal(p.Leaf) {
		t.Errorf("%v", leaves)
	}
	expect(t, judgeRaw(t, countersignedNode(t).verifier(t), signed), "")
	// Signing again is another block, with no countersignature in it.
	dev := testpki.New(t)
	again, _, err := Sign(SignRequest{Raw: signed, Key: dev.LeafKey, Chain: dev.Chain(), Time: testpki.Now, Subject: subject()})
	if err != nil || len(blockOf(t, again).Countersignatures) != 0 {
		t.Errorf("%v", err)
	}
}

func TestCountersignRefuses(t *testing.T) {
	signed := with()(t)
	once := by(bob)(t)
	p := person(t, bob)
	for name, c := range map[string]struct {
		edit func(*CountersignRequest)
		want fault.Reason
		says string
	}{
		"no key":            {func(r *CountersignRequest) { r.Key = nil }, fault.Usage, "needs a key"},
		"another key":       {func(r *CountersignRequest) { r.Key = testpki.RSA(t, "mallory", 2048) }, fault.SignatureInvalid, "does not belong"},
		"unsigned":          {func(r *CountersignRequest) { r.Raw = wasmAgent(t) }, fault.Unsigned, "no attestation"},
		"first is broken":   {func(r *CountersignRequest) { r.Raw = []byte(strings.Replace(string(signed), "echo", "Echo", 1)) }, fault.SignatureInvalid, "does not fit"},
		"another is broken": {func(r *CountersignRequest) { r.Raw = vectorNamed(t, "broken-of-a-stranger") }, fault.SignatureInvalid, "countersignature 2"},
		"ended attestation": {func(r *CountersignRequest) { r.Raw = ended(t) }, fault.OutsideValidity, "ended"},
		"twice":             {func(r *CountersignRequest) { r.Raw = once }, fault.Exists, "--replace"},
		"twice by another key": {func(r *CountersignRequest) {
			r.Raw = countersignedBy(t, signed, person(t, bob, testpki.LeafKey(testpki.RSA(t, "bob again", 2048))))
		}, fault.Exists, "--replace"},
		"the first signer": {func(r *CountersignRequest) {
			q := testpki.New(t)
			r.Key, r.Chain, r.Replace = q.LeafKey, q.Chain(), true
		}, fault.Exists, "first signature"},
		"the first signer with another key": {func(r *CountersignRequest) {
			q := devAgain(t)
			r.Key, r.Chain = q.LeafKey, q.Chain()
		}, fault.Exists, "first signature"},
		"before the first":    {func(r *CountersignRequest) { r.Time = testpki.Now.Add(-2 * time.Hour) }, fault.OutsideValidity, "future"},
		"expired":             {func(r *CountersignRequest) { r.Time = p.Leaf.NotAfter.Add(time.Second) }, fault.OutsideValidity, "expired"},
		"not for code":        {func(r *CountersignRequest) { r.Chain = person(t, bob, testpki.LeafForTLS).Chain() }, fault.ChainUntrusted, "code signing"},
		"algorithm unfitting": {func(r *CountersignRequest) { r.Algorithm = AlgorithmECDSA }, fault.SignatureInvalid, "algorithm"},
		"too many":            {func(r *CountersignRequest) { r.Raw = manyOf(t) }, fault.AttestationFormat, "allowed are 8"},
	} {
		t.Run(name, func(t *testing.T) {
			req := CountersignRequest{Raw: signed, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now}
			c.edit(&req)
			out, block, err := Countersign(req)
			if out != nil || block != nil || fault.ReasonOf(err) != c.want || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, want %s and %q", err, c.want, c.says)
			}
		})
	}
	req := CountersignRequest{Raw: once, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now, Replace: true}
	out, _, err := Countersign(req)
	if err != nil || len(blockOf(t, out).Countersignatures) != 1 || blockOf(t, out).Countersignatures[0].Timestamp != "2026-01-15T10:30:00Z" {
		t.Errorf("not replaced: %v", err)
	}
}

func vectorNamed(tb testing.TB, name string) []byte {
	tb.Helper()
	i := slices.IndexFunc(countersignedVectors, func(v vector) bool { return v.name == name })
	return countersignedVectors[i].raw(tb)
}

func ended(tb testing.TB) []byte {
	return edited(func(b *Block) { b.NotAfter = "2026-01-15T10:00:00Z" })(tb)
}

func manyOf(tb testing.TB) []byte {
	raw := with()(tb)
	for i := range limits.Countersignatures {
		raw = countersignedBy(tb, raw, many(tb, i))
	}
	return raw
}

func TestRequiredSignersThatAreNotClearAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"    required_signers: []\n", "is empty"},
		"nobody":              {"    required_signers: [{at_least: 1, of: []}]\n", "of: is required"},
		"no number":           {"    required_signers: [{of: [\"email:a@example.com\"]}]\n", "at_least: is 0"},
		"no names":            {"    required_signers: [{at_least: 1}]\n", "of: is required"},
		"none":                {"    required_signers:\n" + requires(0, dev, bob), "at_least: is 0, allowed is 1 to 2"},
		"below none":          {"    required_signers:\n" + requires(-1, dev, bob), "at_least: is -1"},
		"more than there are": {"    required_signers:\n" + requires(3, dev, bob), "allowed is 1 to 2"},
		"text":                {"    required_signers: [{at_least: \"1\", of: [\"email:a@example.com\"]}]\n", "at_least"},
		"anybody":             {"    required_signers: [{at_least: 1, of: [any]}]\n", "of[0]"},
		"no address":          {"    required_signers: [{at_least: 1, of: [\"a@example.com\"]}]\n", "of[0]"},
		"twice":               {"    required_signers:\n" + requires(2, dev, "dev@EXAMPLE.com"), "of[1]: \"email:dev@EXAMPLE.com\" is there twice"},
		"in two entries":      {"    required_signers:\n" + requires(1, dev, bob) + requires(1, carol, bob), "required_signers[1].of[1]"},
		"more than can sign":  {"    required_signers:\n" + requires(10, numbered(10)...), "asks for 10 signers, an attestation has 9 at most"},
		"unknown key":         {"    required_signers: [{at_least: 1, of: [\"email:a@example.com\"], or: 1}]\n", "or"},
		"a map":               {"    required_signers: {at_least: 1}\n", "required_signers"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePolicy("policy.yaml", []byte(requiring(c.text)))
			if p != nil || fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "policy.yaml:") {
				t.Errorf("%v does not say %q", err, c.says)
			}
		})
	}
	policy(t, requiring("    required_signers:\n"+requires(9, numbered(12)...)))
}

func numbered(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("many%d@example.com", i))
	}
	return all
}

// FuzzCountersignatures: whatever is in the list, the first signer's word stays what
// it was, nobody countersigns without a key, and nothing runs that two of the three
// did not sign.
func FuzzCountersignatures(f *testing.F) {
	v := frozenNodeOf(f, frozenCountersigned, requiring(twoOfThree)).verifier(f)
	made, enough := map[string]bool{}, map[string]bool{}
	for _, vec := range frozenIn(f, frozenCountersigned, countersignedVectors) {
		raw := vec.raw(f)
		a, err := ReadAttestation(raw)
		b := looseBlock(raw)
		if list, marshalErr := json.Marshal(b.Countersignatures); marshalErr == nil && b.Signature != "" {
			f.Add(raw, string(list))
		}
		if err != nil || a.CheckSignature() != nil {
			continue
		}
		for _, s := range a.counters {
			made[string(s.payload)] = true
		}
		if vec.expect == "" {
			enough[string(a.SignedBytes)] = true
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, list string) {
		b := looseBlock(raw)
		if json.Unmarshal([]byte(list), &b.Countersignatures) != nil {
			return
		}
		text, err := json.Marshal(b)
		if err != nil {
			return
		}
		raw, err = withAnnotation(raw, text)
		if err != nil {
			return
		}
		a, err := ReadAttestation(raw)
		if err != nil {
			return
		}
		if len(a.counters) != len(a.Countersignatures) || len(a.counters) > limits.Countersignatures {
			t.Fatalf("%d of %d were read", len(a.counters), len(a.Countersignatures))
		}
		fits := a.CheckSignature() == nil
		for _, s := range a.counters {
			if fits && !made[string(s.payload)] {
				t.Fatalf("a countersignature nobody made:\n%s", raw)
			}
		}
		vd := judgeRaw(t, v, raw)
		if vd.Allowed && (!fits || !enough[string(a.SignedBytes)] || len(vd.Counted()) < 1) {
			t.Fatalf("allowed: %s\n%s", vd.Line(), raw)
		}
	})
}

// looseBlock is what can be read of a block, be it broken.
func looseBlock(raw []byte) Block {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	var b Block
	if json.Unmarshal(raw, &m) == nil {
		_ = json.Unmarshal([]byte(m.Annotations[oci.AnnotationAttestation]), &b) // as far as it goes
	}
	return b
}
