package verifier

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
)

const (
	repository = "registry.example/agents/echo"
	ref        = repository + ":1.0.0"
)

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

// store holds the blobs of all test images: they are the same everywhere.
var store = blobs{}

func wasmAgent(tb testing.TB) []byte { return agentOf(tb, "echo", "\x00asm\x01\x00\x00\x00") }

// agentOf is the unsigned manifest of a WASM agent.
func agentOf(tb testing.TB, id, module string) []byte {
	tb.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab."+id+"\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"))
	if err != nil {
		tb.Fatal(err)
	}
	agent, err := m.Canonical()
	if err != nil {
		tb.Fatal(err)
	}
	config := []byte(`{"architecture":"wasm","config":{"Entrypoint":["/agent.wasm"]},"os":"wasip1","rootfs":{"diff_ids":[],"type":"layers"}}`)
	return marshal(tb, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    store.add(ocispec.MediaTypeImageConfig, config),
		Layers: []ocispec.Descriptor{
			store.add(oci.MediaTypeAgentManifest, agent),
			store.add(oci.MediaTypeWASM, []byte(module)),
		},
		Annotations: map[string]string{
			oci.AnnotationAgentID:             "mentatlab." + id,
			ocispec.AnnotationVersion:         "1.0.0",
			"org.opencontainers.image.title":  "<echo> & “friends”",
			"org.opencontainers.image.vendor": "Žofie",
		},
	})
}

// container is the manifest of an ordinary image.
func container(tb testing.TB) []byte {
	tb.Helper()
	layer := digest.FromString("layer")
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["` + string(layer) + `"],"type":"layers"}}`)
	return marshal(tb, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    store.add(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layer, Size: 5}},
	})
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	out, err := canonical.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func read(tb testing.TB, raw []byte) *oci.Artifact {
	tb.Helper()
	a, err := oci.Read(tb.Context(), store, raw)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func subject() Subject {
	return Subject{ID: "mentatlab.echo", Version: "1.0.0", Repository: repository}
}

// mustSign signs as a careless tool would: without any check.
func mustSign(tb testing.TB, raw []byte, key crypto.Signer, chain []*x509.Certificate, edits ...func(*Block)) []byte {
	tb.Helper()
	b := Block{Version: BlockVersion, Timestamp: testpki.Now.Add(-time.Hour).Format(timeLayout), Subject: subject()}
	for _, edit := range edits {
		edit(&b)
	}
	signed, _, err := sign(raw, key, chain, b)
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

// forge signs b as it stands, lies included.
func forge(tb testing.TB, raw []byte, key crypto.Signer, b Block) []byte {
	tb.Helper()
	payload, err := signedBytes(raw, b)
	if err != nil {
		tb.Fatal(err)
	}
	b.Signature = signBytes(tb, key, payload, crypto.SHA256)
	return annotate(tb, raw, string(marshal(tb, b)))
}

// annotate puts any text where the attestation belongs.
func annotate(tb testing.TB, raw []byte, text string) []byte {
	tb.Helper()
	out, err := withAnnotation(raw, []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

const testPolicy = `version: 1
scopes:
  - name: agents
    match: ["registry.example/agents/**"]
    stores: [agents]
    identities: ["email:dev@Example.com"]
    unsigned_containers: deny
  - name: mixed
    match: ["registry.example/mixed/**"]
    stores: [agents]
    identities: [any]
    unsigned_containers: allow
    unsigned_agents: allow
    binding: none
  - name: exact
    match: ["registry.example/agents/exact"]
    stores: [agents]
    identities: [any]
    unsigned_containers: deny
    binding: exact
outside: {ordinary_images: allow}
trust: {community: ["email:friend@example.com"], publishers: ["email:publisher@example.com"]}
revocation: {grace: 24h}
`

func policy(tb testing.TB, text string) *Policy {
	tb.Helper()
	p, err := ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// node is a verifier with the test policy that trusts p's root.
type node struct {
	pki    *testpki.PKI
	policy string
	root   []byte // CRL; nil for none
	agent  []byte // CRL; nil for none
	state  string // for release lists; "" for none
	clock  func() time.Time
}

func newNode(p *testpki.PKI) *node {
	return &node{pki: p, policy: testPolicy, root: p.RootCRL(), agent: p.AgentCRL(), clock: testpki.Clock}
}

func (n *node) verifier(tb testing.TB) *Verifier {
	tb.Helper()
	agents, err := NewStore("agents", n.pki.Root)
	if err != nil {
		tb.Fatal(err)
	}
	var lists Indexes
	for _, l := range []struct {
		der    []byte
		issuer *x509.Certificate
	}{{n.root, n.pki.Root}, {n.agent, n.pki.Agent}} {
		if l.der == nil {
			continue
		}
		ix, err := CompileCRL(l.der, l.issuer, CRLOrigin{}, testpki.Now)
		if err != nil {
			tb.Fatal(err)
		}
		lists = append(lists, ix)
	}
	v, err := New(Config{Policy: policy(tb, n.policy), Stores: map[string]*Store{"agents": agents}, Revocation: lists, State: n.state, Clock: n.clock})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// expect holds a verdict to a reason; "" is allowed.
func expect(tb testing.TB, vd *Verdict, want fault.Reason) {
	tb.Helper()
	if vd.Allowed != (want == "") || vd.Reason != want || fault.ReasonOf(vd.Err) != want {
		tb.Fatalf("verdict %q (%s), want reason %q", vd.Line(), vd.Reason, want)
	}
	if strings.ContainsAny(vd.Line(), "\n\r") {
		tb.Errorf("verdict takes more than a line: %q", vd.Line())
	}
	if vd.Allowed != (vd.Err == nil) || !vd.Allowed && vd.Trust != Untrusted {
		tb.Errorf("verdict contradicts itself: %+v", vd)
	}
}
