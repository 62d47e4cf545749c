package remote

import (
	"context"
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/mentatlab/mentat/internal/limits"
)

// errEnough ends a list of which enough was read.
var errEnough = errors.New("enough")

// Referrers lists the manifests of one type, or of any if it is empty, that refer to
// target in ref's repository, by the registry's referrers API or, where there is none,
// by the tag that stands for it: at most the given number and one more, which tells that there are more. A server
// that knows of none does not speak for the next. What they say of themselves is not
// checked. Errors: as [Client.Resolve].
func (c *Client) Referrers(ctx context.Context, ref string, target ocispec.Descriptor, artifactType string, most int) ([]ocispec.Descriptor, error) {
	r, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	r.Reference = string(target.Digest)
	eps, err := c.endpoints(ctx, r.Registry)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, ep := range eps {
		if ep.can&canPull == 0 {
			continue
		}
		var found []ocispec.Descriptor
		repo := ep.repository(r)
		repo.ReferrerListMaxPages = limits.ReferrerPages
		err := repo.Referrers(ctx, target, artifactType, func(page []ocispec.Descriptor) error {
			for _, d := range page {
				if found = append(found, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}); len(found) > most {
					return errEnough
				}
			}
			return nil
		})
		// Of a list without end, which anybody who may attach can make, what was found
		// before is looked at.
		enough := errors.Is(err, errEnough) || errors.Is(err, errdef.ErrTooManyPages) && len(found) > 0
		if err != nil && !enough {
			failed = ep.fail(err, ref, "cannot list what refers to "+target.Digest.String())
			continue
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, failed
}
