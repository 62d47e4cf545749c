package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

type inspectResult struct {
	display.Header
	Target string        `json:"target"`
	Root   digest.Digest `json:"digest"`
	By     string        `json:"by,omitempty"`
	Images []inspected   `json:"images"`
	// Drift says how an agent's directory differs from its artifact.
	Drift []string `json:"drift,omitempty"`
}

type inspected struct {
	Digest      digest.Digest     `json:"digest"`
	Form        oci.Form          `json:"form"`
	Platform    string            `json:"platform,omitempty"`
	ID          string            `json:"id,omitempty"`
	Version     string            `json:"version,omitempty"`
	Description string            `json:"description,omitempty"`
	Runtime     string            `json:"runtime,omitempty"`
	Size        int64             `json:"size"`
	Blobs       []blobInfo        `json:"blobs"`
	Module      *moduleInfo       `json:"module,omitempty"`
	Signed      *signatureInfo    `json:"signed,omitempty"`
	Verdict     *verifier.Verdict `json:"verdict"`
	Grant       *grantInfo        `json:"grant,omitempty"`
	MemoryLimit int64             `json:"memory_limit,omitempty"`
	Deadline    string            `json:"deadline,omitempty"`
	Served      *servedInfo       `json:"served,omitempty"`
}

// servedInfo is how an agent of mode serve is served where it has the memory.
type servedInfo struct {
	Address     string `json:"address"`
	Concurrency int    `json:"concurrency"`
	Queue       int    `json:"queue"`
	Body        int64  `json:"body"`
}

type blobInfo struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

type moduleInfo struct {
	Digest  digest.Digest    `json:"digest"`
	Size    int64            `json:"size"`
	Entry   string           `json:"entry"`
	Imports []string         `json:"imports"`
	Globals map[string]int64 `json:"globals,omitempty"`
	// MemoryMin and MemoryMax are in bytes; a maximum of 0 is none.
	MemoryMin uint64 `json:"memory_min"`
	MemoryMax uint64 `json:"memory_max,omitempty"`
}

// signatureInfo is what an attestation says of itself; whether it is believed is
// the verdict's matter.
type signatureInfo struct {
	Subject   string `json:"subject"`
	Email     string `json:"email,omitempty"`
	Issuer    string `json:"issuer"`
	Algorithm string `json:"algorithm"`
	Time      string `json:"time"`
	// NotAfter is the certificate's end.
	NotAfter time.Time `json:"not_after"`
	// AttestationNotAfter is the end that the signer gave the attestation itself.
	AttestationNotAfter string `json:"attestation_not_after,omitempty"`
	BoundTo             string `json:"bound_to,omitempty"`
	// Countersigned is the same of the countersignatures.
	Countersigned []signatureInfo `json:"countersigned,omitempty"`
}

func (s *signatureInfo) who() string {
	if s.Email != "" {
		return s.Email
	}
	return s.Subject
}

type grantInfo struct {
	Trust     verifier.TrustLevel   `json:"trust"`
	Granted   []string              `json:"granted"`
	Holes     []hostdoc.Hole        `json:"holes,omitempty"`
	Decisions []capability.Decision `json:"decisions"`
}

func (r *inspectResult) Text(w *display.Writer) {
	for i, im := range r.Images {
		name := r.Target
		if im.ID != "" {
			name = im.ID + " " + im.Version
		}
		w.Line("%s (%s)", name, formText(im.Form))
		w.Field("about", "%s", im.Description)
		w.Field("digest", "%s", im.Digest)
		if len(r.Images) > 1 {
			w.Field("platform", "%s", im.Platform)
		}
		w.Field("size", "%s in %s", display.Size(im.Size), display.Count(len(im.Blobs), "blob", "blobs"))
		if m := im.Module; m != nil {
			w.Field("module", "%s, entry %s, %s", display.Size(m.Size), m.Entry, memoryText(m))
			w.Field("imports", "%s", importsText(m.Imports))
			for _, name := range slices.Sorted(maps.Keys(m.Globals)) {
				w.Field("global", "%s = %d", name, m.Globals[name])
			}
		}
		if s := im.Signed; s != nil {
			w.Field("signed by", "%s", s.who())
			w.Field("issuer", "%s", s.Issuer)
			w.Field("signed at", "%s with %s, certificate until %s", s.Time, s.Algorithm, display.Date(s.NotAfter))
			var others []string
			for _, c := range s.Countersigned {
				others = append(others, fmt.Sprintf("%s at %s with %s, certificate until %s", c.who(), c.Time, c.Algorithm, display.Date(c.NotAfter)))
			}
			w.List("with", others)
			if s.AttestationNotAfter != "" {
				w.Field("ends", "%s, as its signer says", s.AttestationNotAfter)
			}
			w.Field("bound to", "%s", s.BoundTo)
		} else {
			w.Field("signed by", "nobody")
		}
		w.Field("verdict", "%s", verdictLine(im.Verdict))
		if im.MemoryLimit > 0 {
			w.Field("memory", "at most %s", display.Size(im.MemoryLimit))
		}
		w.Field("deadline", "%s", im.Deadline)
		if s := im.Served; s != nil {
			w.Field("served", "on %s: %d requests at once, %d waiting, bodies up to %s", s.Address, s.Concurrency, s.Queue, display.Size(s.Body))
		}
		im.Grant.text(w)
		if i == 0 {
			w.List("drift", r.Drift)
		}
	}
	if r.By != "" {
		w.Line("judged by %s", r.By)
	}
}

