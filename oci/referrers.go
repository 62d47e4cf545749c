package oci

import (
	"bytes"
	"context"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/limits"
)

// Referrers lists the manifests of the layout's index that say of themselves that they
// refer to target and are of a type, or of any if it is empty: at most the given number
// and one more, which tells that there are more. An entry that cannot be read refers to
// nothing.
func (l *Layout) Referrers(ctx context.Context, target ocispec.Descriptor, artifactType string, most int) ([]ocispec.Descriptor, error) {
	idx, err := l.readIndex()
	if err != nil {
		return nil, err
	}
	var found []ocispec.Descriptor
	for _, d := range idx.Manifests {
		m := l.referrer(ctx, d)
		if m == nil || m.Subject.Digest != target.Digest || artifactType != "" && m.ArtifactType != artifactType && m.Config.MediaType != artifactType {
			continue
		}
		if found = append(found, bare(d)); len(found) > most {
			break
		}
	}
	return found, nil
}

// referrer reads an entry that refers to another manifest; nil for every other.
func (l *Layout) referrer(ctx context.Context, d ocispec.Descriptor) *ocispec.Manifest {
	if IsIndex(d.MediaType) {
		return nil
	}
	raw, err := ReadBlob(ctx, l, d, limits.ReferrerBytes)
	if err != nil || !bytes.Contains(raw, []byte(`"subject"`)) {
		return nil
	}
	m, err := ParseManifest(raw)
	if err != nil || m.Subject == nil {
		return nil
	}
	return m
}

// images is the index without what refers to another of its entries, as signatures do.
func (l *Layout) images(idx *ocispec.Index) *ocispec.Index {
	if len(idx.Manifests) < 2 {
		return idx
	}
	rest := *idx
	rest.Manifests = slices.DeleteFunc(slices.Clone(idx.Manifests), func(d ocispec.Descriptor) bool {
		m := l.referrer(context.Background(), d)
		return m != nil && slices.ContainsFunc(idx.Manifests, func(o ocispec.Descriptor) bool { return o.Digest == m.Subject.Digest })
	})
	return &rest
}
