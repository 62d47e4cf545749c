package remote

import (
	"bytes"
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/oci"
)

// Replace lets ref's tag point to raw, a manifest of the same blobs as old, to which
// it points now: no blob is copied. If it points to something else by now, which
// somebody pushed meanwhile, nothing is pushed; the registry itself cannot compare,
// so this looks immediately before. Errors: Usage for a reference without a tag or
// with a digest, Exists for a tag that moved or that the registry keeps, NotFound,
// AccessDenied, Unavailable, ArtifactInvalid.
func (c *Client) Replace(ctx context.Context, ref string, old digest.Digest, raw []byte) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	m, err := oci.ParseManifest(raw)
	if err != nil {
		return none, err
	}
	r, err := pointer(ref)
	if err != nil {
		return none, err
	}
	if _, err := r.Digest(); err == nil {
		return none, fault.New(fault.Usage, ref, "names a digest, which nothing else can take the place of").WithHint("name a tag")
	}
	ep, err := c.pushEndpoint(ctx, r)
	if err != nil {
		return none, err
	}
	repo := ep.repository(r)
	now, err := repo.Manifests().Resolve(ctx, r.Reference)
	if err != nil {
		return none, ep.fail(err, ref, "cannot resolve")
	}
	if now.Digest != old {
		return none, fault.New(fault.Exists, ref, "means %s by now, which is not overwritten; it was %s", now.Digest, old).
			WithHint("do it again")
	}
	mediaType := m.MediaType
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageManifest
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := repo.Manifests().PushReference(ctx, desc, bytes.NewReader(raw), r.Reference); err != nil {
		return none, ep.fail(err, ref, "cannot push the manifest")
	}
	return desc, nil
}
