package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
)

// moment is a flag's point in time.
type moment struct{ time.Time }

// String implements pflag.Value.
func (m *moment) String() string {
	if m.IsZero() {
		return ""
	}
	return m.Format(shownTime)
}

// Type implements pflag.Value.
func (m *moment) Type() string { return "date" }

// Set implements pflag.Value: a day, which is its first second, or a moment; both in
// UTC unless they say otherwise.
func (m *moment) Set(s string) error {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil && !t.IsZero() {
			m.Time = t.UTC()
			return nil
		}
	}
	return fault.New(fault.Usage, "", "%q is no date such as 2027-01-31 or 2027-01-31T12:00:00Z", s)
}

// at is the same judgement at another time; now for none.
func (j *judgement) at(t time.Time) *judgement {
	if t.IsZero() {
		return j
	}
	then := *j
	then.Verifier, then.elsewhen = j.At(t), true
	return &then
}

// forecast says how the verdict changes until a time: with what is published now, and,
// where that is another answer, as if revocation lists, OCSP answers and release lists
// were always renewed in time. A list that ends tomorrow would hide all that comes
// after.
func (j *judgement) forecast(ctx context.Context, in verifier.Input, until time.Time) (asIs, renewed []verifier.Change) {
	present := j.At(j.Now())
	asIs, renewed = present.Forecast(ctx, in, until), present.Renewing().Forecast(ctx, in, until)
	same := func(a, b verifier.Change) bool {
		return a.At.Equal(b.At) && a.Allowed == b.Allowed && a.Reason == b.Reason
	}
	if slices.EqualFunc(asIs, renewed, same) {
		return asIs, nil
	}
	return asIs, renewed
}

// forecastText shows when a verdict changes and why.
func forecastText(w *display.Writer, name string, changes []verifier.Change) {
	lines := make([]string, 0, len(changes))
	for _, c := range changes {
		says := "allowed as " + string(c.Trust)
		if !c.Allowed {
			says = fmt.Sprintf("REFUSED (%s)", c.Reason)
		}
		because := "now"
		if len(c.Because) > 0 {
			because = strings.Join(c.Because, "; ")
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s", c.At.Format(shownTime), says, because))
	}
	w.List(name, lines)
}
