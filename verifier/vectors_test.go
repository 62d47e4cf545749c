package verifier

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
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
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

func signBytes(tb testing.TB, key crypto.Signer, data []byte, opts crypto.SignerOpts) string {
	tb.Helper()
	sum := sha256.Sum256(data)
	hashed := sum[:]
	if opts.HashFunc() == crypto.SHA512 {
		long := sha512.Sum512(data)
		hashed = long[:]
	}
	sig, err := key.Sign(rand.Reader, hashed, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// blockOf takes a block out of a signed manifest.
func blockOf(tb testing.TB, signed []byte) Block {
	tb.Helper()
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	var b Block
	if err := json.Unmarshal(signed, &m); err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal([]byte(m.Annotations[oci.AnnotationAttestation]), &b); err != nil {
		tb.Fatal(err)
	}
	return b
}

// vector is a manifest and what the standard node must say to it.
type vector struct {
	name   string
	expect fault.Reason // "" for allowed
	raw    func(tb testing.TB) []byte
}

// with signs the standard agent by a PKI with knobs. All of them share the root
// and, unless a knob says otherwise, the agent CA.
func with(knobs ...testpki.Knob) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		p := testpki.New(tb, knobs...)
		return mustSign(tb, wasmAgent(tb), p.LeafKey, p.Chain())
	}
}

// edited signs a block that was changed before.
func edited(edits ...func(*Block)) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		p := testpki.New(tb)
		return mustSign(tb, wasmAgent(tb), p.LeafKey, p.Chain(), edits...)
	}
}

// lying signs a finished block after a lie was put into it.
func lying(lie func(tb testing.TB, b *Block)) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		p := testpki.New(tb)
		b := blockOf(tb, mustSign(tb, wasmAgent(tb), p.LeafKey, p.Chain()))
		lie(tb, &b)
		return forge(tb, wasmAgent(tb), p.LeafKey, b)
	}
}

// text puts a text made from a good block's where the block belongs.
func text(change func(good string) string) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		signed := with()(tb)
		return annotate(tb, signed, change(string(marshal(tb, blockOf(tb, signed)))))
	}
}

// bytesOf changes the bytes of a signed manifest.
func bytesOf(change func(raw string) string) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		raw := string(with()(tb))
		out := change(raw)
		if out == raw {
			tb.Fatal("the vector changes nothing")
		}
		return []byte(out)
	}
}

// RevokedSerial is on the standard node's list.
const revokedSerial = 0xbad

