package verifier

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// requiredFile is one of a scope's required_signers.
type requiredFile struct {
	AtLeast int64    `yaml:"at_least"`
	Of      []string `yaml:"of"`
}

// requirement is how many of some people must have signed.
type requirement struct {
	atLeast int
	of      []string // addresses in normal form, as they are written
}

func (r requirement) String() string {
	return fmt.Sprintf("%d of %s", r.atLeast, strings.Join(r.of, ", "))
}

// requirements is all of them in words.
func requirements(all []requirement) string {
	var texts []string
	for _, r := range all {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, " and ")
}

// required compiles required_signers. Nobody stands in two entries, or one person
// would count for two; and what no block could carry is not asked for.
func (c *policyCompiler) required(path string, list []requiredFile) []requirement {
	if _, said := c.lines[path]; said && len(list) == 0 {
		c.fail(path, "is empty: leave it out where one signature is enough")
	}
	var out []requirement
	seen := map[string]bool{}
	sum := int64(0)
	for i, f := range list {
		at := strictyaml.Index(path, i)
		if len(f.Of) == 0 {
			c.fail(strictyaml.Key(at, "of"), "is required: those who may sign, as %sNAME@DOMAIN", emailPrefix)
		}
		if f.AtLeast < 1 || f.AtLeast > int64(len(f.Of)) {
			c.fail(strictyaml.Key(at, "at_least"), "is %d, allowed is 1 to %d, the number of identities in of", f.AtLeast, len(f.Of))
			continue
		}
		c.identities(strictyaml.Key(at, "of"), f.Of)
		r := requirement{atLeast: int(f.AtLeast)}
		for k, text := range f.Of {
			email := normalEmail(strings.TrimPrefix(text, emailPrefix))
			if seen[email] {
				c.fail(strictyaml.Index(strictyaml.Key(at, "of"), k), "%q is there twice: one person counts once", text)
			}
			seen[email] = true
			r.of = append(r.of, email)
		}
		sum += f.AtLeast
		out = append(out, r)
	}
	if most := int64(1 + limits.Countersignatures); sum > most {
		c.fail(path, "asks for %d signers, an attestation has %d at most", sum, most)
	}
	return out
}

// names tells whether one of the requirements names somebody.
func (s *scope) names(email string) bool {
	return slices.ContainsFunc(s.required, func(r requirement) bool { return slices.Contains(r.of, email) })
}

// Countersigner is who countersigned, from the certificate. The address is set once
// the chain led to a root.
type Countersigner struct {
	Signer
	// Counts tells whether it counts for required_signers; Why says why not.
	Counts bool   `json:"counts"`
	Why    string `json:"why,omitempty"`
	// Stamped is as in [Verdict].
	Stamped time.Time `json:"stamped,omitzero"`
}

// Counted are the addresses of the countersigners that count.
func (vd *Verdict) Counted() []string {
	var all []string
	for _, c := range vd.Countersigners {
		if c.Counts {
			all = append(all, c.Email)
		}
	}
	return all
}

// signers holds an attestation to the scope's required_signers. first is the first
// signer's address, "" if the scope does not name it. fresh is about the revocation
// data of those who count. A countersigner who does not count refuses nothing: anybody
// can add one.
func (j *judge) signers(att *Attestation, first string) (fresh bool, err error) {
	counted := map[string]bool{}
	if j.scope.names(first) {
		counted[first] = true
		j.trace.note("first signer", "%s counts", first)
	}
	fresh = true
	var not []string
	for i := range att.counters {
		var c Countersigner
		ok := false
		err := j.trace.group(countersignatureName(i), func() (err error) {
			c, ok, err = j.countersigner(att, &att.counters[i], counted)
			return err
		})
		if err == nil {
			c.Counts, counted[c.Email] = true, true
			fresh = fresh && ok
		} else {
			c.Why = fault.OneLine(err.Error())
			not = append(not, countersignatureName(i)+" does not count: "+short(c.Why))
			j.warn("%s by %q does not count: %v", countersignatureName(i), c.Subject, err)
		}
		j.verdict.Countersigners = append(j.verdict.Countersigners, c)
	}
	if err := j.missing(counted, not); err != nil {
		return fresh, err
	}
	j.trace.unneeded()
	return fresh, nil
}

