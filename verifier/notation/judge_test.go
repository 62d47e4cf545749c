package notation_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	_ "github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

const payloadType = "application/vnd.cncf.notary.payload.v1+json"

// blobs is a fetcher in memory.
type blobs map[digest.Digest][]byte

func (b blobs) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	data, ok := b[d.Digest]
	if !ok {
		return nil, fault.New(fault.NotFound, string(d.Digest), "is not there")
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (b blobs) add(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	b[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	out, err := canonical.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// agent is an unsigned WASM agent.
func agent(tb testing.TB) *oci.Artifact {
	tb.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.echo\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"))
	if err != nil {
		tb.Fatal(err)
	}
	text, err := m.Canonical()
	if err != nil {
		tb.Fatal(err)
	}
	store := blobs{}
	return read(tb, store, marshal(tb, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: store.add(ocispec.MediaTypeImageConfig,
			[]byte(`{"architecture":"wasm","config":{"Entrypoint":["/agent.wasm"]},"os":"wasip1","rootfs":{"diff_ids":[],"type":"layers"}}`)),
		Layers:      []ocispec.Descriptor{store.add(oci.MediaTypeAgentManifest, text), store.add(oci.MediaTypeWASM, []byte("\x00asm\x01\x00\x00\x00"))},
		Annotations: map[string]string{oci.AnnotationAgentID: "mentatlab.echo", ocispec.AnnotationVersion: "1.0.0"},
	}))
}

// image is an ordinary container image.
func image(tb testing.TB) *oci.Artifact {
	tb.Helper()
	store, layer := blobs{}, digest.FromString("layer")
	return read(tb, store, marshal(tb, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: store.add(ocispec.MediaTypeImageConfig,
			[]byte(`{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["`+string(layer)+`"],"type":"layers"}}`)),
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layer, Size: 5}},
	}))
}

