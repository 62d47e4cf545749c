package notation

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// Envelopes fetches the signatures that the referrers of a target carry. A referrer
// that carries none, or not of the target, has its error in its place, and so has one
// that could not be fetched. Of more than [limits.Envelopes] the first are fetched.
func Envelopes(ctx context.Context, f oci.Fetcher, referrers []ocispec.Descriptor, target ocispec.Descriptor) []verifier.Envelope {
	all := make([]verifier.Envelope, 0, len(referrers))
	for i, d := range referrers {
		if i == limits.Envelopes {
			// Nobody looks at more, but the number of them is told.
			return append(all, make([]verifier.Envelope, len(referrers)-i)...)
		}
		e, err := envelope(ctx, f, d, target)
		if err != nil {
			e = verifier.Envelope{Err: fault.Wrap(err, fault.ReasonOf(err), string(d.Digest), "is attached, but no signature could be read")}
		}
		all = append(all, e)
	}
	return all
}

func envelope(ctx context.Context, f oci.Fetcher, d, target ocispec.Descriptor) (e verifier.Envelope, err error) {
	raw, err := oci.ReadBlob(ctx, f, d, limits.ReferrerBytes)
	if err != nil {
		return e, err
	}
	m, err := oci.ParseManifest(raw)
	if err != nil {
		return e, err
	}
	bad := func(format string, args ...any) (verifier.Envelope, error) {
		return e, fault.New(fault.ArtifactInvalid, string(d.Digest), format, args...)
	}
	switch {
	case !IsSignature(m):
		return bad("is not of the type %s", ArtifactType)
	case m.Subject == nil || m.Subject.Digest != target.Digest || m.Subject.Size != target.Size || m.Subject.MediaType != target.MediaType:
		return bad("refers to another manifest than %s", target.Digest)
	case len(m.Layers) != 1:
		return bad("has %d blobs, a signature has one", len(m.Layers))
	}
	blob := m.Layers[0]
	data, err := oci.ReadBlob(ctx, f, blob, limits.EnvelopeBytes)
	return verifier.Envelope{MediaType: blob.MediaType, Data: data}, err
}

// IsSignature tells whether a manifest says that it is a Notary Project signature.
// Those that were made before manifests had a type say so by their config.
func IsSignature(m *ocispec.Manifest) bool {
	return m.ArtifactType == ArtifactType || m.ArtifactType == "" && m.Config.MediaType == ArtifactType
}
