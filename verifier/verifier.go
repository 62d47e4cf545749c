package verifier

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
)

// Verifier decides whether artifacts may run. It is safe for use from several
// goroutines.
type Verifier struct {
	policy     *Policy
	stores     map[string]*Store
	roots      func() (pools, error)
	stamps     StampReader
	envelopes  EnvelopeReader
	revocation RevocationSource
	seen       SeenTime
	state      string
	listHint   string
	looking    bool // at another time than now: nothing is remembered
	// renewed is the time that revocation data and release lists are held to, where
	// it is another than the clock's.
	renewed func() time.Time
	clock   func() time.Time
	rules   digest.Digest
}

// Config is what a verifier is made of.
type Config struct {
	// Policy is nil in developer mode: nothing is trusted, and what is intact or
	// without attestation runs as [Untrusted].
	Policy *Policy
	// Stores must hold every store that the policy's scopes name.
	Stores map[string]*Store
	// Revocation may be nil in developer mode only.
	Revocation RevocationSource
	// Seen may be nil; then a policy's enforcement date counts as past.
	Seen SeenTime
	// State is the directory in which release lists are remembered; required for a
	// policy that names some.
	State string
	// Stamps reads time stamps. Without it an attestation that carries one is
	// refused, and so is a policy that names time stamp authorities.
	Stamps StampReader
	// Envelopes reads Notary Project signatures. Without it none counts.
	Envelopes EnvelopeReader
	// ListHint says what to do where no revocation list of an issuer is at hand; empty
	// where the policy can name one.
	ListHint string
	// Clock is required.
	Clock func() time.Time
}

// policyListHint is [Config.ListHint] where there is a policy.
const policyListHint = "name its source in the policy under revocation.crls, and refresh"

// pools are the roots that count in a scope, by its name.
type pools struct {
	signers, stamps map[string]*x509.CertPool
}

// New makes a verifier. Reason of its errors: [fault.PolicyInvalid].
func New(c Config) (*Verifier, error) {
	if c.Clock == nil {
		return nil, fault.New(fault.Internal, "verifier", "has no clock")
	}
	v := &Verifier{policy: c.Policy, stores: c.Stores, stamps: c.Stamps, envelopes: c.Envelopes, revocation: c.Revocation, seen: c.Seen, state: c.State, listHint: cmp.Or(c.ListHint, policyListHint), clock: c.Clock}
	if c.Policy == nil {
		return v, nil
	}
	if c.Revocation == nil {
		return nil, fault.New(fault.PolicyInvalid, "verifier", "has a policy but no revocation data")
	}
	if len(c.Policy.releases) > 0 && c.State == "" {
		return nil, fault.New(fault.PolicyInvalid, "verifier", "has release lists and no directory to remember them in")
	}
	rules := sha256.New()
	fmt.Fprintf(rules, "%s\x00", c.Policy.digest)
	for _, s := range c.Policy.scopes {
		if len(s.stampStores) > 0 && c.Stamps == nil {
			return nil, fault.New(fault.PolicyInvalid, "scope "+s.name, "names time stamp authorities, and this program does not evaluate time stamps")
		}
		for _, name := range slices.Concat(s.stores, s.stampStores) {
			store := c.Stores[name]
			if store == nil {
				return nil, fault.New(fault.PolicyInvalid, "scope "+s.name, "names the trust store %q, which does not exist", name)
			}
			for _, root := range store.roots {
				fmt.Fprintf(rules, "%q %q %d %x\x00", s.name, name, len(root.Raw), root.Raw)
			}
		}
	}
	for _, r := range c.Policy.releases {
		for _, name := range r.stores {
			if c.Stores[name] == nil {
				return nil, fault.New(fault.PolicyInvalid, "release list "+r.name, "names the trust store %q, which does not exist", name)
			}
			for _, root := range c.Stores[name].roots {
				fmt.Fprintf(rules, "releases %q %d %x\x00", r.name, len(root.Raw), root.Raw)
			}
		}
	}
	v.roots = sync.OnceValues(v.pools)
	v.rules = digest.NewDigest(digest.SHA256, rules)
	return v, nil
}

// pools are the roots that each scope trusts. Their own signatures are checked
// here, when a chain is about to be held to them: that is dear, and a verdict that
// is remembered needs none of it.
func (v *Verifier) pools() (pools, error) {
	for _, store := range v.stores {
		for _, root := range store.roots {
			if err := root.CheckSignatureFrom(root); err != nil {
				return pools{}, fault.Wrap(notSelfSigned(root), fault.PolicyInvalid, "trust store "+store.name, "holds what is no root")
			}
		}
	}
	p := pools{signers: map[string]*x509.CertPool{}, stamps: map[string]*x509.CertPool{}}
	for _, s := range v.policy.scopes {
		p.signers[s.name] = v.pool(s.stores)
		p.stamps[s.name] = v.pool(s.stampStores)
	}
	return p, nil
}

