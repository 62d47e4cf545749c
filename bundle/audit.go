package bundle

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// auditMark is the file of the private directory that tells for as long as the
// container is there whose records are whose.
const auditMark = "audit.key"

// note collects what a preparation decides, and records it. Ordinary images of
// which no policy says anything are not recorded: nothing was decided.
type note struct {
	*Preparer
	id, namespace string
	began         time.Time
	spools        audit.Spools
	image         string
	artifact      *oci.Artifact
	verdict       *verifier.Verdict
}

func (p *Preparer) note(ctx context.Context, req Request) *note {
	namespace, _ := namespaces.Namespace(ctx)
	return &note{Preparer: p, id: req.ID, namespace: namespace, began: time.Now(), spools: audit.Spools(p.Config.Audit.Spool)}
}

// judged takes a verdict down. Of several images the last is the one that runs,
// unless one was refused.
func (n *note) judged(a *oci.Artifact, v *verifier.Verdict) { n.artifact, n.verdict = a, v }

// agent is the record's word for whose image it is, as far as that was verified.
func (n *note) agent() audit.Agent {
	var a audit.Agent
	if n.artifact != nil {
		if n.artifact.Module != nil {
			a.Runtime = "wasm"
		}
		if m := n.artifact.Agent; m != nil {
			a.ID, a.Version, a.Runtime = m.ID, m.Version, m.Runtime
		}
	}
	if v := n.verdict; v != nil {
		a.Attestation.TrustLevel = string(v.Trust)
		if v.Signer != nil && v.Allowed && len(v.Overlooked) == 0 {
			a.Attestation.Verified, a.Attestation.Signer = true, v.Signer.Email
		}
	}
	return a
}

func (n *note) admission(result string) *audit.Admission {
	a := &audit.Admission{
		Timestamp: audit.At(n.Clock()), EventType: audit.EventAdmission, Agent: n.agent(), InstanceID: n.id, Namespace: n.namespace,
		Image: audit.Clean(n.image), Result: result, Microseconds: time.Since(n.began).Microseconds(),
	}
	if n.artifact != nil {
		a.Digest = n.artifact.Digest.String()
	}
	if n.verdict != nil {
		a.Policy, a.Signature = n.verdict.Scope, n.verdict.Signature
		if p := n.verdict.Pending; p != nil && result == audit.Allowed {
			a.Pending = string(p.Reason)
		}
		for _, o := range n.verdict.Overlooked {
			a.Overlooked = append(a.Overlooked, string(o.Level)+" "+o.Check+" "+string(o.Reason))
		}
		if n.verdict.Signer != nil {
			a.SignerOrg = organisation(n.verdict.Signer.Subject)
		}
		for _, email := range n.verdict.Counted() {
			a.Countersigners = append(a.Countersigners, audit.Clean(email))
		}
	}
	return a
}

var orgPart = regexp.MustCompile(`(?:^|[^\\],)O=([^,+\\]*)`)

// organisation is the O of a distinguished name, as Go prints it.
func organisation(subject string) string {
	m := orgPart.FindStringSubmatch(subject)
	if m == nil {
		return ""
	}
	return audit.Clean(m[1])
}

// refused records a refusal. That it cannot be recorded is no reason not to
// refuse.
func (n *note) refused(err error) {
	a := n.admission(audit.Denied)
	a.Reason, a.Message = string(fault.ReasonOf(err)), audit.Clean(err.Error())
	_ = n.record(a)
}

// container records that a container may run, where a policy had a word in it,
// and gives the bundle its own specification back.
func (n *note) container(result *Result, spec *bundleSpec) (*Result, error) {
	decided := n.artifact != nil && n.artifact.Agent != nil || n.verdict != nil && (n.verdict.Scope != "" || n.verdict.SignedDigest != "" || n.verdict.Pending != nil)
	if decided {
		if err := n.required(n.record(n.admission(audit.Allowed))); err != nil {
			return nil, err
		}
	}
	return result, spec.restore()
}

