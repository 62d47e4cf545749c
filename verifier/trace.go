package verifier

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/oci"
)

// Trace is a judgement step by step, with what each step looked at. Verify fills
// it on its way, when [Input.Trace] asks for one: there is no second evaluation
// that could say something else than the verdict.
type Trace struct {
	// At is the time that was judged by.
	At time.Time `json:"at"`
	// Rules is [Verifier.Rules], empty in developer mode.
	Rules digest.Digest `json:"rules,omitempty"`
	// Steps are all steps of a judgement, in order, whether they were reached or
	// not. The last one is the outcome: it failed if and only if the verdict is no.
	Steps []Step `json:"steps"`
	// Turns are moments, later than At, at which the passing of time alone may
	// change the verdict, as far as the judgement came, sorted.
	Turns []Turn `json:"turns,omitempty"`
}

// Outcome is how a step came out.
type Outcome string

// The outcomes of steps.
const (
	Passed Outcome = "passed"
	Failed Outcome = "failed"
	// LetBy is a step that failed and that the scope's level overlooked.
	LetBy Outcome = "overlooked"
	// NotReached is a step after the one that decided.
	NotReached Outcome = "not-reached"
	// NotAsked is a step that the judgement did not depend on.
	NotAsked Outcome = "not-asked"
)

// Names of steps. The steps of a judgement are these, in this order.
const (
	StepDigest      = "digest"      // the bytes are what their digest says
	StepAttestation = "attestation" // found, canonical, well formed
	StepSignature   = "signature"   // the first certificate's key signed it
	StepAgent       = "agent"       // it is for this id and version
	StepReleases    = "releases"    // no minimum version and no release list forbids it
	StepScope       = "scope"       // which statement of the policy decides
	StepNotation    = "notation"    // a Notary Project signature, where there is no attestation
	StepTimestamp   = "timestamp"   // an authority of the scope's vouches for the time
	StepChain       = "chain"       // link by link to a root of the scope's stores
	StepIdentity    = "identity"    // who signed is one whom the scope names
	StepValidity    = "validity"    // of the attestation itself
	StepRevocation  = "revocation"  // of each certificate below the root
	StepBinding     = "binding"     // it is for this reference
	StepSigners     = "signers"     // as many people as the scope requires countersigned it
	StepTrust       = "trust"       // the level that the policy gives
	StepOutcome     = "outcome"     // the verdict
)

var steps = []string{
	StepDigest, StepAttestation, StepSignature, StepAgent, StepReleases, StepScope, StepNotation, StepTimestamp, StepChain,
	StepIdentity, StepValidity, StepRevocation, StepBinding, StepSigners, StepTrust, StepOutcome,
}

// Step is one step, or a part of one.
type Step struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	// Reason is set for what failed.
	Reason   fault.Reason `json:"reason,omitempty"`
	Detail   string       `json:"detail,omitempty"`
	Evidence []Evidence   `json:"evidence,omitempty"`
	Parts    []Step       `json:"parts,omitempty"`
}

// Evidence is one thing that a step looked at.
type Evidence struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Turn is a moment that matters to the verdict.
type Turn struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// Refuse makes a caller's own demand, which goes beyond the verdict, the outcome
// of an explanation.
func (t *Trace) Refuse(err error) {
	last := &t.Steps[len(t.Steps)-1]
	last.Outcome, last.Reason, last.Detail = Failed, fault.ReasonOf(err), fault.OneLine(err.Error())
}

// tracer collects a trace; a nil one collects nothing. What is noted belongs to
// the next step that ends.
type tracer struct {
	trace    *Trace
	renewed  bool // revocation data and release lists never are due
	done     map[string]Step
	evidence []Evidence
	parts    []Step
}

func newTracer(to *Trace, at time.Time, rules digest.Digest) *tracer {
	if to == nil {
		return nil
	}
	*to = Trace{At: at.UTC(), Rules: rules}
	return &tracer{trace: to, done: map[string]Step{}}
}

// on tells whether evidence is wanted that costs something to make.
func (t *tracer) on() bool { return t != nil }

// note adds evidence; an empty value is none.
func (t *tracer) note(name, format string, args ...any) {
	if t == nil {
		return
	}
	if value := fault.OneLine(fmt.Sprintf(format, args...)); value != "" {
		t.evidence = append(t.evidence, Evidence{name, value})
	}
}

// part ends a part of a step with the evidence noted since the last one, and
// passes its error on.
func (t *tracer) part(name string, err error) error {
	if t != nil {
		t.parts = append(t.parts, t.take(name, err, ""))
	}
	return err
}

// group makes one part of all parts that judge ends, and passes its error on.
func (t *tracer) group(name string, judge func() error) error {
	if t == nil {
		return judge()
	}
	outer, evidence := t.parts, t.evidence
	t.parts, t.evidence = nil, nil
	err := judge()
	s := t.take(name, err, "")
	s.Parts = t.parts
	t.parts, t.evidence = append(outer, s), evidence
	return err
}

