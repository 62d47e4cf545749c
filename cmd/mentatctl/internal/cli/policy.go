package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/strictyaml"
	"github.com/mentatlab/mentat/verifier"
)

func (a *app) policyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check a node's policies and explain what they decide",
		Long: `Check the two policies of a node, policy.yaml (what may run) and
capabilities.yaml (what it may do), and explain decisions.`,
		Example: `  mentatctl policy check /etc/mentat/*.yaml
  mentatctl policy explain hello network:https:api.example.com --trust-level signed`,
		Args: subcommandWanted,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyCheckCmd(), a.policyExplainCmd())
	return cmd
}

type checkResult struct {
	display.Header
	Files []checkedPolicy `json:"files"`
}

// Kinds of policies.
const (
	kindPolicy       = "policy"
	kindCapabilities = "capabilities"
)

type checkedPolicy struct {
	File string `json:"file"`
	Kind string `json:"kind"`
	// Findings are what is well formed and looks wrong.
	Findings []policy.Finding  `json:"findings"`
	Problems []display.Problem `json:"problems,omitempty"`
}

func (r *checkResult) Text(w *display.Writer) {
	for _, f := range r.Files {
		if len(f.Problems) > 0 {
			continue // stderr has them
		}
		w.Line("%s: %s", f.File, map[string]string{kindPolicy: "a policy, well formed", kindCapabilities: "a capability policy, well formed"}[f.Kind])
		for _, found := range f.Findings {
			w.Field("warning", "%s", findingText(f.File, found))
		}
	}
}

func findingText(file string, f policy.Finding) string {
	text := f.Message
	if f.Rule != "" {
		text = "rule " + f.Rule + ": " + text
	}
	if f.Line > 0 {
		text = strictyaml.Position(file, f.Line) + ": " + text
	}
	return text
}

func (a *app) policyCheckCmd() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Read policies as a node does",
		Long: `Read policies as a node does, and look for what is well formed and has no effect:
allowances that a denial takes away, entries that say nothing new, files that are
not there, secrets that others can read.

A policy that a node would refuse ends with 18, with --strict also one with
warnings.`,
		Example: `  mentatctl policy check /etc/mentat/policy.yaml /etc/mentat/capabilities.yaml
  mentatctl policy check --strict --output json capabilities.yaml`,
		Args: wantArgs(1, -1, "a policy file"),
		RunE: func(_ *cobra.Command, args []string) error {
			r := &checkResult{Header: display.Head("policy-check"), Files: []checkedPolicy{}}
			err := each(args, func(path string) error {
				f, err := checkPolicy(path, strict)
				r.Files = append(r.Files, f)
				return err
			})
			if printErr := a.printer().Result(r); printErr != nil {
				return printErr
			}
			if err != nil && a.format == display.JSON {
				return reported{err}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&strict, "strict", false, "fail for warnings, too")
	a.outputs(cmd)
	return cmd
}

// checkPolicy reads one file. With strict its findings are problems.
func checkPolicy(path string, strict bool) (checkedPolicy, error) {
	f := checkedPolicy{File: path, Findings: []policy.Finding{}}
	data, err := limits.ReadFile(path, limits.PolicyBytes)
	if err != nil {
		err = fault.Wrap(err, fault.PolicyInvalid, path, "cannot read the policy")
	} else if f.Kind = kindOf(path, data); f.Kind == kindPolicy {
		f.Findings, err = checkTrust(path, data)
	} else {
		f.Findings, err = checkCapabilities(path, data)
	}
	if err == nil && strict {
		var errs []error
		for _, found := range f.Findings {
			errs = append(errs, fault.New(fault.PolicyInvalid, "", "%s", findingText(path, found)))
		}
		err = errors.Join(errs...)
	}
	f.Problems = display.Problems(err)
	return f, err
}

var (
	policyKey     = regexp.MustCompile(`(?m)^(scopes|outside|exempt|trust|revocation|on_unfetchable|attestation_required|minimum_versions|releases|grants):`)
	capabilityKey = regexp.MustCompile(`(?m)^(rules|network|llm|media|extensions|sandbox):`)
)

// kindOf tells the two policies apart by their keys; the name decides about a
// file that has none of either.
func kindOf(path string, data []byte) string {
	switch {
	case policyKey.Match(data):
		return kindPolicy
	case capabilityKey.Match(data), strings.Contains(filepath.Base(path), "capabilit"):
		return kindCapabilities
	}
	return kindPolicy
}