var vectors = []vector{
	{"good", "", with()},
	{"good-ecdsa-p256", "", func(tb testing.TB) []byte { return with(testpki.LeafKey(testpki.EC(tb, "leaf", elliptic.P256())))(tb) }},
	{"good-ecdsa-p384", "", func(tb testing.TB) []byte { return with(testpki.LeafKey(testpki.EC(tb, "leaf", elliptic.P384())))(tb) }},
	{"good-rsa-pss", "", edited(func(b *Block) { b.Algorithm = AlgorithmRSAPSS })},
	{"good-not-after", "", edited(func(b *Block) { b.NotAfter = "2026-01-16T00:00:00Z" })},

	{"absent", fault.Unsigned, wasmAgent},
	{"empty", fault.AttestationFormat, text(func(string) string { return "" })},
	{"empty-object", fault.AttestationFormat, text(func(string) string { return "{}" })},
	{"null", fault.AttestationFormat, text(func(string) string { return "null" })},
	{"array", fault.AttestationFormat, text(func(good string) string { return "[" + good + "]" })},
	{"rubbish", fault.AttestationFormat, text(func(string) string { return "yes, trust me" })},
	{"cut-off", fault.AttestationFormat, text(func(good string) string { return good[:len(good)/2] })},
	{"trailing", fault.AttestationFormat, text(func(good string) string { return good + good })},
	{"re-spaced-annotation", fault.AttestationFormat, text(func(good string) string { return strings.Replace(good, `":`, `": `, 1) })},
	{"re-ordered-annotation", fault.AttestationFormat, text(func(good string) string {
		return `{"version":"1.0",` + strings.Replace(strings.TrimPrefix(good, "{"), `,"version":"1.0"`, "", 1)
	})},
	{"key-of-other-case", fault.AttestationFormat, text(func(good string) string { return strings.Replace(good, `"algorithm"`, `"Algorithm"`, 1) })},
	{"key-twice", fault.AttestationFormat, text(func(good string) string { return `{"algorithm":"none",` + good[1:] })},
	{"key-twice-escaped", fault.AttestationFormat, text(func(good string) string { return `{"\u0061lgorithm":"none",` + good[1:] })},
	{"unknown-key", fault.AttestationFormat, text(func(good string) string { return `{"admin":true,` + good[1:] })},
	{"unknown-version", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.Version = "2.0" })},
	{"version-as-number", fault.AttestationFormat, text(func(good string) string { return strings.Replace(good, `"version":"1.0"}`, `"version":1}`, 1) })},
	{"annotation-of-next-version", fault.AttestationFormat, bytesOf(func(raw string) string {
		return strings.Replace(raw, oci.AnnotationAttestation, "dev.mentatlab.attestation.v2", 1)
	})},
	{"oversized", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.Subject.ID = strings.Repeat("x", limits.AttestationBytes) })},
	{"duplicated", fault.ArtifactInvalid, bytesOf(func(raw string) string {
		return strings.Replace(raw, `"annotations":{`, `"annotations":{"`+oci.AnnotationAttestation+`":"{}",`, 1)
	})},
	{"duplicated-escaped", fault.ArtifactInvalid, bytesOf(func(raw string) string {
		return strings.Replace(raw, `"annotations":{`, `"annotations":{"\u0064ev.mentatlab.attestation.v1":"{}",`, 1)
	})},
	{"annotations-twice", fault.ArtifactInvalid, bytesOf(func(raw string) string { return strings.Replace(raw, "{", `{"annotations":{},`, 1) })},
	{"annotations-of-other-case", fault.ArtifactInvalid, bytesOf(func(raw string) string { return strings.Replace(raw, "{", `{"Annotations":{},`, 1) })},
	{"re-spaced-manifest", fault.AttestationFormat, bytesOf(func(raw string) string { return strings.Replace(raw, ":", ": ", 1) })},
	{"manifest-with-newline", fault.AttestationFormat, bytesOf(func(raw string) string { return raw + "\n" })},

	{"over-another-manifest", fault.SignatureInvalid, func(tb testing.TB) []byte {
		return annotate(tb, agentOf(tb, "echo", "\x00asm\x01\x00\x00\x00\x00"), string(marshal(tb, blockOf(tb, with()(tb)))))
	}},
	{"annotation-added", fault.SignatureInvalid, bytesOf(func(raw string) string {
		return strings.Replace(raw, `"annotations":{`, `"annotations":{"a":"b",`, 1)
	})},
	{"timestamp-changed", fault.SignatureInvalid, text(func(good string) string { return strings.Replace(good, "T09:30:00Z", "T09:30:01Z", 1) })},
	{"not-after-removed", fault.SignatureInvalid, func(tb testing.TB) []byte {
		signed := edited(func(b *Block) { b.NotAfter = "2026-01-15T10:00:00Z" })(tb)
		b := blockOf(tb, signed)
		b.NotAfter = ""
		return annotate(tb, signed, string(marshal(tb, b)))
	}},
	{"subject-changed", fault.SignatureInvalid, text(func(good string) string { return strings.Replace(good, repository, repository+"2", 1) })},
	{"signed-by-another-key", fault.SignatureInvalid, func(tb testing.TB) []byte {
		b := blockOf(tb, with()(tb))
		return forge(tb, wasmAgent(tb), testpki.RSA(tb, "mallory", 2048), b)
	}},
	{"another-leaf", fault.SignatureInvalid, func(tb testing.TB) []byte {
		signed := with()(tb)
		b := blockOf(tb, signed)
		b.CertificateChain[0] = string(testpki.PEM(testpki.New(tb, testpki.LeafSerial(7)).Leaf))
		return annotate(tb, signed, string(marshal(tb, b)))
	}},
	{"without-payload-type", fault.SignatureInvalid, lyingSignature(func(body []byte) []byte { return body }, crypto.SHA256)},
	{"of-another-payload-type", fault.SignatureInvalid, lyingSignature(func(body []byte) []byte { return pae("application/vnd.in-toto+json", body) }, crypto.SHA256)},
	{"sha512-called-sha256", fault.SignatureInvalid, lyingSignature(func(body []byte) []byte { return pae(PayloadType, body) }, crypto.SHA512)},
	{"pss-called-pkcs1", fault.SignatureInvalid, lyingSignature(func(body []byte) []byte { return pae(PayloadType, body) }, rsaPSS.opts)},
	{"pss-with-other-salt", fault.SignatureInvalid, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		b := blockOf(tb, edited(func(b *Block) { b.Algorithm = AlgorithmRSAPSS })(tb))
		payload, err := signedBytes(wasmAgent(tb), b)
		if err != nil {
			tb.Fatal(err)
		}
		b.Signature = signBytes(tb, p.LeafKey, payload, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256})
		return annotate(tb, wasmAgent(tb), string(marshal(tb, b)))
	}},
	{"algorithm-mismatch", fault.SignatureInvalid, lying(func(_ testing.TB, b *Block) { b.Algorithm = AlgorithmECDSA })},
	{"algorithm-none", fault.SignatureInvalid, lying(func(_ testing.TB, b *Block) { b.Algorithm = "none" })},
	{"algorithm-sha1", fault.SignatureInvalid, lying(func(_ testing.TB, b *Block) { b.Algorithm = "SHA1withRSA" })},
	{"algorithm-empty", fault.SignatureInvalid, lying(func(_ testing.TB, b *Block) { b.Algorithm = "" })},
	{"signature-empty", fault.AttestationFormat, text(func(good string) string { return dropField(good, "signature") })},
	{"signature-with-newline", fault.AttestationFormat, func(tb testing.TB) []byte {
		signed := with()(tb)
		b := blockOf(tb, signed)
		b.Signature = b.Signature[:76] + "\n" + b.Signature[76:]
		return annotate(tb, signed, string(marshal(tb, b)))
	}},
	{"signature-with-stray-bits", fault.AttestationFormat, func(tb testing.TB) []byte {
		signed := with()(tb)
		b := blockOf(tb, signed)
		i := len(b.Signature) - 3 // RSA-2048: 256 bytes end in two characters and "=="
		b.Signature = b.Signature[:i] + string(b.Signature[i]+1) + "=="
		return annotate(tb, signed, string(marshal(tb, b)))
	}},
	{"timestamp-token", fault.AttestationFormat, text(func(good string) string {
		return strings.Replace(good, `,"version"`, `,"timestamp_token":"MAA=","version"`, 1)
	})},
	{"timestamp-of-other-form", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.Timestamp = "2026-01-15T10:30:00+01:00" })},
	{"signer-is-not-the-leaf", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.Signer.Subject = "CN=ceo@example.com,O=MentatLab,C=US" })},
	{"issuer-is-not-the-leaf's", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.Signer.Issuer = "CN=Elsewhere" })},
	{"without-subject", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.Subject = Subject{} })},

	{"chain-empty", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.CertificateChain = []string{} })},
	{"six-certificates", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) {
		for len(b.CertificateChain) <= limits.ChainCertificates {
			b.CertificateChain = append(b.CertificateChain, b.CertificateChain[1])
		}
	})},
	{"certificate-oversized", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) {
		b.CertificateChain[1] += strings.Repeat("\n", limits.CertificatePEMBytes)
	})},
	{"certificate-not-pem", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.CertificateChain[0] = "MII" })},
	{"certificate-with-text", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.CertificateChain[0] = "dev\n" + b.CertificateChain[0] })},
	{"certificate-with-trailing-newline", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) { b.CertificateChain[0] += "\n" })},
	{"two-certificates-in-one", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) {
		b.CertificateChain = []string{b.CertificateChain[0] + b.CertificateChain[1]}
	})},
	{"certificate-damaged", fault.AttestationFormat, lying(func(_ testing.TB, b *Block) {
		b.CertificateChain[0] = string(encodePEM([]byte{0x30, 0x03, 0x02, 0x01, 0x00}))
	})},
	{"chain-with-root", fault.AttestationFormat, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		return mustSign(tb, wasmAgent(tb), p.LeafKey, append(p.Chain(), p.Root))
	}},
	{"self-signed", fault.AttestationFormat, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		return mustSign(tb, wasmAgent(tb), p.RootKey, []*x509.Certificate{p.Root})
	}},

	{"expired", fault.OutsideValidity, with(testpki.LeafExpired)},
	{"not-yet-valid", fault.OutsideValidity, with(testpki.LeafNotYetValid)},
	{"agent-ca-expired", fault.OutsideValidity, with(testpki.AgentExpired)},
	{"attestation-ended", fault.OutsideValidity, edited(func(b *Block) { b.NotAfter = "2026-01-15T10:00:00Z" })},
	{"not-after-before-timestamp", fault.AttestationFormat, edited(func(b *Block) { b.NotAfter = "2026-01-01T00:00:00Z" })},
	{"from-the-future", fault.OutsideValidity, edited(func(b *Block) { b.Timestamp = "2026-01-15T11:30:00Z" })},
	{"made-before-its-certificate", fault.OutsideValidity, edited(func(b *Block) { b.Timestamp = "2020-01-01T00:00:00Z" })},

	{"wrong-usage-none", fault.ChainUntrusted, with(testpki.LeafWithoutUsage)},
	{"wrong-usage-tls", fault.ChainUntrusted, with(testpki.LeafForTLS)},
	{"wrong-usage-too-much", fault.ChainUntrusted, with(testpki.LeafForEverything)},
	{"wrong-key-usage", fault.ChainUntrusted, with(testpki.LeafWithoutKeyUsage)},
	{"leaf-is-ca", fault.ChainUntrusted, with(testpki.LeafIsCA)},
	{"signed-by-agent-ca-itself", fault.ChainUntrusted, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		return mustSign(tb, wasmAgent(tb), p.AgentKey, []*x509.Certificate{p.Agent})
	}},
	{"leaf-with-critical-extension", fault.ChainUntrusted, with(testpki.LeafCritical)},
	{"issuer-is-no-ca", fault.ChainUntrusted, with(testpki.AgentNotCA)},
	{"issuer-for-tls-only", fault.ChainUntrusted, with(testpki.AgentForTLS)},
	{"name-constraint", fault.ChainUntrusted, with(testpki.AgentForOthers)},
	{"weak-key", fault.ChainUntrusted, func(tb testing.TB) []byte { return with(testpki.LeafKey(testpki.RSA(tb, "weak", 1024)))(tb) }},
	{"weak-curve", fault.ChainUntrusted, func(tb testing.TB) []byte { return with(testpki.LeafKey(testpki.EC(tb, "weak", elliptic.P224())))(tb) }},
	{"weak-agent-ca-key", fault.ChainUntrusted, func(tb testing.TB) []byte { return with(testpki.AgentKey(testpki.RSA(tb, "weak", 1024)))(tb) }},
	{"unknown-root", fault.ChainUntrusted, func(tb testing.TB) []byte { return with(testpki.OtherRoot(tb))(tb) }},
	{"wrong-chain", fault.ChainUntrusted, func(tb testing.TB) []byte {
		p, other := testpki.New(tb), testpki.New(tb, testpki.AgentKey(testpki.RSA(tb, "other agent", 2048)))
		return mustSign(tb, wasmAgent(tb), p.LeafKey, []*x509.Certificate{p.Leaf, other.Agent})
	}},
	{"without-intermediate", fault.ChainUntrusted, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		return mustSign(tb, wasmAgent(tb), p.LeafKey, p.Chain()[:1])
	}},
	{"certificate-beside-the-path", fault.ChainUntrusted, func(tb testing.TB) []byte {
		p, other := testpki.New(tb), testpki.New(tb, testpki.LeafSerial(9))
		return mustSign(tb, wasmAgent(tb), p.LeafKey, []*x509.Certificate{p.Leaf, p.Agent, other.Leaf})
	}},
	{"issuer-twice", fault.ChainUntrusted, func(tb testing.TB) []byte {
		p := testpki.New(tb)
		return mustSign(tb, wasmAgent(tb), p.LeafKey, []*x509.Certificate{p.Leaf, p.Agent, p.Agent})
	}},

	{"identity-mismatch", fault.IdentityUntrusted, with(testpki.LeafEmails("dev@example.org"))},
	{"identity-substring", fault.IdentityUntrusted, with(testpki.LeafEmails("dev@example.com.evil.example"))},
	{"identity-of-other-case", fault.IdentityUntrusted, with(testpki.LeafEmails("Dev@example.com"))},
	{"identity-in-common-name-only", fault.IdentityUntrusted, with(testpki.LeafEmails())},
	{"two-identities", fault.IdentityUntrusted, with(testpki.LeafEmails("dev@example.com", "dev@example.org"))},
	{"identity-domain-of-other-case", "", with(testpki.LeafEmails("dev@EXAMPLE.com"))},

	{"revoked", fault.Revoked, with(testpki.LeafSerial(revokedSerial))},
	{"never-revocable", "", with(testpki.LeafWithoutCRL)}, // the node has its issuer's list

	{"of-another-agent", fault.BindingMismatch, edited(func(b *Block) { b.Subject.ID = "mentatlab.other" })},
	{"of-another-version", fault.BindingMismatch, edited(func(b *Block) { b.Subject.Version = "2.0.0" })},
	{"of-another-repository", fault.BindingMismatch, edited(func(b *Block) { b.Subject.Repository = "registry.example/agents/other" })},
	{"of-no-repository", fault.BindingMismatch, edited(func(b *Block) { b.Subject.Repository = "" })},
	{"repository-malformed", fault.AttestationFormat, edited(func(b *Block) { b.Subject.Repository = "registry.example/agents/echo:1.0.0" })},
}

