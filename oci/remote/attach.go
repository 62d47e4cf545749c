package remote

import (
	"bytes"
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/oci"
)

// Attach pushes a manifest that refers to another, its subject, with the blobs
// that it names, into the repository of ref. Clients find it by the registry's
// referrers API or, where there is none, by the tag that stands for it.
func (c *Client) Attach(ctx context.Context, ref string, raw []byte, blobs [][]byte) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	m, err := oci.ParseManifest(raw)
	if err != nil {
		return none, err
	}
	if m.Subject == nil {
		return none, fault.New(fault.Internal, ref, "what is to be attached refers to nothing")
	}
	r, err := pointer(ref)
	if err != nil {
		return none, err
	}
	ep, err := c.pushEndpoint(ctx, r)
	if err != nil {
		return none, err
	}
	repo := ep.repository(r)
	for _, data := range blobs {
		d := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(data), Size: int64(len(data))}
		there, err := repo.Blobs().Exists(ctx, d)
		if err == nil && !there {
			err = repo.Blobs().Push(ctx, d, bytes.NewReader(data))
		}
		if err != nil {
			return none, ep.fail(err, ref, "cannot push what is attached")
		}
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := repo.Manifests().Push(ctx, desc, bytes.NewReader(raw)); err != nil {
		return none, ep.fail(err, ref, "cannot attach the manifest")
	}
	return desc, nil
}