func read(tb testing.TB, f oci.Fetcher, raw []byte) *oci.Artifact {
	tb.Helper()
	a, err := oci.Read(tb.Context(), f, raw)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

const judgePolicy = `version: 1
scopes:
  - name: agents
    match: ["registry.example/agents/**"]
    stores: [agents]
    identities: ["email:dev@example.com"]
    unsigned_containers: deny
    binding: none
    notation: accept
outside: {ordinary_images: deny}
`

// judges is a node whose policy accepts Notary Project signatures.
type judges struct {
	pki    *testpki.PKI
	policy string
	revoke []*x509.Certificate
	stamps []*x509.Certificate
	clock  func() time.Time
	config func(*verifier.Config)
}

func (j judges) verifier(tb testing.TB) *verifier.Verifier {
	tb.Helper()
	if j.policy == "" {
		j.policy = judgePolicy
	}
	policy, err := verifier.ParsePolicy("policy.yaml", []byte(j.policy))
	if err != nil {
		tb.Fatal(err)
	}
	stores := map[string]*verifier.Store{}
	put := func(name string, roots ...*x509.Certificate) {
		if stores[name], err = verifier.NewStore(name, roots...); err != nil {
			tb.Fatal(err)
		}
	}
	put("agents", j.pki.Root)
	if j.stamps != nil {
		put("tsa", j.stamps...)
	}
	var lists verifier.Indexes
	for _, l := range []struct {
		der    []byte
		issuer *x509.Certificate
	}{{j.pki.RootCRL(), j.pki.Root}, {j.pki.AgentCRL(testpki.Revoking(j.revoke...)), j.pki.Agent}} {
		ix, err := verifier.CompileCRL(l.der, l.issuer, verifier.CRLOrigin{}, testpki.Now)
		if err != nil {
			tb.Fatal(err)
		}
		lists = append(lists, ix)
	}
	c := verifier.Config{Policy: policy, Stores: stores, Revocation: lists, Stamps: timestamp.Reader{}, Envelopes: notation.Reader{}, Clock: testpki.Clock}
	if j.clock != nil {
		c.Clock = j.clock
	}
	if j.config != nil {
		j.config(&c)
	}
	v, err := verifier.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// order is a request to sign the artifact, as notation makes it.
func order(tb testing.TB, p *testpki.PKI, target ocispec.Descriptor) *signature.SignRequest {
	tb.Helper()
	signer, err := signature.NewLocalSigner(append(p.Chain(), p.Root), p.LeafKey.(crypto.PrivateKey))
	if err != nil {
		tb.Fatal(err)
	}
	return &signature.SignRequest{
		Payload: signature.Payload{ContentType: payloadType, Content: marshal(tb, map[string]any{"targetArtifact": target})},
		Signer:  signer, SigningTime: testpki.Now.Add(-time.Hour), SigningScheme: signature.SigningSchemeX509,
	}
}

func signed(tb testing.TB, mediaType string, o *signature.SignRequest) verifier.Envelope {
	tb.Helper()
	e, err := signature.NewEnvelope(mediaType)
	if err != nil {
		tb.Fatal(err)
	}
	data, err := e.Sign(o)
	if err != nil {
		tb.Fatal(err)
	}
	return verifier.Envelope{MediaType: mediaType, Data: data}
}

// good is what notation makes of an artifact.
func good(tb testing.TB, p *testpki.PKI, a *oci.Artifact, edits ...func(*signature.SignRequest)) verifier.Envelope {
	tb.Helper()
	o := order(tb, p, verifier.Target(a))
	for _, edit := range edits {
		edit(o)
	}
	return signed(tb, notation.MediaType, o)
}

// rechained has other certificates in it, which are not signed: those of a PKI with
// the same keys.
func rechained(tb testing.TB, e verifier.Envelope, chain ...*x509.Certificate) verifier.Envelope {
	tb.Helper()
	var m map[string]any
	if err := json.Unmarshal(e.Data, &m); err != nil {
		tb.Fatal(err)
	}
	var list [][]byte
	for _, c := range chain {
		list = append(list, c.Raw)
	}
	m["header"].(map[string]any)["x5c"] = list
	data, err := json.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return verifier.Envelope{MediaType: e.MediaType, Data: data}
}

const agentRef = "registry.example/agents/echo:1.0.0"

func judge(tb testing.TB, v *verifier.Verifier, a *oci.Artifact, envelopes ...verifier.Envelope) *verifier.Verdict {
	tb.Helper()
	var trace verifier.Trace
	vd := v.Verify(tb.Context(), verifier.Input{Reference: agentRef, Artifact: a, Envelopes: envelopes, Trace: &trace})
	plain := v.Verify(tb.Context(), verifier.Input{Reference: agentRef, Artifact: a, Envelopes: envelopes})
	last := trace.Steps[len(trace.Steps)-1]
	if vd.Allowed != plain.Allowed || vd.Reason != plain.Reason || vd.Trust != plain.Trust {
		tb.Errorf("explained it is %q, else %q", vd.Line(), plain.Line())
	}
	if (last.Outcome == verifier.Passed) != vd.Allowed {
		tb.Errorf("the explanation ends with %s, the verdict is %q", last.Outcome, vd.Line())
	}
	return vd
}

// expect holds a verdict to a reason; "" is allowed.
func expect(tb testing.TB, vd *verifier.Verdict, want fault.Reason) {
	tb.Helper()
	if vd.Allowed != (want == "") || vd.Reason != want {
		tb.Fatalf("verdict %q (%s), want reason %q", vd.Line(), vd.Reason, want)
	}
	if !vd.Allowed && vd.Trust != verifier.Untrusted {
		tb.Errorf("refused and %s", vd.Trust)
	}
}

func TestANotarySignatureDoesWhereTheScopeAcceptsIt(t *testing.T) {
	for name, knobs := range map[string][]testpki.Knob{
		"RSA":         nil,
		"RSA 3072":    {testpki.LeafKey(testpki.RSA(t, "leaf", 3072))},
		"ECDSA P-256": {testpki.LeafKey(testpki.EC(t, "leaf", elliptic.P256()))},
		"ECDSA P-384": {testpki.LeafKey(testpki.EC(t, "leaf", elliptic.P384()))},
	} {
		for _, mediaType := range []string{notation.MediaType, notation.MediaTypeCOSE} {
			t.Run(name+" "+mediaType, func(t *testing.T) {
				p := testpki.New(t, knobs...)
				v := judges{pki: p}.verifier(t)
				for _, a := range []*oci.Artifact{agent(t), image(t)} {
					e := signed(t, mediaType, order(t, p, verifier.Target(a)))
					vd := judge(t, v, a, e)
					expect(t, vd, "")
					if vd.Trust != verifier.Signed || vd.Signature != verifier.NotationSignature || vd.Signer.Email != testpki.Email || vd.SignedDigest != a.Digest {
						t.Errorf("%+v", vd)
					}
					if !vd.Rests.Until.After(testpki.Now) {
						t.Errorf("it rests until %s", vd.Rests.Until)
					}
					expect(t, judge(t, v, a), fault.Unsigned)
				}
			})
		}
	}
	// And what our own tool makes.
	p, a := testpki.New(t), agent(t)
	data, err := notation.Sign(notation.Request{Target: verifier.Target(a), Key: p.LeafKey, Chain: append(p.Chain(), p.Root), Time: testpki.Now.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, judge(t, judges{pki: p}.verifier(t), a, verifier.Envelope{MediaType: notation.MediaType, Data: data}), "")
}

func TestWithoutTheScopesWordANotarySignatureIsNothing(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	for name, policy := range map[string]string{
		"not said": strings.Replace(judgePolicy, "    notation: accept\n", "", 1),
		"refuse":   strings.Replace(judgePolicy, "notation: accept", "notation: refuse", 1),
	} {
		v := judges{pki: p, policy: policy}.verifier(t)
		if v.AsksEnvelopes(verifier.Input{Reference: agentRef, Artifact: a}) {
			t.Errorf("%s: it asks for signatures that do not count", name)
		}
		vd := judge(t, v, a, good(t, p, a))
		if expect(t, vd, fault.Unsigned); vd.Signature != "" {
			t.Errorf("%s: %+v", name, vd)
		}
	}
	// A program that cannot read them does not let them by either.
	deaf := judges{pki: p, config: func(c *verifier.Config) { c.Envelopes = nil }}.verifier(t)
	expect(t, judge(t, deaf, a, good(t, p, a)), fault.Unsupported)
	v := judges{pki: p}.verifier(t)
	if !v.AsksEnvelopes(verifier.Input{Reference: agentRef, Artifact: a}) || v.AsksEnvelopes(verifier.Input{Reference: "elsewhere.example/x:1", Artifact: a}) {
		t.Error("it does not ask where the scope accepts, or asks elsewhere")
	}
}

func TestAScopeThatAcceptsNotarySignaturesSaysThatNothingIsBound(t *testing.T) {
	for _, binding := range []string{"", "    binding: repository\n", "    binding: exact\n"} {
		_, err := verifier.ParsePolicy("policy.yaml", []byte(strings.Replace(judgePolicy, "    binding: none\n", binding, 1)))
		if fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), "scopes[0].notation: accept needs binding: none") || !strings.Contains(err.Error(), "neither the repository nor the version") {
			t.Errorf("%q: %v", binding, err)
		}
	}
	if _, err := verifier.ParsePolicy("policy.yaml", []byte(strings.Replace(judgePolicy, "accept", "allow", 1))); fault.ReasonOf(err) != fault.PolicyInvalid {
		t.Error(err)
	}
	two := strings.Replace(judgePolicy, "    binding: none\n", "    binding: none\n    required_signers: [{at_least: 1, of: [\"email:dev@example.com\"]}]\n", 1)
	if _, err := verifier.ParsePolicy("policy.yaml", []byte(two)); fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), "no place beside required_signers") {
		t.Error(err)
	}
}