func (g *grantInfo) text(w *display.Writer) {
	switch {
	case g == nil:
		return
	case len(g.Decisions) == 0:
		w.Field("grant", "none asked for")
	}
	for i, d := range g.Decisions {
		name := ""
		if i == 0 {
			name = "grant"
		}
		w.Field(name, "%s", decisionText(d))
	}
	for _, h := range g.Holes {
		verb := "less"
		if h.DryRun {
			verb = "counted"
		}
		w.Field("", "%-8s %s, by the rule %s", verb, h.Capability, h.Rule)
	}
}

func decisionText(d capability.Decision) string {
	switch {
	case !d.Allowed:
		return fmt.Sprintf("denied   %s: %s", d.Capability, d.Reason)
	case len(d.As) > 0:
		return fmt.Sprintf("granted  %s of %s, by %s", strings.Join(d.As, ", "), d.Capability, ruleText(d.Rule))
	}
	return fmt.Sprintf("granted  %s, by %s", d.Capability, ruleText(d.Rule))
}

// ruleText names what granted something.
func ruleText(rule string) string {
	switch rule {
	case capability.RuleDefault, capability.RuleTrust:
		return "the trust level"
	case capability.RuleOperator:
		return "the flags of this run"
	}
	return "the rule " + rule
}

func formText(f oci.Form) string {
	switch f {
	case oci.FormWASM:
		return "WASM agent"
	case oci.FormContainer:
		return "container agent"
	case oci.FormDual:
		return "container agent and WASM agent"
	case oci.FormPlainWASM:
		return "WASM without an agent manifest"
	case oci.FormImage:
		return "container image"
	}
	return "not runnable"
}

func verdictLine(vd *verifier.Verdict) string {
	switch {
	case !vd.Allowed:
		return vd.Line()
	case vd.Developer:
		return "no policy is configured, so nobody is trusted"
	case vd.Scope != "":
		return fmt.Sprintf("allowed as %s in scope %s", vd.Trust, vd.Scope)
	}
	return fmt.Sprintf("allowed as %s, outside all scopes", vd.Trust)
}

func memoryText(m *moduleInfo) string {
	if m.MemoryMax == 0 {
		return "memory from " + display.Size(int64(m.MemoryMin))
	}
	return fmt.Sprintf("memory %s to %s", display.Size(int64(m.MemoryMin)), display.Size(int64(m.MemoryMax)))
}