func (v *Verifier) pool(stores []string) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, name := range stores {
		for _, root := range v.stores[name].roots {
			pool.AddCert(root)
		}
	}
	return pool
}

// Stores are the trust stores, by name.
func (v *Verifier) Stores() map[string]*Store { return v.stores }

// Open makes a verifier from a node's files. Without a configured policy it is
// in developer mode; a policy that is configured but missing, unreadable or
// invalid is an error with the reason [fault.PolicyInvalid], on which callers
// deny. stamps is what [Config] calls Stamps; with sets what else a program can do.
func Open(cfg nodeconfig.Verify, clock func() time.Time, stamps StampReader, with ...func(*Config)) (*Verifier, error) {
	if cfg.Policy == "" {
		return New(Config{Stamps: stamps, Clock: clock})
	}
	cfg = settled(cfg)
	p, err := LoadPolicy(cfg.Policy)
	if err != nil {
		return nil, err
	}
	stores, err := LoadStores(cfg.Trust, p)
	if err != nil {
		return nil, err
	}
	c := Config{Policy: p, Stores: stores, Stamps: stamps, Revocation: newDiskRevocation(cfg.State, p, clock), Seen: newDiskSeen(cfg.State, p), State: cfg.State, Clock: clock}
	for _, set := range with {
		set(&c)
	}
	v, err := New(c)
	if err == nil {
		// Every gate opens a verifier for every decision, so that the time is seen even
		// where nothing depends on it yet. Where it cannot be, a judgement says so.
		_, _, _ = v.Staging()
	}
	return v, err
}

// LoadPolicy reads and parses a policy file.
func LoadPolicy(path string) (*Policy, error) {
	data, err := limits.ReadFile(path, limits.PolicyBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, path, "cannot read the policy")
	}
	return ParsePolicy(path, data)
}

// Rules identifies the policy and the roots of its stores: two verifiers with
// the same rules judge alike, but for the clock and revocation data. It is empty
// in developer mode.
func (v *Verifier) Rules() digest.Digest { return v.rules }

// Now is the verifier's clock.
func (v *Verifier) Now() time.Time { return v.clock() }

// Policy is the verifier's policy, nil in developer mode.
func (v *Verifier) Policy() *Policy { return v.policy }

// Input is what is judged.
type Input struct {
	// Reference is the name the artifact goes by here; empty if unknown. It
	// decides the scope, and the attestation is bound to it. A digest in it is
	// not looked at: it may be an index's, and the caller fetched by it.
	Reference string
	// Where is where the artifact is, if that is not under Reference: what a hint has
	// to name.
	Where string
	// Artifact is nil, and Reference empty, for a container that was made without
	// an image. It is held to the rules for unsigned containers of unknown name.
	Artifact *oci.Artifact
	// Index is the digest of the index that led to the artifact, if one did. The
	// policy may exempt an image by it: it is the digest that people know.
	Index digest.Digest
	// Envelopes are the Notary Project signatures of the artifact that were found.
	// They matter where [Verifier.AsksEnvelopes] says so.
	Envelopes []Envelope
	// Trace, if there is one, is filled with the steps of the judgement.
	Trace *Trace
}

// Verify judges an artifact. The verdict is never nil; what cannot be judged is
// refused.
func (v *Verifier) Verify(ctx context.Context, in Input) *Verdict {
	j := judge{Verifier: v, in: in, now: v.clock(), verdict: &Verdict{
		Trust: Untrusted, Enforced: v.policy != nil, Developer: v.policy == nil,
	}}
	j.data = j.now
	j.trace = newTracer(in.Trace, j.now, v.rules)
	if v.renewed != nil {
		j.data = v.renewed()
		j.trace.renew()
	}
	defer func() { j.trace.finish(j.verdict) }()
	err := ctx.Err()
	switch {
	case err != nil:
		err = fault.Wrap(err, fault.Canceled, in.Reference, "not judged")
	case in.Artifact == nil:
		err = j.noImage()
	default:
		err = j.judge()
	}
	vd := j.verdict
	if err != nil {
		vd.Allowed, vd.Trust = false, Untrusted
		vd.Err, vd.Reason, vd.Message = err, fault.ReasonOf(err), fault.OneLine(err.Error())
		return vd
	}
	vd.Allowed = true
	if vd.Signer == nil {
		vd.Rests = Rests{} // without a signature there is nothing that was dear to check
	}
	return vd
}

// judge is one judgement under way.
type judge struct {
	*Verifier
	in      Input
	now     time.Time
	data    time.Time // what revocation data and release lists are held to
	verdict *Verdict
	scope   *scope
	name    imageref.Name
	trace   *tracer
}

