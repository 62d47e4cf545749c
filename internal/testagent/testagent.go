package testagent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// Reference is the name that the agent is signed for.
const (
	repository = "registry.example/agents/echo"
	Reference  = repository + ":1.0.0"
)

type blobs map[digest.Digest][]byte

func (b blobs) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[d.Digest])), nil
}

func (b blobs) add(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	b[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// image makes the agent's unsigned manifest and its blobs.
func image(tb testing.TB) ([]byte, blobs) {
	tb.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.echo\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"))
	if err != nil {
		tb.Fatal(err)
	}
	agent, err := m.Canonical()
	if err != nil {
		tb.Fatal(err)
	}
	store := blobs{}
	raw, err := canonical.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    store.add(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"wasm","config":{"Entrypoint":["/agent.wasm"]},"os":"wasip1","rootfs":{"diff_ids":[],"type":"layers"}}`)),
		Layers: []ocispec.Descriptor{
			store.add(oci.MediaTypeAgentManifest, agent),
			store.add(oci.MediaTypeWASM, []byte("\x00asm\x01\x00\x00\x00")),
		},
		Annotations: map[string]string{oci.AnnotationAgentID: "mentatlab.echo", ocispec.AnnotationVersion: "1.0.0"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return raw, store
}

// Sign signs the agent at a time and returns its manifest and the signature.
func Sign(tb testing.TB, p *testpki.PKI, at time.Time) (raw, signature []byte) {
	tb.Helper()
	unsigned, _ := image(tb)
	raw, block, err := verifier.Sign(verifier.SignRequest{
		Raw: unsigned, Key: p.LeafKey, Chain: p.Chain(), Time: at,
		Subject: verifier.Subject{ID: "mentatlab.echo", Version: "1.0.0", Repository: repository},
	})
	if err != nil {
		tb.Fatal(err)
	}
	var b verifier.Block
	if err := json.Unmarshal(block, &b); err != nil {
		tb.Fatal(err)
	}
	signature, err = base64.StdEncoding.DecodeString(b.Signature)
	if err != nil {
		tb.Fatal(err)
	}
	return raw, signature
}

// Read reads the agent's manifest, as a gate does.
func Read(tb testing.TB, raw []byte) *oci.Artifact {
	tb.Helper()
	_, store := image(tb)
	a, err := oci.Read(tb.Context(), store, raw)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// Unsigned is the agent's manifest without an attestation.
func Unsigned(tb testing.TB) []byte {
	tb.Helper()
	raw, _ := image(tb)
	return raw
}
