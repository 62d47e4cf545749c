package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// module is the smallest core module there is.
var module = []byte(wasmMagic)

func wasmAgent(t testing.TB) *manifest.Manifest {
	return parseAgent(t, "id: mentatlab.test\nversion: 1.2.3\ndescription: a test\nruntime: wasm\nmodule: agent.wasm\n")
}

func containerAgent(t testing.TB) *manifest.Manifest {
	return parseAgent(t, "id: mentatlab.test\nversion: 1.2.3\nruntime: python3.12\nimage: registry.example/x:1\n")
}

func parseAgent(t testing.TB, text string) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newLayout(t testing.TB) *Layout {
	t.Helper()
	l, err := CreateLayout(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func push(t testing.TB, l *Layout, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d, err := l.PushBytes(t.Context(), mediaType, data)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := canonical.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func oneFileTar(t testing.TB, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tw, content); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image puts an ordinary image of one layer into l; change may spoil it.
func image(t testing.TB, l *Layout, change func(*ocispec.Image, *ocispec.Manifest)) ocispec.Descriptor {
	t.Helper()
	desc := imageBlobs(t, l, change)
	if err := l.Add(t.Context(), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

// imageBlobs is image without an entry in the index.
func imageBlobs(t testing.TB, l *Layout, change func(*ocispec.Image, *ocispec.Manifest)) ocispec.Descriptor {
	t.Helper()
	layer := oneFileTar(t, "hello", "hello")
	cfg := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/hello"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig},
		Layers:    []ocispec.Descriptor{push(t, l, ocispec.MediaTypeImageLayer, layer)},
	}
	if change != nil {
		change(&cfg, &m)
	}
	d := push(t, l, m.Config.MediaType, mustJSON(t, cfg))
	m.Config.Digest, m.Config.Size = d.Digest, d.Size
	return push(t, l, m.MediaType, mustJSON(t, m))
}

func containerImage(t testing.TB) *ContainerImage {
	t.Helper()
	l := newLayout(t)
	img, err := LoadImage(t.Context(), l, image(t, l, nil), ocispec.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func build(t testing.TB, in BuildInput) (*Layout, ocispec.Descriptor) {
	t.Helper()
	l := newLayout(t)
	desc, err := Build(t.Context(), in, l)
	if err != nil {
		t.Fatal(err)
	}
	return l, desc
}

func rawOf(t testing.TB, l *Layout, desc ocispec.Descriptor) []byte {
	t.Helper()
	raw, err := ReadBlob(t.Context(), l, desc, limits.OCIManifestBytes)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func read(t testing.TB, l *Layout, desc ocispec.Descriptor) *Artifact {
	t.Helper()
	a, err := Read(t.Context(), l, rawOf(t, l, desc))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func wantReason(t testing.TB, err error, want fault.Reason) {
	t.Helper()
	if got := fault.ReasonOf(err); got != want {
		t.Errorf("reason %q, want %q: %v", got, want, err)
	}
}

func unmarshal(t testing.TB, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