func TestAnAttestationIsJudgedAloneWhateverElseIsThere(t *testing.T) {
	p, bare := testpki.New(t), agent(t)
	v := judges{pki: p}.verifier(t)
	attested, _, err := verifier.Sign(verifier.SignRequest{
		Raw: bare.Raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now.Add(-time.Hour),
		Subject: verifier.Subject{ID: "mentatlab.echo", Version: "1.0.0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	store := blobs{}
	store.add("", []byte(`{"architecture":"wasm","config":{"Entrypoint":["/agent.wasm"]},"os":"wasip1","rootfs":{"diff_ids":[],"type":"layers"}}`))
	text, err := bare.Agent.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	store.add("", text)
	whole := read(t, store, attested)
	vd := judge(t, v, whole, verifier.Envelope{MediaType: "rubbish"})
	if expect(t, vd, ""); vd.Signature != "" || v.AsksEnvelopes(verifier.Input{Reference: agentRef, Artifact: whole}) {
		t.Errorf("%+v", vd)
	}
	broken := read(t, store, bytes.Replace(attested, []byte(`09:30:00Z`), []byte(`09:30:01Z`), 1))
	expect(t, judge(t, v, broken, good(t, p, broken)), fault.SignatureInvalid)
}

// hostile are envelopes of the standard agent that must not count, each by itself.
func hostile(t testing.TB, p *testpki.PKI, a *oci.Artifact) map[string]struct {
	verifier.Envelope
	want fault.Reason
} {
	type row = struct {
		verifier.Envelope
		want fault.Reason
	}
	whole := good(t, p, a)
	target := verifier.Target(a)
	over := func(edit func(*ocispec.Descriptor)) verifier.Envelope {
		d := target
		edit(&d)
		return signed(t, notation.MediaType, order(t, p, d))
	}
	with := func(edit func(*signature.SignRequest)) verifier.Envelope { return good(t, p, a, edit) }
	payload := func(text string) verifier.Envelope {
		return with(func(o *signature.SignRequest) { o.Payload.Content = []byte(text) })
	}
	by := func(knobs ...testpki.Knob) verifier.Envelope {
		o := testpki.New(t, knobs...)
		return rechained(t, whole, o.Leaf, o.Agent, o.Root)
	}
	text := func(change func(string) string) verifier.Envelope {
		out := change(string(whole.Data))
		if out == string(whole.Data) {
			t.Fatal("it changes nothing")
		}
		return verifier.Envelope{MediaType: whole.MediaType, Data: []byte(out)}
	}
	other := testpki.New(t, testpki.LeafSerial(9))
	cose := func(edit func(*signature.SignRequest)) verifier.Envelope {
		o := order(t, p, target)
		edit(o)
		return signed(t, notation.MediaTypeCOSE, o)
	}
	broken := cose(func(*signature.SignRequest) {})
	broken.Data = bytes.Clone(broken.Data)
	broken.Data[bytes.Index(broken.Data, []byte("targetArtifact"))] ^= 1
	// notation-core-go takes a signer that issued itself.
	template := *p.Leaf
	template.Issuer, template.RawSubject = template.Subject, nil
	alone := testpki.Issue(t, &template, &template, p.LeafKey.Public(), p.LeafKey)
	return map[string]row{
		"COSE over another digest": {cose(func(o *signature.SignRequest) {
			o.Payload.Content = bytes.ReplaceAll(o.Payload.Content, []byte(a.Digest), []byte(digest.FromString("x")))
		}), fault.SignatureInvalid},
		"COSE of another payload type": {cose(func(o *signature.SignRequest) { o.Payload.ContentType = "application/json" }), fault.SignatureInvalid},
		"COSE by a signing authority":  {cose(func(o *signature.SignRequest) { o.SigningScheme = signature.SigningSchemeX509SigningAuthority }), fault.Unsupported},
		"COSE with an unknown critical attribute": {cose(func(o *signature.SignRequest) {
			o.ExtendedSignedAttributes = []signature.Attribute{{Key: "io.cncf.notary.verificationPlugin", Critical: true, Value: "mine"}}
		}), fault.Unsupported},
		"COSE that ended":       {cose(func(o *signature.SignRequest) { o.Expiry = testpki.Now.Add(-time.Minute) }), fault.OutsideValidity},
		"COSE that was changed": {broken, fault.SignatureInvalid},
		"COSE cut off":          {verifier.Envelope{MediaType: notation.MediaTypeCOSE, Data: broken.Data[:len(broken.Data)/2]}, fault.AttestationFormat},

		"over another digest":           {over(func(d *ocispec.Descriptor) { d.Digest = digest.FromString("x") }), fault.SignatureInvalid},
		"over another size":             {over(func(d *ocispec.Descriptor) { d.Size++ }), fault.SignatureInvalid},
		"over another media type":       {over(func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageIndex }), fault.SignatureInvalid},
		"over an artifact that is more": {over(func(d *ocispec.Descriptor) { d.URLs = []string{"https://elsewhere.example"} }), fault.AttestationFormat},
		"of another payload type":       {with(func(o *signature.SignRequest) { o.Payload.ContentType = "application/json" }), fault.SignatureInvalid},
		"payload without artifact":      {payload(`{"subject":"me"}`), fault.AttestationFormat},
		"payload of null":               {payload(`{"targetArtifact":null}`), fault.AttestationFormat},
		"expired":                       {with(func(o *signature.SignRequest) { o.Expiry = testpki.Now.Add(-time.Minute) }), fault.OutsideValidity},
		"from the future":               {with(func(o *signature.SignRequest) { o.SigningTime = testpki.Now.Add(time.Hour) }), fault.OutsideValidity},
		"by a signing authority":        {with(func(o *signature.SignRequest) { o.SigningScheme = signature.SigningSchemeX509SigningAuthority }), fault.Unsupported},
		"with an unknown critical attribute": {with(func(o *signature.SignRequest) {
			o.ExtendedSignedAttributes = []signature.Attribute{{Key: "io.cncf.notary.verificationPlugin", Critical: true, Value: "mine"}}
		}), fault.Unsupported},

		"chain without its root": {rechained(t, whole, p.Leaf, p.Agent), fault.ChainUntrusted},
		"chain out of order":     {rechained(t, whole, p.Leaf, p.Root, p.Agent), fault.ChainUntrusted},
		"without certificates":   {rechained(t, whole), fault.AttestationFormat},
		"seven certificates":     {rechained(t, whole, p.Leaf, p.Agent, p.Agent, p.Agent, p.Agent, p.Agent, p.Root), fault.AttestationFormat},
		"self-signed":            {rechained(t, whole, alone), fault.ChainUntrusted},
		"of another root":        {by(testpki.OtherRoot(t)), fault.ChainUntrusted},
		"root of the same name and key": {rechained(t, whole, p.Leaf, p.Agent, testpki.New(t, func(r *testpki.Recipe) {
			r.Root.NotAfter = r.Root.NotAfter.AddDate(1, 0, 0)
		}).Root), fault.ChainUntrusted},
		"for TLS":                 {by(testpki.LeafForTLS), fault.ChainUntrusted},
		"without code signing":    {by(testpki.LeafWithoutUsage), fault.ChainUntrusted},
		"by a CA":                 {by(testpki.LeafIsCA), fault.ChainUntrusted},
		"by an expired signer":    {by(testpki.LeafExpired), fault.OutsideValidity},
		"by one who is not named": {by(testpki.LeafEmails("mallory@example.com")), fault.IdentityUntrusted},
		"by one who is revoked":   {rechained(t, whole, other.Leaf, other.Agent, other.Root), fault.Revoked},
		"by another key":          {by(testpki.LeafKey(testpki.RSA(t, "mallory", 2048))), fault.SignatureInvalid},

		"payload changed": {text(func(s string) string { return strings.Replace(s, `"payload":"`, `"payload":"A`, 1) }), fault.SignatureInvalid},
		"header changed":  {text(func(s string) string { return strings.Replace(s, `"protected":"`, `"protected":"A`, 1) }), fault.SignatureInvalid},
		"without signature": {text(func(s string) string {
			at := strings.Index(s, `"signature":"`) + len(`"signature":"`)
			return s[:at] + s[at+strings.Index(s[at:], `"`):]
		}), fault.SignatureInvalid},
		"key twice":          {text(func(s string) string { return strings.Replace(s, `{"payload"`, `{"payload":"","payload"`, 1) }), fault.AttestationFormat},
		"key of other case":  {text(func(s string) string { return strings.Replace(s, `"header"`, `"Header"`, 1) }), fault.AttestationFormat},
		"trailing":           {text(func(s string) string { return s + s }), fault.AttestationFormat},
		"cut off":            {text(func(s string) string { return s[:len(s)/2] }), fault.AttestationFormat},
		"oversized":          {text(func(s string) string { return s + strings.Repeat(" ", limits.EnvelopeBytes) }), fault.AttestationFormat},
		"rubbish":            {verifier.Envelope{MediaType: notation.MediaType, Data: []byte("yes, trust me")}, fault.AttestationFormat},
		"empty":              {verifier.Envelope{MediaType: notation.MediaType}, fault.AttestationFormat},
		"COSE rubbish":       {verifier.Envelope{MediaType: notation.MediaTypeCOSE, Data: []byte("yes, trust me")}, fault.AttestationFormat},
		"JWS called COSE":    {verifier.Envelope{MediaType: notation.MediaTypeCOSE, Data: whole.Data}, fault.AttestationFormat},
		"of an unknown type": {verifier.Envelope{MediaType: "application/json", Data: whole.Data}, fault.AttestationFormat},
		"out of reach":       {verifier.Envelope{Err: fault.New(fault.Unavailable, "registry", "does not answer")}, fault.Unavailable},
	}
}

func TestHostileEnvelopesDoNotCount(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	v := judges{pki: p, revoke: []*x509.Certificate{testpki.New(t, testpki.LeafSerial(9)).Leaf}}.verifier(t)
	whole := good(t, p, a)
	for name, c := range hostile(t, p, a) {
		t.Run(name, func(t *testing.T) {
			vd := judge(t, v, a, c.Envelope)
			expect(t, vd, c.want)
			if !strings.Contains(vd.Message, "none of its Notary Project signatures counts (1 looked at; number 1 came furthest)") {
				t.Errorf("%q", vd.Message)
			}
			// It does not get in the way of a good one either, nor help it.
			for _, all := range [][]verifier.Envelope{{c.Envelope, whole}, {whole, c.Envelope}} {
				if vd := judge(t, v, a, all...); !vd.Allowed || len(vd.GoodEnvelopes) != 1 || vd.GoodEnvelopes[0] != whole.Digest() || len(vd.Overlooked) > 0 {
					t.Errorf("beside a good one: %q, good are %q", vd.Line(), vd.GoodEnvelopes)
				}
			}
		})
	}
}

func TestTheRefusalNamesWhatCameFurthest(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	v := judges{pki: p}.verifier(t)
	rubbish := verifier.Envelope{MediaType: notation.MediaType, Data: []byte("{}")}
	mallory := testpki.New(t, testpki.LeafEmails("mallory@example.com"))
	stranger := testpki.New(t, testpki.OtherRoot(t))
	vd := judge(t, v, a, rubbish, good(t, stranger, a), good(t, mallory, a), rubbish)
	expect(t, vd, fault.IdentityUntrusted)
	if !strings.Contains(vd.Message, "(4 looked at; number 3 came furthest)") {
		t.Error(vd.Message)
	}
	// Whoever can attach cannot make a gate look at any number.
	many := make([]verifier.Envelope, limits.Envelopes)
	vd = judge(t, v, a, append(many, good(t, p, a))...)
	expect(t, vd, fault.AttestationFormat)
	if !strings.Contains(vd.Message, "(8 of more looked at") {
		t.Error(vd.Message)
	}
}

// What is withdrawn is withdrawn whoever signed it, and the levels and lists of trust
// hold for these signatures as for attestations.
func TestTheRulesOfAttestationsHoldForEnvelopes(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	e := good(t, p, a)
	mallory := good(t, testpki.New(t, testpki.LeafEmails("mallory@example.com")), a)
	ended := good(t, p, a, func(o *signature.SignRequest) { o.Expiry = testpki.Now.Add(-time.Minute) })
	for name, c := range map[string]struct {
		policy string
		e      verifier.Envelope
		clock  time.Time
		want   fault.Reason
		trust  verifier.TrustLevel
	}{
		"minimum version":      {judgePolicy + "minimum_versions: {mentatlab.echo: 1.1.0}\n", e, testpki.Now, fault.VersionTooLow, verifier.Untrusted},
		"community":            {judgePolicy + "trust: {community: [\"email:dev@example.com\"]}\n", e, testpki.Now, "", verifier.Community},
		"publisher":            {judgePolicy + "trust: {publishers: [\"email:dev@example.com\"]}\n", e, testpki.Now, "", verifier.Verified},
		"list too old":         {judgePolicy, e, testpki.Now.Add(48 * time.Hour), fault.RevocationUnknown, verifier.Untrusted},
		"certificate ended":    {judgePolicy, e, testpki.Now.AddDate(2, 0, 0), fault.OutsideValidity, verifier.Untrusted},
		"stamp required":       {strings.Replace(judgePolicy, "    binding", "    timestamp_stores: [tsa]\n    timestamp: required\n    binding", 1), e, testpki.Now, fault.PolicyDenied, verifier.Untrusted},
		"expiry at permissive": {judgePolicy + "", ended, testpki.Now, fault.OutsideValidity, verifier.Untrusted},
		"permissive":           {strings.Replace(judgePolicy, "    binding", "    level: permissive\n    binding", 1), ended, testpki.Now, "", verifier.Signed},
		"not even permissive":  {strings.Replace(judgePolicy, "    binding", "    level: permissive\n    binding", 1), mallory, testpki.Now, fault.IdentityUntrusted, verifier.Untrusted},
		"audit":                {strings.Replace(judgePolicy, "    binding", "    level: audit\n    binding", 1), mallory, testpki.Now, "", verifier.Untrusted},
		"unsigned agents":      {strings.Replace(judgePolicy, "    binding", "    unsigned_agents: allow\n    binding", 1), mallory, testpki.Now, fault.IdentityUntrusted, verifier.Untrusted},
	} {
		t.Run(name, func(t *testing.T) {
			v := judges{pki: p, policy: c.policy, clock: func() time.Time { return c.clock }, stamps: []*x509.Certificate{testpki.NewTSA(t, "signatures", testpki.Now).Root}}.verifier(t)
			vd := judge(t, v, a, c.e)
			if expect(t, vd, c.want); vd.Trust != c.trust {
				t.Errorf("trust is %s, want %s", vd.Trust, c.trust)
			}
			if len(vd.Overlooked) > 0 && vd.Trust == verifier.Verified {
				t.Error("something was overlooked, and it is verified")
			}
			// A better one beside it decides.
			if c.want == "" && len(vd.Overlooked) > 0 {
				if vd := judge(t, v, a, c.e, e); len(vd.Overlooked) > 0 || vd.Trust != verifier.Signed {
					t.Errorf("beside a good one: %q", vd.Line())
				}
			}
		})
	}
}

// stamped has a time stamp token beside the signature.
func stamped(tb testing.TB, e verifier.Envelope, token func(signature []byte) []byte) verifier.Envelope {
	tb.Helper()
	var m map[string]any
	if err := json.Unmarshal(e.Data, &m); err != nil {
		tb.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(m["signature"].(string))
	if err != nil {
		tb.Fatal(err)
	}
	m["header"].(map[string]any)["io.cncf.notary.timestampSignature"] = token(raw)
	data, err := json.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return verifier.Envelope{MediaType: e.MediaType, Data: data}
}

func TestATimeStampInAnEnvelopeCountsWhereTheScopeNamesItsAuthority(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	tsa := testpki.NewTSA(t, "stamp", testpki.Now)
	list, err := verifier.CompileCRL(tsa.CRL(), tsa.Root, verifier.CRLOrigin{}, testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	// The signer's certificate ended an hour ago; what was signed before was stamped.
	ended := testpki.New(t, func(r *testpki.Recipe) { r.Leaf.NotAfter = testpki.Now.Add(-time.Hour) })
	bare := good(t, ended, a, func(o *signature.SignRequest) { o.SigningTime = testpki.Now.Add(-3 * time.Hour) })
	at := func(hours int) verifier.Envelope {
		return stamped(t, bare, func(sig []byte) []byte {
			return tsa.Token(sig, testpki.Now.Add(time.Duration(hours)*time.Hour))
		})
	}
	foreign := stamped(t, bare, func([]byte) []byte { return tsa.Token([]byte("another signature"), testpki.Now.Add(-2*time.Hour)) })
	rubbish := stamped(t, good(t, p, a), func([]byte) []byte { return []byte("rubbish") })
	keeps := testpki.KeepsExpired(testpki.Now.AddDate(-1, 0, 0))
	for name, c := range map[string]struct {
		e      verifier.Envelope
		stores bool
		want   fault.Reason
	}{
		"no token":                     {bare, true, fault.OutsideValidity},
		"stamped in time":              {at(-2), true, ""},
		"stamped too late":             {at(0), true, fault.OutsideValidity},
		"of another signature":         {foreign, true, fault.SignatureInvalid},
		"nobody's authority":           {at(-2), false, fault.OutsideValidity},
		"rubbish":                      {rubbish, true, fault.AttestationFormat},
		"rubbish that nobody asks for": {rubbish, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := judges{pki: p, policy: judgePolicy, config: func(c *verifier.Config) {
				agents, err := verifier.CompileCRL(p.AgentCRL(keeps), p.Agent, verifier.CRLOrigin{}, testpki.Now)
				if err != nil {
					t.Fatal(err)
				}
				c.Revocation = append(c.Revocation.(verifier.Indexes)[:1], agents, list)
			}}
			if c.stores {
				j.policy, j.stamps = strings.Replace(judgePolicy, "    binding", "    timestamp_stores: [tsa]\n    binding", 1), []*x509.Certificate{tsa.Root}
			}
			vd := judge(t, j.verifier(t), a, c.e)
			expect(t, vd, c.want)
			if c.want == "" && c.stores == vd.Stamped.IsZero() {
				t.Errorf("stamped at %s", vd.Stamped)
			}
		})
	}
}

func TestAReleaseListDeniesTheManifestThatANotarySignatureIsOver(t *testing.T) {
	p := testpki.New(t)
	for _, a := range []*oci.Artifact{agent(t), image(t)} {
		for want, denied := range map[fault.Reason][]digest.Digest{
			fault.Withdrawn: {a.Digest},
			"":              {digest.FromString("another manifest")},
		} {
			dir := t.TempDir()
			list, err := verifier.SignReleases(verifier.Releases{Number: 1, NextUpdate: "2026-02-01T00:00:00Z", DeniedPayloads: denied}, p.LeafKey, p.Chain(), testpki.Now)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "list"), list, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			v := judges{
				pki:    p,
				policy: judgePolicy + "releases:\n  - {name: ours, file: " + filepath.Join(dir, "list") + ", stores: [agents], identities: [\"email:dev@example.com\"]}\n",
				config: func(c *verifier.Config) { c.State = dir },
			}.verifier(t)
			expect(t, judge(t, v, a, good(t, p, a)), want)
		}
	}
}

func TestAResponderIsAskedAboutTheSignersOfEnvelopes(t *testing.T) {
	p, a, dir := testpki.New(t), agent(t), t.TempDir()
	for name, data := range map[string][]byte{
		"trust/agents/root.pem": testpki.PEM(p.Root), "root.crl": p.RootCRL(), "policy.yaml": []byte(judgePolicy + `revocation:
  crls: [{issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}]
  ocsp: [{issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", url: "http://ocsp.example"}]
`),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	v, err := verifier.Open(nodeconfig.Verify{Policy: filepath.Join(dir, "policy.yaml"), Trust: filepath.Join(dir, "trust"), State: filepath.Join(dir, "state")},
		testpki.Clock, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil {
		t.Fatal(err)
	}
	vd := judge(t, v, a, verifier.Envelope{}, good(t, p, a))
	expect(t, vd, fault.RevocationUnknown)
	if len(vd.Questions) != 1 || !vd.Questions[0].Certificate.Equal(p.Leaf) {
		t.Errorf("%d questions", len(vd.Questions))
	}
}

func TestAnExplanationShowsEveryEnvelope(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	v := judges{pki: p}.verifier(t)
	mallory := good(t, testpki.New(t, testpki.LeafEmails("mallory@example.com")), a)
	for name, c := range map[string]struct {
		all  []verifier.Envelope
		want map[string]verifier.Outcome
	}{
		"one counts": {[]verifier.Envelope{mallory, good(t, p, a)}, map[string]verifier.Outcome{
			verifier.StepAttestation: verifier.NotAsked, verifier.StepSignature: verifier.Passed, verifier.StepNotation: verifier.Passed,
			verifier.StepIdentity: verifier.Passed, verifier.StepRevocation: verifier.Passed, verifier.StepOutcome: verifier.Passed,
		}},
		"none counts": {[]verifier.Envelope{mallory, mallory}, map[string]verifier.Outcome{
			verifier.StepAttestation: verifier.NotAsked, verifier.StepScope: verifier.Passed, verifier.StepNotation: verifier.Failed,
			verifier.StepIdentity: verifier.NotReached, verifier.StepOutcome: verifier.Failed,
		}},
		"none is there": {nil, map[string]verifier.Outcome{verifier.StepAttestation: verifier.Failed, verifier.StepNotation: verifier.NotReached}},
	} {
		var trace verifier.Trace
		v.Verify(t.Context(), verifier.Input{Reference: agentRef, Artifact: a, Envelopes: c.all, Trace: &trace})
		for _, s := range trace.Steps {
			if want, ok := c.want[s.Name]; ok && s.Outcome != want {
				t.Errorf("%s: the step %s is %s, want %s", name, s.Name, s.Outcome, want)
			}
			if s.Name == verifier.StepNotation && c.all != nil && (len(s.Parts) != 2 || s.Parts[0].Outcome != verifier.Failed || s.Parts[0].Reason != fault.IdentityUntrusted || len(s.Parts[0].Parts) == 0) {
				t.Errorf("%s: %+v", name, s)
			}
		}
	}
}

func TestAForecastKnowsWhenAnEnvelopeEnds(t *testing.T) {
	p, a := testpki.New(t), agent(t)
	ends := testpki.Now.Add(time.Hour)
	e := good(t, p, a, func(o *signature.SignRequest) { o.Expiry = ends })
	changes := judges{pki: p}.verifier(t).Forecast(t.Context(), verifier.Input{Reference: agentRef, Artifact: a, Envelopes: []verifier.Envelope{e}}, testpki.Now.Add(2*time.Hour))
	if len(changes) != 2 || !changes[0].Allowed || changes[1].Reason != fault.OutsideValidity || changes[1].At.Sub(ends) > time.Second || changes[1].At.Before(ends) {
		t.Errorf("%+v", changes)
	}
}
