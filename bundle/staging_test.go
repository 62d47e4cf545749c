package bundle

import (
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// What a policy does not enforce yet starts, untrusted and with a warning; what it
// does, never does again, even if the clock goes back. testpki's now is 2026-01-15.
func TestTheRunGateEnforcesFromTheDateOn(t *testing.T) {
	w := enforcing(t)
	w.enforce(policy + "attestation_required: {enabled: true, enforcement_date: \"2026-01-10\", grace_period_days: 10}\n")
	at := testpki.Now
	w.clock = func() time.Time { return at }

	w.create(ref, w.agent(""))
	if got := w.runs(true); got.Verdict.Trust != verifier.Untrusted || got.Verdict.Pending == nil || !strings.Contains(w.log.String(), "refused from 2026-01-20T00:00:00Z") {
		t.Errorf("verdict %+v, log %s", got.Verdict, w.log.String())
	}
	w.write(plain())
	w.create(ref, changed(w, w.sign(w.agent("")), func(m *ocispec.Manifest) { m.Annotations["more"] = "more" }))
	w.refused(fault.SignatureInvalid)

	w.create(ref, w.agent(""))
	at = testpki.Now.AddDate(0, 0, 5)
	w.refused(fault.Unsigned)
	at = testpki.Now
	w.refused(fault.Unsigned)

	admissions, _ := w.records()
	var told []string
	for _, a := range admissions {
		told = append(told, a.Result+" "+a.Reason+" "+a.Pending)
	}
	want := []string{"allowed  unsigned", "denied signature-invalid ", "denied unsigned ", "denied unsigned "}
	if !slices.Equal(told, want) {
		t.Errorf("recorded are %q, want %q", told, want)
	}
}

func TestAnOrdinaryContainerThatIsPutOffIsRecorded(t *testing.T) {
	w := enforcing(t)
	w.enforce(policy + "attestation_required: {enabled: false}\n")
	w.create(ref, w.image())
	if got := w.runs(false); got.Verdict.Pending == nil || got.Verdict.Pending.Stage != verifier.StageOff {
		t.Errorf("verdict %+v", got.Verdict)
	}
	if admissions, _ := w.records(); len(admissions) != 1 || admissions[0].Pending != string(fault.Unsigned) || admissions[0].Result != audit.Allowed {
		t.Errorf("recorded are %+v", admissions)
	}
}