// until says when the judgement may come out otherwise.
func (j *judge) until(t time.Time) {
	if r := &j.verdict.Rests; r.Until.IsZero() || t.Before(r.Until) {
		r.Until = t
	}
}

// check records the outcome of one check and passes its error on.
func (j *judge) check(name string, err error, format string, args ...any) error {
	detail := fmt.Sprintf(format, args...)
	if err != nil {
		detail = fault.OneLine(err.Error())
	}
	j.verdict.Checks = append(j.verdict.Checks, Check{Name: name, OK: err == nil, Detail: detail})
	j.trace.end(name, err, detail)
	return err
}

func (j *judge) warn(format string, args ...any) {
	j.verdict.Warnings = append(j.verdict.Warnings, fault.OneLine(fmt.Sprintf(format, args...)))
}

// noImage judges a container made from a bare root file system: there is
// nothing that could be verified. Of the scopes only one that covers everything
// covers it.
func (j *judge) noImage() error {
	const on = "container without an image"
	if j.in.Reference != "" {
		return fault.New(fault.Internal, j.in.Reference, "there is no artifact to judge")
	}
	if j.policy == nil {
		j.warn("no policy is configured: a container without an image runs as %s", Untrusted)
		return nil
	}
	j.scope = j.policy.scope(imageref.Name{})
	switch {
	case j.scope == nil && !j.policy.outside:
		return j.check("scope", fault.New(fault.PolicyDenied, on, "the policy denies images outside its scopes"), "")
	case j.scope == nil:
		return j.check("scope", nil, "without an image, as an ordinary image outside all scopes")
	}
	j.verdict.Scope = j.scope.name
	j.trace.scope(j.scope)
	if !j.scope.unsignedContainers {
		refusal := fault.New(fault.Unsigned, on, "cannot carry the attestation that the scope %q requires", j.scope.name)
		return j.check("scope", j.demand(refusal), "%s, which does not require attestations yet", j.scope.name)
	}
	return j.check("scope", nil, "%s, which allows unsigned containers", j.scope.name)
}

// judge goes from cheap to dear and from integrity to trust. What it returns nil
// for is allowed, at the trust level set in the verdict.
func (j *judge) judge() error {
	a := j.in.Artifact
	j.verdict.Digest = a.Digest
	if a.Agent != nil {
		j.verdict.Agent = a.Agent.ID + " " + a.Agent.Version
	}
	j.trace.artifact(a)
	if err := j.check("digest", checkDigest(a), "%s", a.Digest); err != nil {
		return err
	}
	att, err := j.integrity(a)
	if err != nil {
		return err
	}
	if j.policy == nil {
		j.developer(att)
		return nil
	}
	j.name = imageref.Parse(j.in.Reference)
	if j.name.Repository == "" && j.in.Reference != "" {
		j.warn("the reference %q cannot be read and counts as unknown", j.in.Reference)
	}
	if (j.policy.Exempt(a.Digest) || j.policy.Exempt(j.in.Index)) && !isWASM(a) {
		return j.check("scope", nil, "exempt by digest")
	}
	if err := j.releases(att, a); err != nil {
		return err
	}
	j.scope = j.policy.scope(j.name)
	if j.scope == nil {
		return j.check("scope", j.outside(a, att), "outside all scopes")
	}
	j.verdict.Scope = j.scope.name
	j.trace.scope(j.scope)
	_ = j.check("scope", nil, "%s", j.scope.name)
	if att == nil && j.scope.notation {
		if a.Agent == nil && !isWASM(a) {
			// What is an agent was held to the lists before. Whether there is a signature must
			// not matter: whoever takes it away would bring back what was withdrawn.
			if err := j.withdrawn(nil, a); err != nil {
				return j.check(StepReleases, err, "")
			}
		}
		if len(j.in.Envelopes) > 0 {
			return j.envelopes(a)
		}
	}
	if att == nil {
		return j.check("attestation", j.unsigned(a), "absent; allowed")
	}
	return j.trust(att, a)
}

func checkDigest(a *oci.Artifact) error {
	if a.Digest.Validate() != nil || a.Digest.Algorithm().FromBytes(a.Raw) != a.Digest {
		return fault.New(fault.DigestMismatch, string(a.Digest), "is not the digest of the manifest that was read")
	}
	return nil
}