// whyBytes bounds what the refusal says of one who does not count: the names in it are
// a stranger's, who shall not push out who is missing.
const whyBytes = 256

func short(s string) string {
	if len(s) <= whyBytes {
		return s
	}
	return strings.ToValidUTF8(s[:whyBytes], "") + "…"
}

// missing says which requirements are not met, why, and who can help.
func (j *judge) missing(counted map[string]bool, not []string) error {
	var unmet, able []string
	for _, r := range j.scope.required {
		var have, others []string
		for _, email := range r.of {
			if counted[email] {
				have = append(have, email)
			} else {
				others = append(others, email)
			}
		}
		if len(have) >= r.atLeast {
			continue
		}
		by := "none of them"
		if len(have) > 0 {
			by = strings.Join(have, " and ") + " only"
		}
		unmet = append(unmet, fmt.Sprintf("%s, and it is by %s", r, by))
		able = append(able, others...)
	}
	if len(unmet) == 0 {
		return nil
	}
	what := cmp.Or(j.in.Where, "DIR")
	if j.in.Where == "" && j.name.Repository != "" { // a reference by digest leaves the tag to whoever knows it
		what = j.name.Repository + ":" + cmp.Or(j.name.Tag, "TAG")
	}
	return fault.New(fault.SignersMissing, "attestation", "the scope %q requires the signatures of %s", j.scope.name, strings.Join(append(unmet, not...), "; ")).
		WithHint("%s can: mentatctl countersign %s", strings.Join(able, " or "), what)
}

// countersigner judges one countersignature as the first is judged, but for what a
// level lets by: here nothing is. The error says why it does not count.
func (j *judge) countersigner(att *Attestation, s *signing, counted map[string]bool) (c Countersigner, fresh bool, err error) {
	leaf := s.chain[0]
	c.Signer = newSigner(leaf, "")
	roots, err := j.roots()
	if err != nil {
		return c, false, err
	}
	stamp, err := j.stampOf(s)
	if err != nil {
		return c, false, j.trace.part(StepTimestamp, err)
	}
	at := j.now
	if stamp != nil {
		j.trace.stamp(stamp)
		at, c.Stamped = stamp.Time, stamp.Time.UTC()
		j.untilEnd(stamp.Path)
	}
	path, err := verifyChain(s.chain, roots.signers[j.scope.name], at, j.trace)
	if err == nil && stamp != nil {
		err = stamp.within(path)
	}
	if err != nil {
		return c, false, err
	}
	j.untilEnd(path)
	email, err := address(leaf)
	c.Email = email
	j.trace.note("in the certificate", "%s", email)
	switch {
	case err != nil:
	case !j.scope.names(email):
		err = fault.New(fault.IdentityUntrusted, certName(leaf), "its e-mail address %q is in none of the required_signers of the scope %q", email, j.scope.name)
	case counted[email]:
		err = fault.New(fault.IdentityUntrusted, certName(leaf), "%q signed already, and one person counts once", email)
	}
	if err := j.trace.part(StepIdentity, err); err != nil {
		return c, false, err
	}
	j.trace.note("signed at", "%s", stampText(s.timestamp))
	j.trace.turn(s.timestamp.Add(-clockSkew), "the countersignature of %q is no longer from the future", email)
	if err := j.trace.part(StepValidity, j.countersignedInTime(att, s)); err != nil {
		return c, false, err
	}
	fresh, err = j.unrevoked(path, stamp)
	return c, fresh, err
}

// countersignedInTime also holds a countersignature to the time of what it is over.
func (j *judge) countersignedInTime(att *Attestation, s *signing) error {
	if err := s.madeInTime(s.chain[0], j.now); err != nil {
		return err
	}
	if s.timestamp.Add(clockSkew).Before(att.timestamp) {
		return fault.New(fault.OutsideValidity, "countersignature", "says it was made at %s, before what it is over", stampText(s.timestamp))
	}
	return nil
}
