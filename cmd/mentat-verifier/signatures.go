package main

import (
	"context"
	"fmt"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
	"github.com/mentatlab/mentat/verifier/notation"
)

// signatures asks the registry for the Notary Project signatures of what the policy
// judges by them. A registry that does not tell which there are is one that did not
// give the image; its siblings are judged all the same.
func signatures(ctx context.Context, v *verifier.Verifier, c *collector, req request, found []*oci.Artifact) []verifier.Input {
	ctx, cancel := context.WithTimeout(ctx, limits.ReferrersTime)
	defer cancel()
	var inputs []verifier.Input
	for _, a := range found {
		in := verifier.Input{Reference: req.name, Artifact: a, Index: req.digest}
		if v.AsksEnvelopes(in) {
			var err error
			if in.Envelopes, err = c.envelopes(ctx, a); err != nil {
				in.Envelopes = []verifier.Envelope{{Err: err}}
			}
		}
		inputs = append(inputs, in)
	}
	return inputs
}

func (c *collector) envelopes(ctx context.Context, a *oci.Artifact) ([]verifier.Envelope, error) {
	target := verifier.Target(a)
	list, err := c.client.Referrers(ctx, c.ref, target, notation.ArtifactType, limits.Envelopes)
	if err != nil {
		return nil, err
	}
	f, err := c.client.Fetcher(c.ref)
	if err != nil {
		return nil, err
	}
	return notation.Envelopes(ctx, f, list, target), nil
}

// outOfReach is why a signature that is there could not be looked at, nil when all
// could.
func outOfReach(all []verifier.Envelope) error {
	for _, e := range all[:min(len(all), limits.Envelopes)] {
		if e.Err != nil && unfetchable(e.Err) {
			return e.Err
		}
	}
	return nil
}

// keep keeps the signatures by which an image is allowed for the gate before the start,
// which judges them again. Without them it refuses; the image is of no use then, but
// that is for no gate to hide.
func (g *gate) keep(cfg nodeconfig.Verify, in verifier.Input, vd *verifier.Verdict) {
	if _, err := envelopes.In(cfg.State).KeepGood(in, vd); err != nil {
		fmt.Fprintln(g.log, fault.OneLine(fmt.Sprintf("mentat-verifier: warning: it will not start: %v", err)))
	}
}