// unneeded says of the parts that failed that the step does not depend on them.
func (t *tracer) unneeded() {
	if t == nil {
		return
	}
	for i := range t.parts {
		if t.parts[i].Outcome == Failed {
			t.parts[i].Outcome = NotAsked
		}
	}
}

// end ends a step.
func (t *tracer) end(name string, err error, detail string) {
	if t == nil {
		return
	}
	s := t.take(name, err, detail)
	before := t.done[name] // an absent attestation comes up again at the scope
	s.Evidence, s.Parts = append(before.Evidence, s.Evidence...), append(before.Parts, t.parts...)
	t.done[name], t.parts = s, nil
}

func (t *tracer) take(name string, err error, detail string) Step {
	s := Step{Name: name, Outcome: Passed, Detail: fault.OneLine(detail), Evidence: t.evidence}
	if err != nil {
		s.Outcome, s.Reason, s.Detail = Failed, fault.ReasonOf(err), fault.OneLine(err.Error())
	}
	t.evidence = nil
	return s
}

// overlooked ends a step that failed and was let by.
func (t *tracer) overlooked(name string, o Overlooked) {
	if t == nil {
		return
	}
	t.note("overlooked", "the scope is at the level %s", o.Level)
	t.end(name, nil, o.Message)
	s := t.done[name]
	s.Outcome, s.Reason = LetBy, o.Reason
	t.done[name] = s
}

// absent ends a step that found nothing to check.
func (t *tracer) absent(name, detail string) {
	if t == nil {
		return
	}
	t.unneeded()
	t.end(name, nil, detail)
	s := t.done[name]
	s.Outcome = NotAsked
	t.done[name] = s
}

// branch collects aside.
func (t *tracer) branch() *tracer {
	if t == nil {
		return nil
	}
	return newTracer(&Trace{}, t.trace.At, t.trace.Rules)
}

// merge notes what a branch came to as a part of the next step that ends. Its turns
// count, whatever it came to.
func (t *tracer) merge(b *tracer, name string, e Envelope, err error) {
	if t == nil {
		return
	}
	t.trace.Turns = append(t.trace.Turns, b.trace.Turns...)
	t.note("type", "%s", e.MediaType)
	t.note("envelope", "%d bytes, %s", len(e.Data), e.Digest())
	part := t.take(name, err, "counts")
	for _, step := range steps {
		if s, ok := b.done[step]; ok {
			part.Parts = append(part.Parts, s)
		}
	}
	t.parts = append(t.parts, part)
}

// adopt takes the steps of a branch for its own.
func (t *tracer) adopt(b *tracer) {
	if t != nil {
		maps.Copy(t.done, b.done)
	}
}

// turn notes a moment at which the verdict may change.
func (t *tracer) turn(at time.Time, format string, args ...any) {
	if t == nil || !at.After(t.trace.At) {
		return
	}
	t.trace.Turns = append(t.trace.Turns, Turn{at.UTC(), fault.OneLine(fmt.Sprintf(format, args...))})
}

// due notes such a moment of revocation data or a release list, which a new one
// takes away.
func (t *tracer) due(at time.Time, format string, args ...any) {
	if t != nil && !t.renewed {
		t.turn(at, format, args...)
	}
}

// renew has revocation data and release lists be renewed for ever.
func (t *tracer) renew() {
	if t != nil {
		t.renewed = true
	}
}

// finish lays the steps out in their order, with those that were not reached.
func (t *tracer) finish(vd *Verdict) {
	if t == nil {
		return
	}
	t.evidence, t.parts = nil, nil
	t.note("trust level", "%s", vd.Trust)
	for _, w := range vd.Warnings {
		t.note("warning", "%s", w)
	}
	t.end(StepOutcome, vd.Err, vd.Line())
	rest := NotAsked
	for _, name := range steps {
		s, ok := t.done[name]
		if !ok {
			s = Step{Name: name, Outcome: rest}
		}
		if s.Outcome == Failed {
			rest = NotReached
		}
		t.trace.Steps = append(t.trace.Steps, s)
	}
	slices.SortStableFunc(t.trace.Turns, func(a, b Turn) int { return a.At.Compare(b.At) })
}

func (t *tracer) artifact(a *oci.Artifact) {
	if t.on() {
		t.note("manifest", "%d bytes, %s", len(a.Raw), a.Digest)
		t.note("form", "%s", a.Form)
	}
}

func (t *tracer) block(a *Attestation) {
	if !t.on() {
		return
	}
	t.note("format", "%s", a.Version)
	t.note("signer", "%s", a.Signer.Subject)
	t.note("signed at", "%s, as the signer says", a.Timestamp)
	t.note("not after", "%s", a.NotAfter)
	t.note("subject", "%s %s", a.Subject.ID, a.Subject.Version)
	t.note("repository", "%s", a.Subject.Repository)
	t.note("certificates", "%d", len(a.Chain))
	for _, c := range a.Countersignatures {
		t.note("countersigner", "%s, at %s, as the countersigner says", c.Signer.Subject, c.Timestamp)
	}
}

func (t *tracer) signature(a *Attestation) {
	if !t.on() {
		return
	}
	t.note("algorithm", "%s", a.Algorithm)
	t.note("key", "%s", keyText(a.Chain[0]))
	t.note("signed bytes", "%d bytes, %s", len(a.SignedBytes), a.SignedDigest)
}

