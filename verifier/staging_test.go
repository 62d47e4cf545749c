package verifier

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
)

// memorySeen is a [SeenTime] in memory.
type memorySeen struct {
	mu     sync.Mutex
	latest time.Time
}

func (m *memorySeen) See(now time.Time) (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.After(m.latest) {
		m.latest = now
	}
	return m.latest, nil
}

func (m *memorySeen) Peek() (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.latest, nil
}

const everything = `  - name: everything
    match: ["*"]
    stores: [agents]
    identities: [any]
    unsigned_containers: deny
`

// staged is a node with the test policy and more text, and what remembers its time.
func staged(tb testing.TB, more string, seen SeenTime, clock func() time.Time) *Verifier {
	tb.Helper()
	n := newNode(testpki.New(tb))
	n.policy = testPolicy + more
	if strings.HasPrefix(more, "*") {
		n.policy = strings.Replace(testPolicy, "outside:", everything+"outside:", 1) + more[1:]
	}
	v := n.verifier(tb)
	v.seen, v.clock = seen, clock
	return v
}

func date(tb testing.TB, s string) time.Time {
	tb.Helper()
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// The whole truth about attestation_required: what it says, by what the clock says,
// by what the clock said before.
func TestStagedEnforcementCellByCell(t *testing.T) {
	const (
		absent    = ""
		now       = "attestation_required: {enabled: true}\n"
		dated     = "attestation_required: {enabled: true, enforcement_date: \"2026-04-01\"}\n"
		noGrace   = "attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: 0}\n"
		grace     = "attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: 90}\n"
		off       = "attestation_required: {enabled: false}\n"
		offDated  = "attestation_required: {enabled: false, enforcement_date: \"2026-04-01\"}\n"
		offGrace  = "attestation_required: {enabled: false, enforcement_date: \"2026-04-01\", grace_period_days: 90}\n"
		before    = "2026-03-31T23:59:59.999999999Z"
		atDate    = "2026-04-01T00:00:00Z"
		within    = "2026-05-15T12:00:00Z"
		lastNano  = "2026-06-29T23:59:59.999999999Z"
		atEnd     = "2026-06-30T00:00:00Z"
		after     = "2027-06-30T00:00:00Z"
		neverSeen = ""
	)
	for _, c := range []struct {
		policy, seen, clock string
		want                Stage
	}{
		{absent, neverSeen, before, StageEnforced},
		{absent, neverSeen, within, StageEnforced},
		{absent, neverSeen, after, StageEnforced},
		{absent, after, before, StageEnforced},

		{now, neverSeen, before, StageEnforced},
		{now, neverSeen, after, StageEnforced},
		{now, after, before, StageEnforced},

		{dated, neverSeen, before, StageAnnounced},
		{dated, neverSeen, atDate, StageEnforced},
		{dated, neverSeen, within, StageEnforced},
		{dated, neverSeen, after, StageEnforced},
		{dated, before, before, StageAnnounced},
		{dated, atDate, before, StageEnforced},
		{dated, after, before, StageEnforced},

		{noGrace, neverSeen, before, StageAnnounced},
		{noGrace, neverSeen, atDate, StageEnforced},
		{noGrace, atDate, before, StageEnforced},

		{grace, neverSeen, before, StageAnnounced},
		{grace, neverSeen, atDate, StageGrace},
		{grace, neverSeen, within, StageGrace},
		{grace, neverSeen, lastNano, StageGrace},
		{grace, neverSeen, atEnd, StageEnforced},
		{grace, neverSeen, after, StageEnforced},
		{grace, before, atDate, StageGrace},
		{grace, within, before, StageGrace},
		{grace, lastNano, before, StageGrace},
		{grace, atEnd, before, StageEnforced},
		{grace, atEnd, within, StageEnforced},
		{grace, after, lastNano, StageEnforced},
		{grace, after, atDate, StageEnforced},
		{grace, after, before, StageEnforced},

		{off, neverSeen, before, StageOff},
		{off, neverSeen, after, StageOff},
		{off, after, before, StageOff},
		{offDated, neverSeen, before, StageOff},
		{offDated, neverSeen, after, StageOff},
		{offGrace, neverSeen, before, StageOff},
		{offGrace, neverSeen, within, StageOff},
		{offGrace, neverSeen, after, StageOff},
		{offGrace, after, before, StageOff},
	} {
		name := strings.TrimSpace(strings.TrimPrefix(c.policy, "attestation_required: ")) + " seen " + c.seen + " clock " + c.clock
		t.Run(name, func(t *testing.T) {
			for _, kept := range []string{"memory", "disk"} {
				var seen SeenTime = &memorySeen{}
				if kept == "disk" {
					seen = newDiskSeen(t.TempDir(), policy(t, testPolicy+c.policy))
				}
				clock := date(t, c.clock)
				if c.seen != neverSeen {
					if _, err := seen.See(date(t, c.seen)); err != nil {
						t.Fatal(err)
					}
				}
				heldToStage(t, c.policy, seen, func() time.Time { return clock }, c.want)
			}
		})
	}
}

// heldToStage judges everything without an attestation, by every way in which a
// policy can ask for one.
func heldToStage(t *testing.T, text string, seen SeenTime, clock func() time.Time, want Stage) {
	t.Helper()
	v, all := staged(t, text, seen, clock), staged(t, "*"+text, seen, clock)
	if stage, _, err := v.Staging(); stage != want || err != nil {
		t.Fatalf("the stage is %s (%v), want %s", stage, err, want)
	}
	agent, image := read(t, wasmAgent(t)), read(t, container(t))
	for _, c := range []struct {
		name string
		v    *Verifier
		in   Input
	}{
		{"an agent in a scope", v, Input{Reference: ref, Artifact: agent}},
		{"a container in a scope", v, Input{Reference: ref, Artifact: image}},
		{"an agent outside all scopes", v, Input{Reference: "elsewhere.example/a:1", Artifact: agent}},
		{"a container without an image", all, Input{}},
	} {
		vd, trace := explained(t, c.v, c.in)
		if want == StageEnforced {
			expect(t, vd, fault.Unsigned)
			if vd.Pending != nil {
				t.Errorf("%s: %+v is pending for what is refused", c.name, vd.Pending)
			}
			continue
		}
		expect(t, vd, "")
		if vd.Trust != Untrusted || vd.Pending == nil || vd.Pending.Reason != fault.Unsigned || vd.Pending.Stage != want || len(vd.Warnings) == 0 {
			t.Errorf("%s: allowed as %s, pending %+v, warnings %q", c.name, vd.Trust, vd.Pending, vd.Warnings)
		}
		if want != StageOff && (!vd.Pending.From.Equal(c.v.policy.staging.from()) || len(trace.Turns) == 0) {
			t.Errorf("%s: pending %+v, turns %v", c.name, vd.Pending, trace.Turns)
		}
		if !vd.Rests.Until.IsZero() {
			t.Errorf("%s: a verdict that is only for now may be kept until %s", c.name, vd.Rests.Until)
		}
	}
}

// No stage opens anything for an attestation that is there.
func TestWhatIsBrokenIsRefusedAtEveryStage(t *testing.T) {
	v, _ := frozenNode(t)
	judged := 0
	for _, text := range []string{
		"attestation_required: {enabled: false}\n",
		"attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: 90}\n",
	} {
		lax := *v
		lax.policy, lax.seen = policy(t, testPolicy+text), &memorySeen{}
		if stage, _, err := lax.Staging(); stage == StageEnforced || err != nil {
			t.Fatalf("the stage is %s: %v", stage, err)
		}
		for name, vec := range frozen(t) {
			a, err := oci.Read(t.Context(), store, vec.raw(t))
			if err != nil || name == "absent" {
				continue
			}
			judged++
			vd := lax.Verify(t.Context(), Input{Reference: ref, Artifact: a})
			if vd.Reason != vec.expect || vd.Allowed != (vec.expect == "") || vd.Pending != nil {
				t.Errorf("%s: %s, want %q", name, vd.Line(), vec.expect)
			}
		}
	}
	if judged < 100 {
		t.Errorf("only %d were judged", judged)
	}
}

func TestAnAgentOutsideAllScopesNeedsTheRuleForImagesWhileNothingIsEnforced(t *testing.T) {
	n := newNode(testpki.New(t))
	n.policy = strings.Replace(testPolicy, "ordinary_images: allow", "ordinary_images: deny", 1) + "attestation_required: {enabled: false}\n"
	expect(t, n.verifier(t).Verify(t.Context(), Input{Reference: "elsewhere.example/a:1", Artifact: read(t, wasmAgent(t))}), fault.PolicyDenied)
}

const stagedPolicy = "attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: 90}\n"

// openNode writes a node's files; its verifiers are opened anew for each decision,
// as gates do.
func openNode(t *testing.T, more string) nodeconfig.Verify {
	t.Helper()
	dir := t.TempDir()
	p := testpki.New(t)
	for name, data := range map[string]string{"policy.yaml": testPolicy + more, "trust/agents/root.pem": string(testpki.PEM(p.Root))} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return nodeconfig.Verify{Policy: filepath.Join(dir, "policy.yaml"), Trust: filepath.Join(dir, "trust"), State: filepath.Join(dir, "state")}
}

func decide(t *testing.T, cfg nodeconfig.Verify, at time.Time) *Verdict {
	t.Helper()
	v, err := Open(cfg, func() time.Time { return at }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, wasmAgent(t))})
}