// run records that an agent may run and what it was granted, and makes room for
// more.
func (n *note) run(g *capability.Grant) error {
	if n == nil {
		return nil
	}
	records := []any{n.admission(audit.Allowed)}
	for _, d := range g.Decisions {
		records = append(records, n.decision(d)...)
	}
	if err := n.required(n.record(records...)); err != nil {
		return err
	}
	if err := n.spools.Prune(n.Clock()); err != nil {
		n.Log.Warn("old audit records not removed", "error", err)
	}
	return nil
}

// decision is what was decided about one wish: the records of that, and of each
// rule that only counts.
func (n *note) decision(d capability.Decision) []any {
	one := audit.Decision{
		Timestamp: audit.At(n.Clock()), EventType: audit.EventDecision, Agent: n.agent(), InstanceID: n.id,
		Capability: d.Capability, Operation: "grant", Policy: d.Rule, Result: audit.Denied, Reason: d.Reason,
	}
	if d.Allowed {
		one.Result = audit.Allowed
		if len(d.As) > 0 {
			one.Reason = audit.Clean("only " + strings.Join(d.As, ", ") + " of it")
		}
	}
	records := []any{&one}
	for _, rule := range d.DryRun {
		counted := one
		counted.Policy, counted.Result, counted.Reason = rule, audit.DryRun, "the rule would deny a part of it"
		records = append(records, &counted)
	}
	return records
}

// record writes; its failure is logged.
func (n *note) record(records ...any) error {
	err := n.spools.Make()
	if err == nil {
		err = n.spools.Append(records...)
	}
	if err != nil {
		n.Log.Warn("not recorded", "container", n.id, "error", err)
	}
	return err
}

// required makes a record that could not be written a refusal where the node
// wants that.
func (n *note) required(err error) error {
	if err == nil || !n.Config.Audit.Required {
		return nil
	}
	return fault.Wrap(err, fault.Unavailable, n.id, "the node requires a record of every agent, and it cannot be written")
}

// provideAudit makes a directory for the run's records and mounts it. It is the
// one thing of a plan that is made at once: what cannot be made is not mounted. A
// bundle that was prepared before keeps its own.
func (r *wasmRun) provideAudit(spec *specs.Spec, doc *hostdoc.Document) error {
	if r.note == nil {
		return nil
	}
	o, err := ownersOf(spec)
	if err != nil {
		return err
	}
	identity := audit.Identity{
		Container: r.id, Namespace: r.note.namespace, Agent: r.note.agent(),
		Reference: audit.Clean(r.reference), Manifest: doc.Agent.Manifest, Module: doc.Agent.Module,
		Mark: filepath.Join(r.dir, privateDir, auditMark), Created: audit.At(r.note.Clock()),
	}
	identity.Agent.ID, identity.Agent.Runtime = doc.Agent.ID, "wasm"
	made := ""
	if err = r.note.spools.Make(); err == nil {
		if identity.Key = r.preparedBefore(identity.Mark); identity.Key != "" {
			err = r.note.spools.Replace(identity)
		} else {
			identity.Key = audit.NewKey(r.note.Clock())
			made = identity.Key
			err = r.note.spools.Add(identity, o.uid, o.gid)
		}
	}
	if err != nil {
		r.note.Log.Warn("the run is not recorded", "container", r.id, "error", err)
		return r.note.required(err)
	}
	r.provision.auditKey, r.provision.auditMade = identity.Key, made
	r.provision.dirs = append(r.provision.dirs, inside(hostdoc.AuditDir))
	r.provision.mounts = append(r.provision.mounts, bind(r.note.spools.In(identity.Key), hostdoc.AuditDir, "rw", "noexec"))
	doc.Audit = &hostdoc.Audit{Dir: hostdoc.AuditDir, Bytes: limits.AuditRunBytes}
	return nil
}

// preparedBefore is the key of an earlier preparation of the bundle whose
// directory is still there, "" if there was none.
func (r *wasmRun) preparedBefore(mark string) string {
	data, err := limits.ReadFile(mark, limits.AuditLineBytes)
	if err != nil {
		return ""
	}
	if _, err := r.note.spools.Identity(string(data)); err != nil {
		return ""
	}
	return string(data)
}

// dropAudit takes back what [wasmRun.provideAudit] made.
func (r *wasmRun) dropAudit() error {
	if r.provision.auditMade == "" {
		return nil
	}
	return r.note.spools.Remove(r.provision.auditMade)
}
