package bundle

import (
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// The clock goes forward and back at the run gate, between starts of one agent whose
// verdict is remembered when it can be: each start is judged by the time that it is.
func TestTheRunGateJudgesByTheTimeThatItIs(t *testing.T) {
	w := enforcing(t)
	at := testpki.Now
	w.clock = func() time.Time { return at }
	signed := w.sign(w.agent(""))
	for _, c := range []struct {
		at   time.Time
		want fault.Reason
	}{
		{testpki.Now, ""},
		{testpki.Now.Add(time.Minute), ""},
		{testpki.Now.Add(48 * time.Hour), fault.RevocationUnknown}, // the list has ended
		{testpki.Now.Add(2 * time.Minute), ""},
		{testpki.Now.AddDate(2, 0, 0), fault.OutsideValidity}, // the certificate has
		{testpki.Now.Add(-2 * time.Hour), fault.OutsideValidity},
		{testpki.Now.AddDate(0, -2, 0), fault.OutsideValidity}, // it has not begun
		{testpki.Now.Add(3 * time.Minute), ""},
		{testpki.Now.Add(-2 * time.Hour), fault.OutsideValidity}, // what is remembered is void
		{testpki.Now, ""},
	} {
		at = c.at
		w.write(plain())
		w.create(ref, signed)
		if c.want != "" {
			w.refused(c.want)
			continue
		}
		w.runs(true)
	}
}
