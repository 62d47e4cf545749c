package oci

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
)

func TestALayoutsRootIsWhatItsReferrersReferTo(t *testing.T) {
	l, root := build(t, BuildInput{Agent: wasmAgent(t), Module: []byte("\x00asm\x01\x00\x00\x00")})
	refer := func(subject ocispec.Descriptor, artifactType, content string) ocispec.Descriptor {
		t.Helper()
		m := ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
			Config: push(t, l, "application/vnd.oci.empty.v1+json", []byte("{}")), Layers: []ocispec.Descriptor{push(t, l, "text/plain", []byte(content))}, Subject: &subject,
		}
		d := push(t, l, ocispec.MediaTypeImageManifest, mustJSON(t, m))
		if err := l.Add(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	if err := l.Add(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		refer(root, "application/x-signature", fmt.Sprint(i))
	}
	refer(root, "application/x-other", "x")
	if got, err := l.Root(); err != nil || got.Digest != root.Digest {
		t.Errorf("%v, %v", got, err)
	}
	for most, want := range map[int]int{1: 2, 8: 3} {
		if found, err := l.Referrers(t.Context(), root, "application/x-signature", most); err != nil || len(found) != want {
			t.Errorf("at most %d: %d, %v", most, len(found), err)
		}
	}
	another := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1}
	if found, err := l.Referrers(t.Context(), another, "application/x-signature", 8); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	// What refers to nothing that is there is no referrer, but another image.
	refer(another, "application/x-signature", "astray")
	_, err := l.Root()
	wantReason(t, err, fault.ArtifactInvalid)
}