// importsText counts imports by module, and names those of our own ABI.
func importsText(imports []string) string {
	var order, named []string
	count := map[string]int{}
	for _, i := range imports {
		mod, name, _ := strings.Cut(i, ".")
		if count[mod] == 0 {
			order = append(order, mod)
		}
		count[mod]++
		if mod == module.ModuleMentat {
			named = append(named, name)
		}
	}
	var parts []string
	for _, mod := range order {
		text := fmt.Sprintf("%s %d", mod, count[mod])
		if mod == module.ModuleMentat {
			text += " (" + strings.Join(named, " ") + ")"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func (a *app) inspectCmd() *cobra.Command {
	var trust trustFlags
	var f remoteFlags
	var as string
	cmd := &cobra.Command{
		Use:   "inspect TARGET",
		Short: "Show what an agent is, who signed it and what it may do",
		Long: `Show an agent: its parts and their sizes, the module's entry and imports, who
signed it, what the policy says to that, and the effective grant: what the
manifest asks for and the policy allows. A container or mentatctl run must give
directories and variables besides.

A target is an agent's directory or manifest.yaml, an OCI layout, or an image
reference. inspect ends with 0 also for what the policy refuses.`,
		Example: `  mentatctl inspect hello
  mentatctl inspect --policy policy.yaml registry.example.com/agents/hello:0.1.0`,
		Args: wantArgs(1, 1, "one directory, layout or reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := trust.check(cmd); err != nil {
				return err
			}
			r, err := a.inspect(cmd.Context(), args[0], as, &trust, &f)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	trust.add(cmd)
	trust.addRoots(cmd)
	trust.addCapabilities(cmd)
	f.add(cmd)
	cmd.Flags().StringVar(&as, "as", "", "judge a local artifact as if it were published as this `REFERENCE`")
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

func (a *app) inspect(ctx context.Context, name, as string, trust *trustFlags, f *remoteFlags) (*inspectResult, error) {
	j, err := a.verifier(ctx, trust)
	if err != nil {
		return nil, err
	}
	progress := a.newProgress()
	defer progress.Close()
	t, err := a.open(ctx, name, f, progress)
	if err != nil {
		return nil, err
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	r := &inspectResult{Header: display.Head("inspect"), Target: name, Root: t.root.Digest, By: j.by}
	for _, one := range found {
		im, err := inspectOne(ctx, t, one, j, t.judgedAs(as))
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, *im)
	}
	if t.dir != nil {
		r.Drift, err = t.dir.Drift(found[0].Artifact)
	}
	return r, err
}

func inspectOne(ctx context.Context, t *target, one fetchedArtifact, j *judgement, ref string) (*inspected, error) {
	in, err := t.input(ctx, j, ref, one)
	if err != nil {
		return nil, err
	}
	im := &inspected{
		Digest: one.Digest, Form: one.Form, Platform: one.platform, Size: artifactSize(one.Artifact),
		Verdict: j.Verify(ctx, in),
		Blobs:   []blobInfo{{one.Manifest.Config.MediaType, one.Manifest.Config.Digest, one.Manifest.Config.Size}},
	}
	for _, l := range one.Manifest.Layers {
		im.Blobs = append(im.Blobs, blobInfo{l.MediaType, l.Digest, l.Size})
	}
	if att, err := verifier.ReadAttestation(one.Raw); err == nil {
		im.Signed = &signatureInfo{
			Subject: att.Signer.Subject, Issuer: att.Signer.Issuer, Algorithm: att.Algorithm, Time: att.Timestamp,
			NotAfter: att.Chain[0].NotAfter.UTC(), AttestationNotAfter: att.NotAfter, BoundTo: att.Subject.Repository,
			Email: strings.Join(att.Chain[0].EmailAddresses, ", "),
		}
		for i, leaf := range att.Countersigners() {
			c := att.Countersignatures[i]
			im.Signed.Countersigned = append(im.Signed.Countersigned, signatureInfo{
				Subject: c.Signer.Subject, Issuer: c.Signer.Issuer, Algorithm: c.Algorithm, Time: c.Timestamp,
				NotAfter: leaf.NotAfter.UTC(), Email: strings.Join(leaf.EmailAddresses, ", "),
			})
		}
	}
	if one.Module != nil {
		info, err := inspectModule(ctx, t.fetcher, one.Artifact)
		if err != nil {
			return nil, err
		}
		im.Module = info
	}
	if one.Agent == nil {
		return im, nil
	}
	im.ID, im.Version, im.Description, im.Runtime = one.Agent.ID, one.Agent.Version, one.Agent.Description, one.Agent.Runtime
	im.MemoryLimit = one.Agent.MemoryLimit()
	if one.Agent.Serving() {
		s := one.Agent.Served("")
		im.Served = &servedInfo{s.Listen, s.Concurrent, s.Queue, one.Agent.BodyLimit()}
	}
	if d := one.Agent.Deadline(); d > 0 {
		im.Deadline = d.String()
	}
	if one.Agent.WASMAgent() || one.Module != nil {
		im.Grant = grantOf(one.Agent, im.Verdict, j, ref)
	}
	return im, nil
}

func inspectModule(ctx context.Context, f oci.Fetcher, artifact *oci.Artifact) (*moduleInfo, error) {
	data, err := oci.ReadBlob(ctx, f, *artifact.Module, limits.ModuleBytes)
	if err != nil {
		return nil, err
	}
	info, err := module.Inspect(data)
	if err != nil {
		return nil, err
	}
	m := &moduleInfo{Digest: artifact.Module.Digest, Size: artifact.Module.Size, Entry: info.Entry, Globals: info.Globals,
		MemoryMin: info.MemoryMinPages * wasmPage, MemoryMax: info.MemoryMaxPages * wasmPage, Imports: importNames(info)}
	return m, nil
}

const wasmPage = 64 * limits.KiB

func importNames(info *module.Info) []string {
	names := []string{}
	for _, i := range info.Imports {
		names = append(names, i.Module+"."+i.Name)
	}
	return names
}

// grantOf is what an agent may do at its trust level, as far as manifest and
// policy decide it.
func grantOf(agent *manifest.Manifest, vd *verifier.Verdict, j *judgement, ref string) *grantInfo {
	grant := j.effective(agent, string(vd.Trust), ref)
	// Not null in JSON, where nothing is granted or was asked for.
	return &grantInfo{
		Trust:     vd.Trust,
		Granted:   grant.Capabilities(),
		Holes:     grant.Holes,
		Decisions: append([]capability.Decision{}, grant.Decisions...),
	}
}

// effective is the grant of an agent that is given nothing yet.
func (j *judgement) effective(agent *manifest.Manifest, trust, ref string) capability.Grant {
	r := capability.Request{Manifest: agent, Trust: trust, Serving: j.capabilities.Serving()}
	if agent != nil {
		r.Rules = j.capabilities.Rules(policy.Subject{Agent: agent.ID, Trust: trust, Reference: ref})
	}
	return capability.Effective(r)
}