// integrity reads the attestation and checks its signature; nil when there is
// none. It does so with and without a policy, inside and outside its scopes.
func (j *judge) integrity(a *oci.Artifact) (*Attestation, error) {
	att, err := readAttestation(a.Raw, j.trace)
	if fault.ReasonOf(err) == fault.Unsigned {
		j.trace.absent(StepAttestation, "absent")
		return nil, nil
	}
	if err := j.check("attestation", err, "well formed"); err != nil {
		return nil, err
	}
	j.verdict.SignedDigest = att.SignedDigest
	j.trace.signature(att)
	if err := j.check("signature", att.CheckSignature(), "%s over %s", att.Algorithm, att.SignedDigest); err != nil {
		return nil, err
	}
	j.verdict.NotAfter = att.notAfter
	if err := j.inspect(att); err != nil {
		return nil, j.check(StepTimestamp, err, "")
	}
	if a.Agent == nil {
		return att, nil
	}
	j.trace.note("attested", "%s %s", att.Subject.ID, att.Subject.Version)
	j.trace.note("agent manifest", "%s %s", a.Agent.ID, a.Agent.Version)
	if att.Subject.ID != a.Agent.ID || att.Subject.Version != a.Agent.Version {
		return nil, j.check(StepAgent, fault.New(fault.BindingMismatch, "attestation", "is for %s %s, the agent is %s %s",
			att.Subject.ID, att.Subject.Version, a.Agent.ID, a.Agent.Version), "")
	}
	return att, j.check(StepAgent, nil, "%s %s", a.Agent.ID, a.Agent.Version)
}

func (j *judge) developer(att *Attestation) {
	if att == nil {
		j.warn("no policy is configured: this unsigned image runs as %s", Untrusted)
		return
	}
	j.warn("no policy is configured: the signature of %q fits, but nobody is trusted; it runs as %s", att.Signer.Subject, Untrusted)
}

func (j *judge) outside(a *oci.Artifact, att *Attestation) error {
	if isWASM(a) && att == nil {
		err := j.demand(fault.New(fault.Unsigned, j.in.Reference, "is an unsigned WASM agent outside all scopes of the policy").
			WithHint("sign it and publish it under a reference that a scope covers"))
		if err != nil {
			return err
		}
	}
	switch {
	case isWASM(a) && att != nil:
		return fault.New(fault.PolicyDenied, j.in.Reference, "no scope of the policy covers it, so no trust store holds for it").
			WithHint("publish it under a reference that a scope covers")
	case !j.policy.outside:
		return fault.New(fault.PolicyDenied, j.in.Reference, "the policy denies images outside its scopes")
	}
	return nil
}

func (j *judge) unsigned(a *oci.Artifact) error {
	agent := isWASM(a) || a.Agent != nil
	if agent && !j.scope.unsignedAgents || !agent && !j.scope.unsignedContainers {
		if j.scope.notation {
			hint := "sign it, or pull it again if it is signed"
			if j.in.Index != "" && j.in.Index != a.Digest {
				// notation signs what a tag means, which is the index.
				hint = fmt.Sprintf("sign %s, the image itself: a signature over the index %s is none of its images; pull it again if it is signed", a.Digest, j.in.Index)
			}
			return j.demand(fault.New(fault.Unsigned, j.in.Reference, "carries no attestation, and no Notary Project signature of it is at hand; the scope %q requires one of them", j.scope.name).
				WithHint("%s", hint))
		}
		return j.demand(fault.New(fault.Unsigned, j.in.Reference, "carries no attestation, which the scope %q requires", j.scope.name).
			WithHint("sign it with mentatctl sign"))
	}
	j.warn("unsigned, allowed by the scope %q: runs as %s", j.scope.name, Untrusted)
	return nil
}

