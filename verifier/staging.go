package verifier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// stagingFile is the policy's attestation_required.
type stagingFile struct {
	Enabled         bool   `yaml:"enabled"`
	EnforcementDate string `yaml:"enforcement_date"`
	GracePeriodDays int64  `yaml:"grace_period_days"`
}

const (
	dateLayout   = "2006-01-02"
	day          = 24 * time.Hour
	maxGraceDays = 365
)

// Stage is how far attestations are required. It is about images without one only:
// what is there and broken is refused at every stage.
type Stage string

// The stages. A policy that says nothing of them is at the last.
const (
	// StageOff is attestation_required with enabled: false.
	StageOff Stage = "off"
	// StageAnnounced is before the enforcement date.
	StageAnnounced Stage = "announced"
	// StageGrace is from the enforcement date to the end of the grace period.
	StageGrace Stage = "grace"
	// StageEnforced is the rule: without an attestation nothing runs that needs one.
	StageEnforced Stage = "enforced"
)

// staging is how attestation_required was understood. The zero value enforces.
type staging struct {
	set, enabled bool
	date         time.Time // zero: at once
	grace        time.Duration
}

// from is when enforcement begins, zero where no time is named.
func (s staging) from() time.Time {
	if !s.set || !s.enabled || s.date.IsZero() {
		return time.Time{}
	}
	return s.date.Add(s.grace)
}

// at is the stage at a time.
func (s staging) at(t time.Time) Stage {
	switch {
	case !s.set:
		return StageEnforced
	case !s.enabled:
		return StageOff
	case s.date.IsZero(), !t.Before(s.from()):
		return StageEnforced
	case t.Before(s.date):
		return StageAnnounced
	}
	return StageGrace
}

// Staging is what the policy says of attestations before it is asked about a time:
// [StageEnforced] or [StageOff], and when enforcement begins, zero for no such time.
func (p *Policy) Staging() (Stage, time.Time) {
	if from := p.staging.from(); !from.IsZero() {
		return StageEnforced, from
	}
	return p.staging.at(time.Time{}), time.Time{}
}

func (c *policyCompiler) staging(f stagingFile) staging {
	const key = "attestation_required"
	if _, said := c.lines[key]; !said {
		return staging{}
	}
	s := staging{set: true, enabled: f.Enabled}
	if _, said := c.lines[strictyaml.Key(key, "enabled")]; !said {
		c.fail(strictyaml.Key(key, "enabled"), "is required: true or false")
	}
	_, graced := c.lines[strictyaml.Key(key, "grace_period_days")]
	switch date, err := time.Parse(dateLayout, f.EnforcementDate); {
	case err == nil:
		s.date = date
	case f.EnforcementDate != "":
		c.fail(strictyaml.Key(key, "enforcement_date"), "%q is not a date such as %q", f.EnforcementDate, "2026-04-01")
	case graced:
		c.fail(strictyaml.Key(key, "grace_period_days"), "needs an enforcement_date, from which it counts")
	}
	if f.GracePeriodDays < 0 || f.GracePeriodDays > maxGraceDays {
		c.fail(strictyaml.Key(key, "grace_period_days"), "is %d, allowed is 0 to %d", f.GracePeriodDays, maxGraceDays)
	}
	s.grace = time.Duration(f.GracePeriodDays) * day
	return s
}

// SeenTime remembers the latest time that a node saw, so that a clock that is set
// back opens nothing again.
type SeenTime interface {
	// See tells that it is now, and returns the latest time seen. An error means that
	// the time cannot be remembered, on which callers are strict. It is called from
	// several goroutines.
	See(now time.Time) (latest time.Time, err error)
	// Peek returns the latest time seen, zero for none, and remembers nothing.
	Peek() (time.Time, error)
}

// seenName is the file of the latest time seen, in the state directory.
const seenName = "latest-time"

// seenEvery is how far time moves before it is written down again.
const seenEvery = time.Minute

// diskSeen keeps the latest time in a file.
type diskSeen struct {
	path string
	// edge is a time whose passing is written down at once.
	edge time.Time
}

func newDiskSeen(state string, p *Policy) *diskSeen {
	return &diskSeen{filepath.Join(state, seenName), p.staging.from()}
}

// LatestSeen is the latest time that the node with this state directory saw, zero
// for none.
func LatestSeen(state string) (time.Time, error) {
	return (&diskSeen{path: filepath.Join(state, seenName)}).Peek()
}