func TestAClockThatIsSetBackDoesNotOpenWhatWasClosed(t *testing.T) {
	cfg := openNode(t, stagedPolicy)
	early, late := date(t, "2026-05-01T00:00:00Z"), date(t, "2026-06-30T00:00:00Z")
	expect(t, decide(t, cfg, early), "")
	// Nothing unsigned is judged when the time is up: opening a verifier is enough.
	if _, err := Open(cfg, func() time.Time { return late }, nil); err != nil {
		t.Fatal(err)
	}
	expect(t, decide(t, cfg, early), fault.Unsigned)
	if latest, err := LatestSeen(cfg.State); err != nil || !latest.Equal(late) {
		t.Errorf("the latest time seen is %s, %v", latest, err)
	}
}

func TestTheEndOfTheGracePeriodIsWrittenDownAtOnce(t *testing.T) {
	cfg := openNode(t, stagedPolicy)
	end := date(t, "2026-06-30T00:00:00Z")
	expect(t, decide(t, cfg, end.Add(-2*time.Second)), "")
	expect(t, decide(t, cfg, end), fault.Unsigned)
	expect(t, decide(t, cfg, end.Add(-2*time.Second)), fault.Unsigned)
}

func TestTheTimeIsWrittenDownOnceAMinute(t *testing.T) {
	cfg := openNode(t, stagedPolicy)
	at := date(t, "2026-05-01T00:00:00Z")
	for _, c := range []struct {
		after, want time.Duration
	}{{0, 0}, {30 * time.Second, 0}, {59 * time.Second, 0}, {60 * time.Second, 60 * time.Second}, {-time.Hour, 60 * time.Second}, {time.Hour, time.Hour}} {
		decide(t, cfg, at.Add(c.after))
		if latest, err := LatestSeen(cfg.State); err != nil || !latest.Equal(at.Add(c.want)) {
			t.Errorf("after %s the latest time is %s, %v", c.after, latest, err)
		}
	}
}