// lyingSignature signs something else than it should.
func lyingSignature(payload func(body []byte) []byte, opts crypto.SignerOpts) func(testing.TB) []byte {
	return func(tb testing.TB) []byte {
		p := testpki.New(tb)
		b := blockOf(tb, with()(tb))
		unsigned := b
		unsigned.Signature = ""
		body := annotate(tb, wasmAgent(tb), string(marshal(tb, unsigned)))
		b.Signature = signBytes(tb, p.LeafKey, payload(body), opts)
		return annotate(tb, wasmAgent(tb), string(marshal(tb, b)))
	}
}

func dropField(object, key string) string {
	start := strings.Index(object, `"`+key+`":"`)
	end := start + strings.Index(object[start:], `",`) + 2
	return object[:start] + object[end:]
}

// standardNode trusts the root of a testpki without knobs and knows one
// revoked leaf.
func standardNode(tb testing.TB) *Verifier {
	n := newNode(testpki.New(tb))
	n.agent = n.pki.AgentCRL(testpki.Revoking(testpki.New(tb, testpki.LeafSerial(revokedSerial)).Leaf))
	return n.verifier(tb)
}

// judgeRaw goes the way of the gates: read the artifact, then verify.
func judgeRaw(tb testing.TB, v *Verifier, raw []byte) *Verdict {
	tb.Helper()
	a, err := oci.Read(tb.Context(), store, raw)
	if err != nil {
		return &Verdict{Err: err, Reason: fault.ReasonOf(err), Message: err.Error(), Trust: Untrusted}
	}
	return v.Verify(tb.Context(), Input{Reference: ref, Artifact: a})
}