func (t *tracer) certificate(c *x509.Certificate) {
	if !t.on() {
		return
	}
	t.note("subject", "%s", c.Subject)
	t.note("issuer", "%s", c.Issuer)
	t.note("serial", "%x", c.SerialNumber)
	t.note("fingerprint", "%s", fingerprint(c))
	t.note("key", "%s", keyText(c))
	t.note("valid", "%s to %s", stampText(c.NotBefore), stampText(c.NotAfter))
	t.turn(c.NotBefore, "%s becomes valid", certName(c))
	// The last second counts: what is after it does not.
	t.turn(c.NotAfter.Add(time.Nanosecond), "%s expires", certName(c))
}

func (t *tracer) leafUsage(leaf *x509.Certificate) {
	if !t.on() {
		return
	}
	t.note("certificate authority", "%t", leaf.IsCA)
	t.note("digital signature", "%t", leaf.KeyUsage&x509.KeyUsageDigitalSignature != 0)
	t.note("code signing", "%t", slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning))
}

func (t *tracer) scope(s *scope) {
	if !t.on() {
		return
	}
	patterns := make([]string, len(s.patterns))
	for i, p := range s.patterns {
		patterns[i] = p.String()
	}
	t.note("matches", "%s", strings.Join(patterns, ", "))
	t.note("stores", "%s", strings.Join(s.stores, ", "))
	for _, r := range s.required {
		t.note("required signers", "%s", r)
	}
	t.note("binding", "%s", s.binding)
	t.note("level", "%s", s.level)
	if s.notation {
		t.note("notation", "%s", notationAccept)
	}
	t.note("unsigned agents", "%s", allowOrDeny(s.unsignedAgents))
	t.note("unsigned containers", "%s", allowOrDeny(s.unsignedContainers))
}

func (t *tracer) identities(leaf *x509.Certificate, s *scope) {
	if !t.on() {
		return
	}
	t.note("in the certificate", "%s", strings.Join(leaf.EmailAddresses, ", "))
	t.note("of the scope", "%s", s.identities)
}

func (t *tracer) list(ix *CRLIndex, now time.Time, grace time.Duration) {
	if !t.on() || ix == nil {
		return
	}
	t.note("list", "number %s of %s", ix.head.Number, ix.head.Issuer)
	t.note("from", "%s%s", ix.head.Source.File, ix.head.Source.URL)
	t.note("made", "%s, %s ago", stampText(ix.ThisUpdate()), now.Sub(ix.ThisUpdate()).Round(time.Second))
	t.note("next", "%s", stampText(ix.NextUpdate()))
	t.note("grace", "%s", grace)
	t.note("revoked", "%d certificates", ix.Len())
	t.due(ix.ThisUpdate().Add(-clockSkew), "the revocation list of %q is no longer from the future", ix.head.Issuer)
	t.due(ix.NextUpdate().Add(time.Nanosecond), "the revocation list of %q is due, unless a new one came", ix.head.Issuer)
	t.due(ix.NextUpdate().Add(grace+time.Nanosecond), "the revocation list of %q is past its grace, unless a new one came", ix.head.Issuer)
}

func (t *tracer) stamp(s *TimeStamp) {
	if !t.on() {
		return
	}
	t.note("time", "%s, give or take %s", stampText(s.Time), s.Accuracy)
	t.turn(s.Time.Add(-clockSkew), "the time stamp is no longer from the future")
	for i, c := range s.Path {
		t.certificate(c)
		_ = t.part(fmt.Sprintf("certificate %d of the authority", i), nil)
	}
}

func (t *tracer) answer(a *OCSPAnswer, c *x509.Certificate, grace time.Duration) {
	if !t.on() {
		return
	}
	t.note("OCSP answer", "made %s, next %s", stampText(a.This), stampText(a.Next))
	if a.responder != nil {
		t.note("responder", "%s, serial %x", a.responder.Subject, a.responder.SerialNumber)
		t.due(a.responder.NotAfter.Add(time.Nanosecond), "%s expires", certName(a.responder))
	}
	t.due(a.Next.Add(time.Nanosecond), "the OCSP answer about %q is due, unless a new one came", c.Subject)
	t.due(a.Next.Add(grace+time.Nanosecond), "the OCSP answer about %q is past its grace, unless a new one came", c.Subject)
}

func keyText(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA, %d bits", key.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA, " + key.Curve.Params().Name
	}
	return fmt.Sprintf("%T", c.PublicKey)
}

func stampText(t time.Time) string { return t.UTC().Format(timeLayout) }

func allowOrDeny(b bool) string {
	if b {
		return allow
	}
	return Deny
}

// String lists the identities for people.
func (ids identities) String() string {
	if ids.any {
		return anyIdentity
	}
	var list []string
	for email := range ids.emails {
		list = append(list, email)
	}
	slices.Sort(list)
	for _, p := range ids.patterns {
		list = append(list, p.String())
	}
	return strings.Join(list, ", ")
}
