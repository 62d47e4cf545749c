package cli

import (
	"context"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
)

type acceptResult struct {
	display.Header
	Target string     `json:"target"`
	Images []accepted `json:"images"`
}

type accepted struct {
	Digest digest.Digest `json:"digest"`
	// Kept is how many signatures count.
	Kept    int               `json:"kept"`
	Verdict *verifier.Verdict `json:"verdict"`
}

func (r *acceptResult) Text(w *display.Writer) {
	for _, im := range r.Images {
		w.Line("kept %d of the signatures of %s", im.Kept, im.Digest)
		w.Field("verdict", "%s", verdictLine(im.Verdict))
	}
}

type acceptOptions struct {
	config string
	as     string
	remote remoteFlags
}

func (a *app) nodeAcceptCmd() *cobra.Command {
	var o acceptOptions
	cmd := &cobra.Command{
		Use:   "accept TARGET",
		Short: "Keep an image's Notary Project signatures for its starts",
		Long: `Find the Notary Project signatures of an image, judge them by the node's policy, and
keep those that count where the gate before a start reads them. The pull gate does
so at each pull; this is for an image that came another way, as with ctr images
import, or before the policy accepted such signatures.

The target is an OCI layout with its signatures, or an image reference, whose
registry is asked. --as is the name that the image has on the node. Nothing is kept
of what the policy refuses, and each start judges anew. It needs root.`,
		Example: `  mentatctl node accept --as registry.example.com/vendor/tool:1.0 layout
  mentatctl node accept registry.example.com/vendor/tool:1.0`,
		Args: wantArgs(1, 1, "a layout or a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.nodeAccept(cmd.Context(), args[0], &o)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	o.remote.add(cmd)
	cmd.Flags().StringVar(&o.config, "config", "", "the node's configuration `FILE` (default: $"+nodeconfig.Env+" or "+nodeconfig.DefaultPath+")")
	cmd.Flags().StringVar(&o.as, "as", "", "the image's `REFERENCE` on the node")
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

func (a *app) nodeAccept(ctx context.Context, name string, o *acceptOptions) (*acceptResult, error) {
	cfg, err := nodeconfig.Load(o.config)
	if err != nil {
		return nil, err
	}
	if cfg.Verify.Policy == "" {
		return nil, fault.New(fault.PolicyInvalid, name, "no policy is configured that could accept its signatures")
	}
	v, err := a.policyVerifier(ctx, cfg.Verify)
	if err != nil {
		return nil, err
	}
	j := &judgement{Verifier: v, by: "policy " + cfg.Verify.Policy, revocation: cfg.Verify}
	progress := a.newProgress()
	defer progress.Close()
	t, err := a.open(ctx, name, &o.remote, progress)
	if err != nil {
		return nil, err
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	r := &acceptResult{Header: display.Head("node accept"), Target: name}
	for _, one := range found {
		in, err := t.input(ctx, j, t.judgedAs(o.as), one)
		if err != nil {
			return nil, err
		}
		if !j.AsksEnvelopes(in) {
			continue
		}
		vd := j.Verify(ctx, in)
		if !vd.Allowed {
			return nil, vd.Err
		}
		n, err := keepGood(cfg.Verify.State, in, vd)
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, accepted{one.Digest, n, vd})
	}
	if len(r.Images) == 0 {
		return nil, fault.New(fault.Usage, name, "the node's policy does not judge it by Notary Project signatures: it carries an attestation, or its scope does not say notation: accept").
			WithHint("say with --as how it is called on the node")
	}
	return r, nil
}