func TestVectors(t *testing.T) {
	v := standardNode(t)
	seen := map[string]bool{}
	for _, vec := range vectors {
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

// The format of a signature must not drift: what was signed once verifies for
// ever. The frozen files hold manifests, roots and lists of one past run.
func TestFrozenVectors(t *testing.T) {
	if *update {
		freeze(t, frozenDir, vectors, testpki.New(t, testpki.LeafSerial(revokedSerial)).Leaf)
	}
	v, _ := frozenNode(t)
	for name, vec := range frozen(t) {
		t.Run(name, func(t *testing.T) { expect(t, judgeRaw(t, v, vec.raw(t)), vec.expect) })
	}
}

var frozenDir = filepath.Join("testdata", "vectors")

// frozenNode is the standard node of the frozen vectors. Fuzzing needs it too:
// its workers are processes of their own, and keys made anew in each would
// disagree.
func frozenNode(tb testing.TB) (*Verifier, *testpki.PKI) {
	tb.Helper()
	n := frozenNodeOf(tb, frozenDir, testPolicy)
	return n.verifier(tb), n.pki
}

func frozenNodeOf(tb testing.TB, dir, policy string) *node {
	tb.Helper()
	wasmAgent(tb)                                      // puts its blobs into the store
	agentOf(tb, "echo", "\x00asm\x01\x00\x00\x00\x00") // and those of the swapped module
	one := func(name string) *x509.Certificate {
		chain, err := ParseChain(name, mustRead(tb, filepath.Join(dir, name)))
		if err != nil {
			tb.Fatal(err)
		}
		return chain[0]
	}
	p := &testpki.PKI{Root: one("root.pem"), Agent: one("agent-ca.pem")}
	return &node{
		pki: p, policy: policy, clock: testpki.Clock,
		root: mustRead(tb, filepath.Join(dir, "root.crl")), agent: mustRead(tb, filepath.Join(dir, "agent.crl")),
	}
}

// frozen reads the frozen vectors. None, too few or one with an unknown reason
// is fatal.
func frozen(tb testing.TB) map[string]vector { return frozenIn(tb, frozenDir, vectors) }

func frozenIn(tb testing.TB, dir string, vectors []vector) map[string]vector {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil || len(files) < len(vectors) {
		tb.Fatalf("%d frozen vectors, want at least %d (run with -update after adding one): %v", len(files), len(vectors), err)
	}
	all := map[string]vector{}
	for _, f := range files {
		head, raw, ok := bytes.Cut(mustRead(tb, f), []byte("\n\n"))
		word, isExpect := strings.CutPrefix(string(head), "expect: ")
		reason := fault.Reason(word)
		if word == "allowed" {
			reason = ""
		} else if fault.RowOf(reason).Reason != reason {
			isExpect = false
		}
		if !ok || !isExpect {
			tb.Fatalf("%s expects the unknown %q", f, head)
		}
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		all[name] = vector{name, reason, func(testing.TB) []byte { return raw }}
	}
	return all
}

func freeze(t *testing.T, dir string, vectors []vector, revoked ...*x509.Certificate) {
	t.Helper()
	p := testpki.New(t)
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write("root.pem", testpki.PEM(p.Root))
	write("agent-ca.pem", testpki.PEM(p.Agent))
	write("root.crl", p.RootCRL())
	write("agent.crl", p.AgentCRL(testpki.Revoking(revoked...)))
	for _, vec := range vectors {
		word := string(vec.expect)
		if word == "" {
			word = "allowed"
		}
		write(vec.name+".txt", append([]byte("expect: "+word+"\n\n"), vec.raw(t)...))
	}
}

func mustRead(tb testing.TB, path string) []byte {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func TestVerdictsFollowTheClock(t *testing.T) {
	p := testpki.New(t)
	a := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	for _, c := range []struct {
		name string
		at   time.Time
		want fault.Reason
	}{
		{"now", testpki.Now, ""},
		{"list in grace", testpki.Now.Add(30 * time.Hour), ""},
		{"list out of date", testpki.Now.Add(48 * time.Hour), fault.RevocationUnknown},
		{"leaf expired", testpki.Now.AddDate(1, 0, 0), fault.OutsideValidity},
		{"before the leaf", testpki.Now.AddDate(0, -2, 0), fault.OutsideValidity},
		{"before the signature", testpki.Now.Add(-2 * time.Hour), fault.OutsideValidity},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(p)
			n.clock = func() time.Time { return c.at }
			expect(t, n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: a}), c.want)
		})
	}
}