func TestAPolicyWithoutADateRemembersNoTime(t *testing.T) {
	cfg := openNode(t, "")
	expect(t, decide(t, cfg, testpki.Now), fault.Unsigned)
	if _, err := os.Lstat(filepath.Join(cfg.State, seenName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a time was written down: %v", err)
	}
}

func TestATimeThatCannotBeRememberedEnforcesAtOnce(t *testing.T) {
	at := date(t, "2026-05-01T00:00:00Z")
	for _, c := range []struct {
		name  string
		spoil func(cfg nodeconfig.Verify) error
	}{
		{"damaged", func(cfg nodeconfig.Verify) error {
			return errors.Join(os.MkdirAll(cfg.State, 0o700), os.WriteFile(filepath.Join(cfg.State, seenName), []byte("yesterday\n"), 0o600))
		}},
		{"empty", func(cfg nodeconfig.Verify) error {
			return errors.Join(os.MkdirAll(cfg.State, 0o700), os.WriteFile(filepath.Join(cfg.State, seenName), nil, 0o600))
		}},
		{"a directory", func(cfg nodeconfig.Verify) error { return os.MkdirAll(filepath.Join(cfg.State, seenName), 0o700) }},
		{"no place for it", func(cfg nodeconfig.Verify) error { return os.WriteFile(cfg.State, nil, 0o600) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := openNode(t, stagedPolicy)
			if err := c.spoil(cfg); err != nil {
				t.Fatal(err)
			}
			vd := decide(t, cfg, at)
			expect(t, vd, fault.Unsigned)
			if len(vd.Warnings) != 1 || !strings.Contains(vd.Warnings[0], "enforced at once") {
				t.Errorf("warnings: %q", vd.Warnings)
			}
		})
	}
	expect(t, staged(t, stagedPolicy, nil, func() time.Time { return at }).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, wasmAgent(t))}), fault.Unsigned)
}

