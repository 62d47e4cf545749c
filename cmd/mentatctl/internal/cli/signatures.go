package cli

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/notation"
)

// input is one of a target's artifacts as it is judged: with the Notary Project
// signatures that the registry or the layout has of it, where the policy judges by them.
func (t *target) input(ctx context.Context, j *judgement, ref string, f fetchedArtifact) (verifier.Input, error) {
	in := verifier.Input{Reference: ref, Artifact: f.Artifact}
	if t.client == nil { // the reference is where it will be
		in.Where = t.name
	}
	if !j.AsksEnvelopes(in) {
		return in, nil
	}
	what := verifier.Target(f.Artifact)
	list, err := t.referrers(ctx, what)
	if err != nil {
		return in, err
	}
	in.Envelopes = notation.Envelopes(ctx, t.fetcher, list, what)
	return in, nil
}

func (t *target) referrers(ctx context.Context, what ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if t.client != nil {
		return t.client.Referrers(ctx, t.reference, what, notation.ArtifactType, limits.Envelopes)
	}
	if layout, ok := t.fetcher.(*oci.Layout); ok {
		return layout.Referrers(ctx, what, notation.ArtifactType, limits.Envelopes)
	}
	return nil, nil
}
