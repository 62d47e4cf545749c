package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
)

type verifyResult struct {
	display.Header
	// By is what decided; "" is developer mode.
	By string `json:"by,omitempty"`
	// At is the time that was judged by, with --at.
	At      time.Time  `json:"at,omitzero"`
	Targets []verified `json:"targets"`
}

type verified struct {
	Target   string            `json:"target"`
	Platform string            `json:"platform,omitempty"`
	Allowed  bool              `json:"allowed"`
	Problem  *display.Problem  `json:"error,omitempty"`
	Verdict  *verifier.Verdict `json:"verdict,omitempty"`
	// SignedAs is who an intact attestation says made it, where nothing says
	// whether that is to be believed.
	SignedAs string `json:"signed_as,omitempty"`
	// CountersignedAs is the same of those who countersigned it.
	CountersignedAs []string `json:"countersigned_as,omitempty"`
	// Explanation is the verdict step by step, with --explain.
	Explanation *verifier.Trace `json:"explanation,omitempty"`
	// Forecast is how the verdict changes from now until --at.
	Forecast []verifier.Change `json:"forecast,omitempty"`
	// Renewed is the same as if revocation lists, OCSP answers and release lists were
	// renewed in time, where that is another answer.
	Renewed []verifier.Change `json:"forecast_if_renewed,omitempty"`
}

func (r *verifyResult) Text(w *display.Writer) {
	for _, v := range r.Targets {
		name := v.Target
		if v.Platform != "" {
			name += " (" + v.Platform + ")"
		}
		switch {
		case !v.Allowed:
			w.Line("REFUSED %s", name)
			w.Field("reason", "%s", v.Problem.Reason)
			w.Field("because", "%s", problemText(v.Problem))
		case r.By == "":
			w.Line("intact %s", name)
		default:
			w.Line("allowed %s", name)
		}
		if v.Verdict != nil {
			w.Field("agent", "%s", v.Verdict.Agent)
			w.Field("signed as", "%s", v.SignedAs)
			w.List("with", v.CountersignedAs)
			verdictText(w, v.Verdict)
		}
		forecastText(w, "forecast", v.Forecast)
		forecastText(w, "if renewed", v.Renewed)
		if v.Explanation != nil {
			explainText(w, v.Explanation)
		}
	}
	if !r.At.IsZero() {
		w.Line("judged as of %s, with the policy and the revocation lists that are there now", r.At.Format(shownTime))
		if slices.ContainsFunc(r.Targets, func(v verified) bool { return len(v.Renewed) > 0 }) {
			w.Line("if renewed: as if revocation lists, OCSP answers and release lists came in time and said what they say now")
		}
	}
	switch {
	case !slices.ContainsFunc(r.Targets, func(v verified) bool { return v.Verdict != nil }):
	case r.By != "":
		w.Line("judged by %s", r.By)
	default:
		w.Line("no policy is configured (developer mode): signatures were checked, but nobody is trusted")
	}
}

func problemText(p *display.Problem) string {
	text := p.Message
	if p.On != "" {
		text = p.On + ": " + text
	}
	if p.Hint != "" {
		text += " (" + p.Hint + ")"
	}
	return text
}

type verifyOptions struct {
	trust   trustFlags
	remote  remoteFlags
	as      string
	explain bool
	at      moment
}

func (a *app) verifyCmd() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify TARGET...",
		Short: "Check an attestation, as a node would",
		Long: `Check that agents are attested and that a policy accepts them. A target is an
agent's directory or manifest.yaml, an OCI layout, or an image reference.

A directory is checked as a whole: every blob of its artifact, that the artifact
is what manifest.yaml and the module say, and that manifest.yaml shows the very
attestation that the artifact carries. It is judged as what its image: says it
will be published as, or as --as says.

The policy is the node's, or the one that flags name. Where there is none,
signatures are checked but nobody is trusted; --root or --ca asks for a chain.

With --at the verdict, and the exit code, are those of that date, by the policy and
the revocation lists that are there now; before it stands when the verdict changes
and why: certificates that end, lists that must be renewed, enforcement that begins.
Where lists that end hide what comes after, a second forecast tells how it goes on
if they are renewed.`,
		Example: `  mentatctl verify agents/*/manifest.yaml
  mentatctl verify --policy policy.yaml registry.example.com/agents/hello:0.1.0
  mentatctl verify --ca ~/.mentat/ca --explain hello
  mentatctl verify --at 2027-01-31 registry.example.com/agents/hello:0.1.0`,
		Args: wantArgs(1, -1, "a directory, a manifest, a layout or a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.trust.check(cmd); err != nil {
				return err
			}
			j, err := a.verifier(cmd.Context(), &o.trust)
			if err != nil {
				return err
			}
			r := &verifyResult{Header: display.Head("verify"), By: j.by, At: o.at.Time}
			progress := a.newProgress()
			err = each(args, func(name string) error {
				judged, err := a.verify(cmd.Context(), name, &o, j, progress)
				if err != nil && len(judged) == 0 {
					judged = []verified{refusal(name, err)}
				}
				r.Targets = append(r.Targets, judged...)
				return err
			})
			progress.Close()
			if printErr := a.printer().Result(r); printErr != nil {
				return printErr
			}
			if err == nil {
				return nil
			}
			for _, v := range r.Targets {
				if !v.Allowed && a.format == display.Text {
					a.printer().Note("%s: refused (%s)", v.Target, v.Problem.Reason)
				}
			}
			return reported{err}
		},
	}
	o.trust.add(cmd)
	o.trust.addRoots(cmd)
	o.remote.add(cmd)
	cmd.Flags().StringVar(&o.as, "as", "", "judge a local artifact as if it were published as this `REFERENCE`")
	cmd.Flags().Var(&o.at, "at", "judge as of this `DATE` (2027-01-31 or 2027-01-31T12:00:00Z), and say what changes until then")
	cmd.Flags().BoolVar(&o.explain, "explain", false, "show every step of the judgement with what it looked at")
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