// trust holds an intact attestation to the scope.
func (j *judge) trust(att *Attestation, a *oci.Artifact) error {
	stamp, err := j.stamped(att)
	if err != nil {
		return j.check(StepTimestamp, err, "")
	}
	path, from, err := j.path(att, stamp)
	if err := j.hold(from, "chain", err, "%s", chainText(path)); err != nil {
		return err
	}
	if path == nil {
		return j.check("trust", nil, "%s", Untrusted)
	}
	leaf := path[0]
	if !att.notAfter.IsZero() {
		j.until(att.notAfter)
	}
	j.trace.identities(leaf, j.scope)
	email, err := j.identity(path)
	signer := newSigner(leaf, email)
	j.verdict.Signer = &signer
	named := err == nil
	if err := j.hold(fromAudit, "identity", err, "%s", email); err != nil {
		return err
	}
	j.attestationTimes(att)
	from, err = j.validity(att, leaf)
	if err := j.hold(from, "validity", err, "signed at %s", att.Timestamp); err != nil {
		return err
	}
	fresh, err := j.unrevoked(path, stamp)
	if err := j.hold(fromPermissive, "revocation", err, "%s", freshText(fresh)); err != nil {
		return err
	}
	j.trace.note("mode", "%s", j.scope.binding)
	j.trace.note("attested", "%s, version %s", att.Subject.Repository, att.Subject.Version)
	j.trace.note("reference", "%s", j.in.Reference)
	if j.scope.binding == bindRemap {
		j.trace.note("expected", "%s", j.scope.signedAs(j.name.Repository))
	}
	if err := j.hold(fromAudit, "binding", j.binding(att), "%s", j.scope.binding); err != nil {
		return err
	}
	if len(j.scope.required) > 0 {
		first := ""
		if named {
			first = email
		}
		ok, err := j.signers(att, first)
		if err := j.hold(fromAudit, StepSigners, err, "%s", requirements(j.scope.required)); err != nil {
			return err
		}
		fresh = fresh && ok
	}
	j.verdict.Trust = Signed
	switch {
	case len(j.verdict.Overlooked) > 0:
		j.verdict.Trust = j.lowered()
	case j.policy.publishers.has(email) && fresh:
		j.verdict.Trust = Verified
	case j.policy.publishers.has(email):
		j.warn("%s is a publisher, but the revocation data is past its time: runs as %s", email, Signed)
	case j.policy.community.has(email):
		j.verdict.Trust = Community
	}
	j.trace.note("publisher", "%t", j.policy.publishers.has(email))
	j.trace.note("community", "%t", j.policy.community.has(email))
	j.trace.note("revocation lists within their time", "%t", fresh)
	return j.check("trust", nil, "%s", j.verdict.Trust)
}

// path leads the signer's chain to a root of the scope: now, or when the
// signature was stamped. An error comes with the level from which on it may be
// overlooked; it comes with the path where the chain held when it was signed, as the
// signer says, and has ended since.
func (j *judge) path(att *Attestation, stamp *TimeStamp) (path []*x509.Certificate, from lenience, err error) {
	roots, err := j.roots()
	if err != nil {
		return nil, never, err
	}
	at := j.now
	if stamp != nil {
		j.trace.stamp(stamp)
		_ = j.check(StepTimestamp, nil, "%s by %s", stamp.Time.UTC().Format(timeLayout), chainText(stamp.Path))
		at = stamp.Time
		j.verdict.Stamped = stamp.Time.UTC()
		j.untilEnd(stamp.Path)
	}
	path, err = verifyChain(att.Chain, roots.signers[j.scope.name], at, j.trace)
	if err == nil {
		err = att.sameRoot(path)
	}
	if err == nil && stamp != nil {
		err = stamp.within(path)
	}
	if fault.ReasonOf(err) == fault.OutsideValidity && stamp == nil && j.scope.level >= fromPermissive && att.timestamp.Before(j.now) {
		if path, then := verifyChain(att.Chain, roots.signers[j.scope.name], att.timestamp, nil); then == nil {
			if wrong := att.sameRoot(path); wrong != nil {
				return nil, fromAudit, wrong
			}
			return path, fromPermissive, err
		}
	}
	if err != nil {
		return nil, fromAudit, err
	}
	j.untilEnd(path)
	return path, never, nil
}

// sameRoot holds a chain that carries its root to the one that it led to.
func (a *Attestation) sameRoot(path []*x509.Certificate) error {
	if a.root == nil || path[len(path)-1].Equal(a.root) {
		return nil
	}
	return fault.New(fault.ChainUntrusted, a.what(), "ends with another root than the one that the chain led to")
}

// untilEnd says that the judgement may come out otherwise when one of the
// certificates expires.
func (j *judge) untilEnd(path []*x509.Certificate) {
	for _, c := range path {
		if !j.now.After(c.NotAfter) { // else a time stamp made up for it
			j.until(c.NotAfter)
		}
	}
}

// identity returns the leaf's e-mail address in normal form. The name in the
// subject is for people and decides nothing.
func (j *judge) identity(path []*x509.Certificate) (string, error) {
	leaf := path[0]
	email, err := address(leaf)
	if err != nil {
		return "", err
	}
	if !j.scope.identities.has(email) && !slices.ContainsFunc(j.scope.identities.patterns, func(p identityPattern) bool { return p.fits(email, path, j.stores) }) {
		return email, fault.New(fault.IdentityUntrusted, certName(leaf), "its e-mail address %q is none of the identities of the scope %q", leaf.EmailAddresses[0], j.scope.name)
	}
	return email, nil
}

// address is the one e-mail address of a leaf.
func address(leaf *x509.Certificate) (string, error) {
	if len(leaf.EmailAddresses) != 1 {
		return "", fault.New(fault.IdentityUntrusted, certName(leaf), "has %d e-mail addresses in its subject alternative name, wanted is one", len(leaf.EmailAddresses))
	}
	return normalEmail(leaf.EmailAddresses[0]), nil
}

