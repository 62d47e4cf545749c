package oci

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Document is a manifest or index with its bytes.
type Document struct {
	Desc ocispec.Descriptor
	Raw  []byte
}

// Graph is everything that a manifest or index refers to.
type Graph struct {
	// Blobs are configs and layers, each once.
	Blobs []ocispec.Descriptor
	// Documents are manifests and indexes, each once, every one after those
	// that it refers to; the root is the last.
	Documents []Document
}

func (g *Graph) all() []ocispec.Descriptor {
	all := append([]ocispec.Descriptor(nil), g.Blobs...)
	for _, d := range g.Documents {
		all = append(all, d.Desc)
	}
	return all
}

// Walk reads the manifest or index root and all manifests below it, strictly.
// Configs and layers are listed, not read. Errors: as [ReadBlob], [ParseManifest]
// and [ParseIndex].
func Walk(ctx context.Context, f Fetcher, root ocispec.Descriptor) (*Graph, error) {
	g := new(Graph)
	seen := map[digest.Digest]bool{}
	var walk func(d ocispec.Descriptor, depth int) error
	walk = func(d ocispec.Descriptor, depth int) error {
		if seen[d.Digest] {
			return nil
		}
		seen[d.Digest] = true
		if depth > limits.IndexDepth || len(seen) > 16*limits.IndexManifests {
			return fault.New(fault.ArtifactInvalid, string(root.Digest), "indexes within indexes go too deep")
		}
		raw, err := ReadBlob(ctx, f, d, limits.OCIManifestBytes)
		if err != nil {
			return err
		}
		switch {
		case IsIndex(d.MediaType):
			idx, err := ParseIndex(raw)
			if err != nil {
				return err
			}
			for _, child := range idx.Manifests {
				if err := walk(bare(child), depth+1); err != nil {
					return err
				}
			}
		case IsManifest(d.MediaType):
			m, err := ParseManifest(raw)
			if err != nil {
				return err
			}
			for _, b := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
				if !seen[b.Digest] {
					seen[b.Digest] = true
					g.Blobs = append(g.Blobs, bare(b))
				}
			}
		default:
			return fault.New(fault.ArtifactInvalid, string(d.Digest), "media type %q is neither an image manifest's nor an index's", d.MediaType)
		}
		g.Documents = append(g.Documents, Document{Desc: d, Raw: raw})
		return nil
	}
	return g, walk(root, 1)
}