func checkTrust(path string, data []byte) ([]policy.Finding, error) {
	p, err := verifier.ParsePolicy(path, data)
	if err != nil {
		return []policy.Finding{}, err
	}
	found := []policy.Finding{}
	if stage, when := p.Staging(); stage == verifier.StageOff {
		found = append(found, policy.Finding{Message: "attestation_required is not enabled: what has no attestation runs, and no date changes that"})
	} else if !when.IsZero() {
		found = append(found, policy.Finding{Message: "what has no attestation runs until " + when.Format(shownTime) + ", when attestation_required is enforced"})
	}
	for _, scope := range p.Scopes() {
		if scope.Notation {
			found = append(found, policy.Finding{Message: "the scope " + scope.Name + " accepts Notary Project signatures, which are for no repository and no version: what was ever signed so may stand under any of its names"})
		}
		if scope.Level != verifier.Strict {
			found = append(found, policy.Finding{Message: "the scope " + scope.Name + " is at the level " + string(scope.Level) + ": attestations that do not hold are overlooked, with a warning"})
		}
	}
	if _, err := verifier.LoadStores(filepath.Join(filepath.Dir(path), "trust"), p); err != nil {
		found = append(found, policy.Finding{Message: "the trust stores beside it cannot be used: " + fault.OneLine(err.Error())})
	}
	return found, nil
}

func checkCapabilities(path string, data []byte) ([]policy.Finding, error) {
	p, err := policy.Parse(path, data)
	if err != nil {
		return []policy.Finding{}, err
	}
	found := append([]policy.Finding{}, p.Check()...)
	for _, ref := range p.References() {
		if wrong := exists(ref); wrong != "" {
			found = append(found, policy.Finding{Message: fmt.Sprintf("%s, %s, %s", ref.Path, ref.For, wrong)})
		}
	}
	return found, nil
}

type explainResult struct {
	display.Header
	Agent      string `json:"agent"`
	Version    string `json:"version"`
	Reference  string `json:"reference,omitempty"`
	Trust      string `json:"trust"`
	Policy     string `json:"policy,omitempty"`
	Capability string `json:"capability"`
	Allowed    bool   `json:"allowed"`
	// Rule is what decided, Reason why it was denied, Hint what would help.
	Rule   string `json:"rule"`
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"`
	// Asked are the manifest's lines that ask for it or for a part of it.
	Asked []askedLine `json:"asked"`
	// Rules are what each rule of the policy says.
	Rules []policy.Step `json:"rules"`
	// Holes are parts of it that are denied when they are used.
	Holes []hostdoc.Hole `json:"holes,omitempty"`
	// DryRun are the rules in dry run that would have denied it.
	DryRun []string `json:"dry_run,omitempty"`
	// Grant is all that the agent may do.
	Grant *grantInfo `json:"grant"`
}

type askedLine struct {
	Where      string `json:"where"`
	Capability string `json:"capability"`
	// All is true where it asks for all of what is explained.
	All bool `json:"all"`
}

func (r *explainResult) Text(w *display.Writer) {
	verdict := "allowed, by " + ruleText(r.Rule)
	if !r.Allowed {
		verdict = "denied: " + r.Reason
	}
	w.Line("%s for %s %s at the trust level %s", r.Capability, r.Agent, r.Version, r.Trust)
	w.Field("verdict", "%s", verdict)
	w.Field("next", "%s", r.Hint)
	for i, asked := range r.Asked {
		what := "asks for it"
		switch {
		case asked.Capability == r.Capability:
		case asked.All:
			what = "asks for " + asked.Capability + ", which covers it"
		default:
			what = "asks for " + asked.Capability + ", a part of it"
		}
		w.Field(first(i, "manifest"), "%s %s", asked.Where, what)
	}
	if len(r.Asked) == 0 {
		w.Field("manifest", "does not ask for it")
	}
	if len(r.Rules) == 0 {
		w.Field("rules", "none")
	}
	for i, step := range r.Rules {
		w.Field(first(i, "rules"), "%s", stepText(step))
	}
	for i, h := range r.Holes {
		verb := "denied"
		if h.DryRun {
			verb = "counted"
		}
		w.Field(first(i, "in use"), "%s is %s, by the rule %s", h.Capability, verb, h.Rule)
	}
	w.List("dry run", r.DryRun)
	r.Grant.text(w)
}

func first(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}

func stepText(s policy.Step) string {
	text := fmt.Sprintf("%s, line %d: %s", s.Rule, s.Line, s.Effect)
	if len(s.Of) > 0 {
		text += ": " + strings.Join(s.Of, ", ")
	}
	if s.Why != "" {
		text += ": " + s.Why
	}
	return text
}

type explainOptions struct {
	trust  trustFlags
	remote remoteFlags
	as     string
	level  string
}