// attestationTimes shows what validity looks at.
func (j *judge) attestationTimes(att *Attestation) {
	if !j.trace.on() {
		return
	}
	j.trace.note("signed at", "%s", att.Timestamp)
	j.trace.note("not after", "%s", att.NotAfter)
	j.trace.note("now", "%s", stampText(j.now))
	j.trace.turn(att.timestamp.Add(-clockSkew), "the attestation is no longer from the future")
	if !att.notAfter.IsZero() {
		j.trace.turn(att.notAfter.Add(time.Nanosecond), "the attestation ends")
	}
}

// validity also returns from which level on what it finds may be overlooked: an
// attestation that ended held once, one that contradicts itself never did.
func (j *judge) validity(att *Attestation, leaf *x509.Certificate) (lenience, error) {
	if err := att.madeInTime(leaf, j.now); err != nil {
		return fromAudit, err
	}
	if !att.notAfter.IsZero() && j.now.After(att.notAfter) {
		return fromPermissive, fault.New(fault.OutsideValidity, att.what(), "ended at %s", att.NotAfter)
	}
	return fromAudit, nil
}

// madeInTime holds the signer's own word for when to the clock and the certificate.
func (s *signing) madeInTime(leaf *x509.Certificate, now time.Time) error {
	switch {
	case s.timestamp.After(now.Add(clockSkew)):
		return fault.New(fault.OutsideValidity, s.what(), "says it was made in the future, at %s", stampText(s.timestamp))
	case s.timestamp.Before(leaf.NotBefore.Truncate(time.Second)) || s.timestamp.After(leaf.NotAfter):
		return fault.New(fault.OutsideValidity, s.what(), "says it was made at %s, when its certificate was not valid", stampText(s.timestamp))
	}
	return nil
}

// unrevoked checks the signer's chain and the stamp's. A certificate of the
// signer that became invalid only after the stamp is as good as unrevoked; one of
// the time stamp authority never is, since what it says of times is worth nothing
// then.
func (j *judge) unrevoked(path []*x509.Certificate, stamp *TimeStamp) (fresh bool, err error) {
	fresh, err = j.revoked(path, stamp)
	if stamp == nil || fault.ReasonOf(err) == fault.Revoked {
		return fresh, err
	}
	ok, stampErr := j.revoked(stamp.Path, nil)
	if err == nil || fault.ReasonOf(stampErr) == fault.Revoked {
		err = stampErr
	}
	return fresh && ok, err
}

// revoked checks every certificate below the root against its issuer's list.
// It reports whether all lists are within their own time, without the grace. A
// revoked certificate outweighs a list that is too old.
func (j *judge) revoked(path []*x509.Certificate, stamp *TimeStamp) (fresh bool, err error) {
	fresh = true
	var unknown error
	for i, c := range path[:len(path)-1] {
		j.trace.note("certificate", "%s, serial %x", c.Subject, c.SerialNumber)
		ok, err := j.revokedOne(c, path[i+1], stamp)
		_ = j.trace.part("list", err)
		if fault.ReasonOf(err) == fault.Revoked {
			return false, err
		}
		if err != nil && unknown == nil {
			unknown = err
		}
		fresh = fresh && ok
	}
	return fresh && unknown == nil, unknown
}

// revokedOne asks whom the policy asks: the issuer's list, its OCSP responder's
// answer, or both. Of two answers the worse counts.
func (j *judge) revokedOne(c, issuer *x509.Certificate, stamp *TimeStamp) (fresh bool, err error) {
	src, asked := j.policy.ocspFor(issuer)
	if !asked {
		return j.listed(c, issuer, stamp)
	}
	fresh, err = j.answered(c, issuer, src, stamp)
	if ix, listErr := j.index(issuer); fault.ReasonOf(err) == fault.Revoked || ix == nil && listErr == nil && !j.policy.hasCRL(issuer) {
		return fresh, err
	}
	ok, listErr := j.listed(c, issuer, stamp)
	if err == nil || fault.ReasonOf(listErr) == fault.Revoked {
		err = listErr
	}
	return fresh && ok, err
}