// Peek implements [SeenTime].
func (d *diskSeen) Peek() (time.Time, error) {
	data, err := limits.ReadFile(d.path, limits.KiB)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fault.Wrap(err, fault.PolicyInvalid, d.path, "cannot read the latest time that this node saw")
	}
	t, err := parseTime(strings.TrimSuffix(string(data), "\n"))
	if err != nil {
		return time.Time{}, fault.Wrap(err, fault.PolicyInvalid, d.path, "does not hold the latest time that this node saw")
	}
	return t, nil
}

// See implements [SeenTime].
func (d *diskSeen) See(now time.Time) (time.Time, error) {
	latest, err := d.Peek()
	if err != nil || !now.After(latest) {
		return latest, err
	}
	crosses := !d.edge.IsZero() && latest.Before(d.edge) && !now.Before(d.edge)
	if now.Sub(latest) < seenEvery && !crosses {
		return now, nil
	}
	err = os.MkdirAll(filepath.Dir(d.path), 0o755)
	if err == nil {
		err = atomicfile.Write(d.path, []byte(now.UTC().Format(timeLayout)+"\n"), 0o644)
	}
	if err != nil {
		return latest, fault.Wrap(err, fault.PolicyInvalid, d.path, "cannot remember the time")
	}
	return now, nil
}

// lookedBack is a [SeenTime] that judges another time than now and remembers nothing.
type lookedBack struct{ SeenTime }

func (l lookedBack) See(now time.Time) (time.Time, error) {
	latest, err := l.Peek()
	if err == nil && now.After(latest) {
		latest = now
	}
	return latest, err
}

// At is the verifier as it would judge at another time, with the policy and the
// revocation data that are there now. It remembers nothing of that time.
func (v *Verifier) At(t time.Time) *Verifier {
	c := *v
	c.clock = func() time.Time { return t }
	c.looking = true
	if v.seen != nil {
		c.seen = lookedBack{v.seen}
	}
	return &c
}

// Renewing is the verifier as it would judge if everything that is published anew
// from time to time, revocation lists, OCSP answers and release lists, came in time
// and said what it says now. It is for looking ahead.
func (v *Verifier) Renewing() *Verifier {
	present := v.clock()
	c := *v.At(present)
	c.renewed = func() time.Time { return present }
	return &c
}

// Staging tells how far attestations are required at the verifier's time, and when
// they are enforced; from is zero where no time is named. The error says why the
// stage is [StageEnforced] although the policy names another.
func (v *Verifier) Staging() (stage Stage, from time.Time, err error) {
	if v.policy == nil {
		return StageOff, time.Time{}, nil
	}
	s := v.policy.staging
	from = s.from()
	if from.IsZero() {
		return s.at(time.Time{}), from, nil
	}
	if v.seen == nil {
		return StageEnforced, from, fault.New(fault.PolicyInvalid, "verifier", "cannot remember the latest time, without which a clock that is set back would end enforcement")
	}
	latest, err := v.seen.See(v.clock())
	if err != nil {
		return StageEnforced, from, err
	}
	return s.at(latest), from, nil
}

// Pending is a refusal that the policy does not make yet.
type Pending struct {
	Reason fault.Reason `json:"reason"`
	Stage  Stage        `json:"stage"`
	// From is when it does, zero for no such time.
	From time.Time `json:"from,omitzero"`
}

// demand returns the refusal of what has no attestation, nil as long as the policy
// does not enforce that; then it is a warning.
func (j *judge) demand(refusal error) error {
	stage, from, err := j.Staging()
	j.trace.note("attestation required", "%s", stage)
	if !from.IsZero() {
		j.trace.note("enforced from", "%s", stampText(from))
		j.trace.turn(j.policy.staging.date, "the enforcement date of attestation_required")
		j.trace.turn(from, "attestation_required is enforced")
	}
	if err != nil {
		j.warn("attestation_required is enforced at once: %v", err)
	}
	if stage == StageEnforced {
		return refusal
	}
	until := "attestation_required is not enabled"
	if !from.IsZero() {
		until = fmt.Sprintf("refused from %s, as attestation_required says", stampText(from))
	}
	j.verdict.Pending = &Pending{Reason: fault.ReasonOf(refusal), Stage: stage, From: from}
	j.warn("%v: runs as %s; %s", refusal, Untrusted, until)
	return nil
}