func refusal(name string, err error) verified {
	return verified{Target: name, Problem: &display.Problems(err)[0]}
}

// verify judges every artifact of a target. What comes with an error is as far
// as it got.
func (a *app) verify(ctx context.Context, name string, o *verifyOptions, j *judgement, p *display.Progress) ([]verified, error) {
	t, err := a.open(ctx, name, &o.remote, p)
	if err != nil {
		return nil, err
	}
	if t.dir != nil {
		if err := a.consistent(ctx, t.dir); err != nil {
			return nil, err
		}
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	var all []verified
	var errs []error
	then := j.at(o.at.Time)
	for _, f := range found {
		var trace *verifier.Trace
		if o.explain {
			trace = &verifier.Trace{}
		}
		in, err := t.input(ctx, j, t.judgedAs(o.as), f)
		if err != nil {
			return nil, err
		}
		if then.elsewhen {
			_ = j.Verify(ctx, in) // for what it fetches: the verdict is not the one that was asked for
		}
		in.Trace = trace
		vd, err := judge(ctx, then, in, f)
		v := verified{Target: name, Allowed: err == nil, Verdict: vd, Explanation: trace}
		if o.at.After(a.now()) && j.Policy() != nil {
			v.Forecast, v.Renewed = j.forecast(ctx, in, o.at.Time)
		}
		if len(found) > 1 {
			v.Platform = f.platform
		}
		if vd.Developer && err == nil {
			v.SignedAs, v.CountersignedAs = claimedSigners(f)
		}
		if err != nil {
			v.Problem = &display.Problems(err)[0]
			errs = append(errs, err)
		}
		all = append(all, v)
	}
	return all, errors.Join(errs...)
}

// judge asks the verifier. Without a policy nothing requires an attestation, but
// who asks for one to be verified wants one to be there.
func judge(ctx context.Context, j *judgement, in verifier.Input, f fetchedArtifact) (*verifier.Verdict, error) {
	vd := j.Verify(ctx, in)
	if !vd.Allowed {
		return vd, vd.Err
	}
	if vd.Developer && !f.Attested() {
		err := fault.New(fault.Unsigned, in.Reference, "carries no attestation").WithHint("mentatctl sign makes one")
		if in.Trace != nil {
			in.Trace.Refuse(err)
		}
		return vd, err
	}
	return vd, nil
}

// claimedSigners are whom the leaf certificates of an attestation name.
func claimedSigners(f fetchedArtifact) (first string, others []string) {
	att, err := verifier.ReadAttestation(f.Raw)
	if err != nil {
		return "", nil
	}
	for _, c := range att.Countersigners() {
		others = append(others, signerName(c))
	}
	return signerName(att.Chain[0]), others
}

// judgedAs is the reference that decides about a target's scope.
func (t *target) judgedAs(as string) string {
	switch {
	case as != "":
		return as
	case t.reference == "" && t.dir != nil:
		return t.dir.Manifest.Image
	}
	return t.reference
}

// consistent checks that an agent's directory is of one piece: every blob is
// what its digest says, the artifact is what manifest.yaml, module and sources
// say, and manifest.yaml shows the artifact's attestation.
func (a *app) consistent(ctx context.Context, d *agentdir.Dir) error {
	layout, _, artifact, err := d.Layout(ctx)
	if err != nil {
		return err
	}
	if err := layout.Verify(ctx); err != nil {
		return err
	}
	drift, err := d.Drift(artifact)
	if err != nil {
		return err
	}
	if len(drift) > 0 {
		return fault.New(fault.DigestMismatch, d.Path, "the artifact is not what the directory holds: %s", joinAnd(drift)).
			WithHint("build and sign it again, or restore what was signed")
	}
	return d.CheckBlock(artifact)
}

func joinAnd(list []string) string {
	text := list[0]
	for i, s := range list[1:] {
		if i == len(list)-2 {
			text += " and " + s
		} else {
			text += ", " + s
		}
	}
	return text
}