// listed checks a certificate by its issuer's list.
func (j *judge) listed(c, issuer *x509.Certificate, stamp *TimeStamp) (fresh bool, err error) {
	ix, err := j.index(issuer)
	j.trace.list(ix, j.data, j.policy.grace)
	if ix == nil {
		switch {
		case err != nil:
			return false, fault.Wrap(err, fault.RevocationUnknown, certName(c), "cannot tell whether it is revoked")
		case len(c.CRLDistributionPoints) == 0 && !j.policy.hasCRL(issuer):
			return false, fault.New(fault.RevocationUnknown, certName(c), "could never be revoked: it names no revocation list and the policy has none for %q", issuer.Subject).
				WithHint("%s", j.listHint)
		}
		return false, fault.New(fault.RevocationUnknown, certName(c), "no revocation list of %q is at hand", issuer.Subject).
			WithHint("%s", j.listHint)
	}
	if err != nil {
		j.warn("the revocation list that is used may not be the newest: %v", err)
	}
	e, revoked, err := ix.lookup(c.SerialNumber)
	if err != nil {
		return false, fault.Wrap(err, fault.RevocationUnknown, certName(c), "cannot tell whether it is revoked")
	}
	if revoked && !e.after(stamp) {
		return false, fault.New(fault.Revoked, certName(c), "was revoked at %s (%s)", e.at.Format(timeLayout), reasonName(e.reason))
	}
	next := ix.NextUpdate()
	switch {
	case j.now.After(c.NotAfter) && !ix.keeps(c):
		return false, fault.New(fault.RevocationUnknown, certName(c), "expired, and the revocation list of %q does not say that it still lists expired certificates", issuer.Subject)
	case !ix.covers(c):
		return false, fault.New(fault.RevocationUnknown, certName(c), "is not among those that the revocation list of %q speaks about", issuer.Subject)
	case ix.ThisUpdate().After(j.data.Add(clockSkew)):
		return false, fault.New(fault.RevocationUnknown, certName(c), "the revocation list of %q is from the future", issuer.Subject)
	case j.data.After(next.Add(j.policy.grace)):
		return false, fault.New(fault.RevocationUnknown, certName(c), "the revocation list of %q is out of date since %s", issuer.Subject, next.Format(timeLayout)).
			WithHint("its issuer publishes a new one (mentatctl pki crl); then refresh")
	case j.data.After(next):
		j.warn("the revocation list of %q is out of date since %s; the policy's grace holds until %s", issuer.Subject, next.Format(timeLayout), next.Add(j.policy.grace).Format(timeLayout))
		j.until(next.Add(j.policy.grace))
		return false, nil
	}
	j.until(next)
	return true, nil
}

// index notes the files that the answer depends on.
func (j *judge) index(issuer *x509.Certificate) (*CRLIndex, error) {
	onDisk, ok := j.revocation.(*diskRevocation)
	if !ok {
		return j.revocation.Index(issuer)
	}
	ix, files, err := onDisk.index(issuer)
	j.rest(files)
	return ix, err
}

// rest notes files that the judgement depends on.
func (j *judge) rest(files map[string]string) {
	if j.verdict.Rests.Files == nil {
		j.verdict.Rests.Files = map[string]string{}
	}
	maps.Copy(j.verdict.Rests.Files, files)
}

func (j *judge) binding(att *Attestation) error {
	if j.scope.binding == bindNone {
		return nil
	}
	if att.Subject.Repository == "" {
		return fault.New(fault.BindingMismatch, "attestation", "names no repository, which the scope %q requires", j.scope.name)
	}
	want := j.scope.signedAs(j.name.Repository)
	if want != imageref.NormalRepository(att.Subject.Repository) {
		as := orUnknown(j.name.Repository)
		if want != j.name.Repository {
			as = fmt.Sprintf("%s, as which the scope %q takes %s", want, j.scope.name, as)
		}
		return fault.New(fault.BindingMismatch, "attestation", "is for %s, not for %s", att.Subject.Repository, as)
	}
	// A reference by digest alone names exactly one artifact already.
	if j.scope.binding == bindExact && j.name.Tag != "" && j.name.Tag != att.Subject.Version {
		return fault.New(fault.BindingMismatch, "attestation", "is for version %s, the tag says %s", att.Subject.Version, j.name.Tag)
	}
	return nil
}

func orUnknown(s string) string {
	if s == "" {
		return "an image of unknown name"
	}
	return s
}

func isWASM(a *oci.Artifact) bool {
	switch a.Form {
	case oci.FormWASM, oci.FormDual, oci.FormPlainWASM:
		return true
	}
	return a.Module != nil
}

func (p *Policy) hasCRL(issuer *x509.Certificate) bool {
	for _, src := range p.crls {
		if src.Issuer == issuer.Subject.String() {
			return true
		}
	}
	return false
}

func chainText(path []*x509.Certificate) string {
	var names []string
	for _, c := range path {
		names = append(names, c.Subject.CommonName)
	}
	return strings.Join(names, " < ")
}