func (a *app) policyExplainCmd() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain TARGET CAPABILITY",
		Short: "Say which rule decides about a capability, and why",
		Long: `Say what a node decides when an agent requests a capability: which line of its
manifest asks for it, what each rule of the capability policy says, which one
decides, and all that the agent may do.

A target is an agent's directory or manifest.yaml, an OCI layout, or an image
reference. Its trust level is the one that the policy gives it; --trust-level explains
another one. What a container is given besides, directories and variables, is not
known here. A denial ends with 0, too.`,
		Example: `  mentatctl policy explain hello network:https:api.example.com --trust-level signed
  mentatctl policy explain registry.example.com/agents/hello:0.1.0 'llm:gpt-4o' --output json`,
		Args: wantArgs(2, 2, "an agent and a capability"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.trust.check(cmd); err != nil {
				return err
			}
			r, err := a.explain(cmd.Context(), args[0], args[1], &o)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	o.trust.add(cmd)
	o.trust.addCapabilities(cmd)
	o.remote.add(cmd)
	cmd.Flags().StringVar(&o.as, "as", "", "judge a local artifact as if it were published as this `REFERENCE`")
	cmd.Flags().StringVar(&o.level, "trust-level", "", "explain at this `LEVEL`: untrusted, signed, community or verified")
	fixedCompletion(cmd, "trust-level", trustLevels...)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

var trustLevels = []string{string(verifier.Untrusted), string(verifier.Signed), string(verifier.Community), string(verifier.Verified)}

func (a *app) explain(ctx context.Context, name, text string, o *explainOptions) (*explainResult, error) {
	if o.level != "" && !slices.Contains(trustLevels, o.level) {
		return nil, fault.New(fault.Usage, "--trust-level", "%q is no trust level, allowed are %s", o.level, strings.Join(trustLevels, ", "))
	}
	want, err := manifest.ParseCapability(text)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, "", "")
	}
	j, err := a.verifier(ctx, &o.trust)
	if err != nil {
		return nil, err
	}
	m, trust, ref, err := a.subject(ctx, name, o, j)
	if err != nil {
		return nil, err
	}
	if o.level != "" {
		trust = o.level
	}
	return explain(j, m, trust, ref, want)
}

// subject finds the agent's manifest, its trust level and the reference that
// rules are held to. A directory that was not built yet has a manifest, too.
func (a *app) subject(ctx context.Context, name string, o *explainOptions, j *judgement) (m *manifest.Manifest, trust, ref string, err error) {
	if isLocal(name) && !isLayout(name) {
		d, err := agentdir.Open(name)
		if err != nil {
			return nil, "", "", err
		}
		m, ref = d.Manifest, d.Manifest.Image
		if o.as != "" {
			ref = o.as
		}
		if o.level != "" {
			return m, o.level, ref, nil
		}
	}
	progress := a.newProgress()
	defer progress.Close()
	t, err := a.open(ctx, name, &o.remote, progress)
	if fault.ReasonOf(err) == fault.NotFound && m != nil {
		return m, string(verifier.Untrusted), ref, nil
	}
	if err != nil {
		return nil, "", "", err
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, "", "", err
	}
	for _, f := range found {
		if f.Agent != nil {
			ref = t.judgedAs(o.as)
			in, err := t.input(ctx, j, ref, f)
			if err != nil {
				return nil, "", "", err
			}
			vd := j.Verify(ctx, in)
			if m == nil {
				m = f.Agent
			}
			return m, string(vd.Trust), ref, nil
		}
	}
	return nil, "", "", fault.New(fault.Unsupported, name, "carries no agent manifest, so nothing is asked for")
}

func explain(j *judgement, m *manifest.Manifest, trust, ref string, want manifest.Capability) (*explainResult, error) {
	g := j.effective(m, trust, ref)
	set, err := capability.NewSet(&hostdoc.Document{Grants: g.Grants, Denials: g.Denials(), Holes: g.Holes, Network: g.Network})
	if err != nil {
		return nil, err
	}
	answer := set.Request(want)
	r := &explainResult{
		Header: display.Head("policy-explain"), Agent: m.ID, Version: m.Version, Reference: ref, Trust: trust, Policy: j.capabilities.File(),
		Capability: want.String(), Allowed: answer.Allowed, Rule: answer.Rule, Reason: answer.Reason, Hint: answer.Hint, DryRun: answer.DryRun,
		Asked: []askedLine{},
		Rules: j.capabilities.Explain(policy.Subject{Agent: m.ID, Trust: trust, Reference: ref}, want),
		Grant: &grantInfo{Trust: verifier.TrustLevel(trust), Granted: g.Capabilities(), Holes: g.Holes, Decisions: append([]capability.Decision{}, g.Decisions...)},
	}
	for i, c := range m.Capabilities() {
		if all := c.Allows(want); all || c.Overlaps(want) {
			r.Asked = append(r.Asked, askedLine{Where: m.Where(strictyaml.Index("wasm.capabilities", i)), Capability: c.String(), All: all})
		}
	}
	for _, h := range g.Holes {
		if c, err := manifest.ParseCapability(h.Capability); err == nil && c.DeniesPart(want) {
			r.Holes = append(r.Holes, h)
		}
	}
	return r, nil
}