func TestParsePolicyRefusesStagingThatIsNotClear(t *testing.T) {
	for _, c := range []struct{ text, say string }{
		{"attestation_required:\n", "attestation_required"},
		{"attestation_required: {}\n", "enabled"},
		{"attestation_required: {enforcement_date: \"2026-04-01\"}\n", "enabled: is required"},
		{"attestation_required: {enabled: yes}\n", "enabled"},
		{"attestation_required: {enabled: \"true\"}\n", "enabled"},
		{"attestation_required: {enabled: true, enforcement_date: soon}\n", "is not a date"},
		{"attestation_required: {enabled: true, enforcement_date: \"2026-13-01\"}\n", "is not a date"},
		{"attestation_required: {enabled: true, enforcement_date: \"2026-4-1\"}\n", "is not a date"},
		{"attestation_required: {enabled: true, enforcement_date: \"2026-04-01T00:00:00Z\"}\n", "is not a date"},
		{"attestation_required: {enabled: true, grace_period_days: 90}\n", "needs an enforcement_date"},
		{"attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: -1}\n", "grace_period_days"},
		{"attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: 366}\n", "allowed is 0 to 365"},
		{"attestation_required: {enabled: true, enforcement_date: \"2026-04-01\", grace_period_days: 1.5}\n", "grace_period_days"},
		{"attestation_required: {enabled: true, level: audit}\n", "level"},
		{"attestation_required: {enabled: true, Enforcement_date: \"2026-04-01\"}\n", "Enforcement_date"},
	} {
		_, err := ParsePolicy("policy.yaml", []byte(testPolicy+c.text))
		if fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%q: %v, want %q", c.text, err, c.say)
		}
	}
}

func TestAForecastIsWhatIsJudgedThen(t *testing.T) {
	p := testpki.New(t)
	signed := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	unsigned := read(t, wasmAgent(t))
	until := testpki.Now.AddDate(2, 0, 0)
	for _, c := range []struct {
		name, policy string
		artifact     *oci.Artifact
		reasons      []fault.Reason
		at           []string
	}{
		{"signed", "", signed, []fault.Reason{"", "", fault.RevocationUnknown, fault.OutsideValidity}, []string{"", "revocation list", "past its grace", "expires"}},
		{"unsigned", stagedPolicy, unsigned, []fault.Reason{"", fault.Unsigned}, []string{"", "attestation_required is enforced"}},
		{"unsigned, off", "attestation_required: {enabled: false}\n", unsigned, []fault.Reason{""}, []string{""}},
		{"unsigned, enforced", "", unsigned, []fault.Reason{fault.Unsigned}, []string{""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := &memorySeen{}
			v := staged(t, c.policy, seen, testpki.Clock)
			in := Input{Reference: ref, Artifact: c.artifact}
			changes := v.Forecast(t.Context(), in, until)
			if len(changes) != len(c.reasons) {
				t.Fatalf("%d changes, want %d: %+v", len(changes), len(c.reasons), changes)
			}
			for i, ch := range changes {
				if ch.Reason != c.reasons[i] || ch.Allowed != (c.reasons[i] == "") || (i == 0) != (len(ch.Because) == 0) || !strings.Contains(strings.Join(ch.Because, "; "), c.at[i]) {
					t.Errorf("change %d is %+v, want %q because of %q", i, ch, c.reasons[i], c.at[i])
				}
			}
			if latest, err := seen.Peek(); err != nil || latest.After(testpki.Now) {
				t.Errorf("a forecast was remembered as if it were so: %s", latest)
			}
			// Between the changes nothing else is ever judged.
			k := 0
			for at := testpki.Now; at.Before(until); at = at.Add(61 * time.Hour) {
				for k+1 < len(changes) && !changes[k+1].At.After(at) {
					k++
				}
				if vd := v.At(at).Verify(t.Context(), in); vd.Reason != changes[k].Reason || vd.Trust != changes[k].Trust {
					t.Fatalf("at %s: %s, forecast was %+v", at, vd.Line(), changes[k])
				}
			}
		})
	}
}

func TestAnotherTimeIsJudgedAndNotRemembered(t *testing.T) {
	cfg := openNode(t, stagedPolicy)
	now := date(t, "2026-05-01T00:00:00Z")
	v, err := Open(cfg, func() time.Time { return now }, nil)
	if err != nil {
		t.Fatal(err)
	}
	in := Input{Reference: ref, Artifact: read(t, wasmAgent(t))}
	expect(t, v.Verify(t.Context(), in), "")
	expect(t, v.At(date(t, "2026-07-01T00:00:00Z")).Verify(t.Context(), in), fault.Unsigned)
	if latest, err := LatestSeen(cfg.State); err != nil || !latest.Equal(now) {
		t.Errorf("the latest time seen is %s, %v", latest, err)
	}
	expect(t, v.Verify(t.Context(), in), "")
}