func freshText(fresh bool) string {
	if fresh {
		return "not revoked"
	}
	return "not revoked, by lists within the policy's grace"
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Verdict is a judgement with its reasons.
type Verdict struct {
	Allowed bool `json:"allowed"`
	// Err is why it is refused, a *fault.Error; nil when it is allowed.
	Err error `json:"-"`
	// Reason and Message are Err for those who read JSON.
	Reason  fault.Reason `json:"reason,omitempty"`
	Message string       `json:"message,omitempty"`
	Trust   TrustLevel   `json:"trust"`
	// Scope is the policy's scope that decided; empty outside all scopes.
	Scope string `json:"scope,omitempty"`
	// Enforced tells that a policy decided, Developer that there is none.
	Enforced  bool `json:"enforced"`
	Developer bool `json:"developer"`
	// Signer is set once the chain led to a root; the verdict may still be no.
	Signer *Signer `json:"signer,omitempty"`
	// Countersigners are those of the attestation, in its order, where the scope says
	// required_signers; else nobody looks at who they are.
	Countersigners []Countersigner `json:"countersigners,omitempty"`
	Digest         digest.Digest   `json:"digest,omitempty"`
	// Stamped is when a trusted authority saw the signature; zero without a time
	// stamp that counts.
	Stamped time.Time `json:"stamped,omitzero"`
	// NotAfter is when what was signed ends, as its signer says, whatever the
	// certificate does; zero where it says nothing.
	NotAfter time.Time `json:"not_after,omitzero"`
	// SignedDigest names what was signed, however the signature is encoded.
	SignedDigest digest.Digest `json:"signed_digest,omitempty"`
	// Signature is [NotationSignature] where the judgement was by Notary Project
	// signatures, empty where it was by an attestation or nothing was signed.
	Signature string `json:"signature,omitempty"`
	// GoodEnvelopes are those of [Input.Envelopes] of which each alone would do.
	GoodEnvelopes []digest.Digest `json:"-"`
	// Agent is id and version of the agent manifest.
	Agent    string   `json:"agent,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Pending is set for what runs only until the policy's attestation_required is
	// enforced.
	Pending *Pending `json:"pending,omitempty"`
	// Overlooked is what does not hold and the scope's level lets by.
	Overlooked []Overlooked `json:"overlooked,omitempty"`
	Checks     []Check      `json:"checks,omitempty"`
	// Remembered tells that the checks were made by an earlier judgement of the
	// same, on this node.
	Remembered bool `json:"remembered,omitempty"`
	// Questions are for OCSP responders: their answers could change the verdict.
	Questions []Question `json:"-"`
	// Rests says how long the verdict holds.
	Rests Rests `json:"-"`
}

// Rests is what a verdict rests on beside the artifact, the reference and
// [Verifier.Rules].
type Rests struct {
	// Until is when it may come out otherwise for the passing of time alone; zero
	// for a verdict that is not worth keeping.
	Until time.Time
	// Files are revocation data by path, each with its [Stamp] from before it was
	// read.
	Files map[string]string
}

// Signer is who signed, from the certificate.
type Signer struct {
	Email   string `json:"email,omitempty"`
	Subject string `json:"subject"`
	Issuer  string `json:"issuer"`
	// Serial is hexadecimal.
	Serial string `json:"serial"`
	// Fingerprint is the SHA-256 of the certificate.
	Fingerprint string `json:"fingerprint"`
}

func newSigner(leaf *x509.Certificate, email string) Signer {
	return Signer{
		Email:       email,
		Subject:     leaf.Subject.String(),
		Issuer:      leaf.Issuer.String(),
		Serial:      fmt.Sprintf("%x", leaf.SerialNumber),
		Fingerprint: fingerprint(leaf),
	}
}

// Check is one step of a judgement. Steps after the first that was refused are not
// there; one that failed and was overlooked is not OK.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Line is the verdict in one line.
func (vd *Verdict) Line() string {
	if !vd.Allowed {
		return fault.OneLine(fmt.Sprintf("refused (%s): %s", vd.Reason, vd.Message))
	}
	parts := []string{"allowed as " + string(vd.Trust)}
	if vd.Signer != nil {
		parts = append(parts, "signed by "+vd.Signer.Email)
	}
	if counted := vd.Counted(); len(counted) > 0 {
		parts = append(parts, "countersigned by "+strings.Join(counted, " and "))
	}
	if vd.Signature != "" {
		parts = append(parts, "as a "+vd.Signature+" signature says")
	}
	switch {
	case vd.Developer:
		parts = append(parts, "no policy is configured")
	case vd.Scope != "":
		parts = append(parts, "scope "+vd.Scope)
	default:
		parts = append(parts, "outside all scopes")
	}
	if vd.Agent != "" {
		parts = append(parts, vd.Agent)
	}
	if len(vd.Overlooked) > 0 {
		parts = append(parts, fmt.Sprintf("%s overlooked at the level %s", vd.Overlooked[0].Reason, vd.Overlooked[0].Level))
	}
	if vd.Remembered {
		parts = append(parts, "as judged before")
	}
	return fault.OneLine(strings.Join(append(parts, string(vd.Digest)), ", "))
}
