package remote

import (
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

// maxJump is how far a clock may go from where it should be, since the server
// started: time servers move it gently.
const maxJump = 5 * time.Minute

// steady is a clock that tells no time after it was set.
type steady struct {
	clock   func() time.Time
	elapsed func() time.Duration
	begin   time.Time
	since   time.Duration
}

func newSteady(o ServerOptions) steady {
	s := steady{clock: o.Clock, elapsed: o.Elapsed}
	if s.elapsed == nil {
		start := time.Now() // with a monotonic reading, which Since goes by
		s.elapsed = func() time.Duration { return time.Since(start) }
	}
	// Without the monotonic reading: what counts is what the clock shows.
	s.begin, s.since = s.clock().Round(0), s.elapsed()
	return s
}

// now is the time, unless the clock jumped: what is stamped with a time that is
// wrong cannot be taken back. A clock that is set right again is believed again.
// Reason of its error: [fault.OutsideValidity].
func (s steady) now() (time.Time, error) {
	now := s.clock().Round(0)
	should := s.begin.Add(s.elapsed() - s.since)
	if d := now.Sub(should); d > maxJump || d < -maxJump {
		return time.Time{}, fault.New(fault.OutsideValidity, "clock", "shows %s, and should show %s: it jumped, or the machine slept, after the server started",
			now.UTC().Format(time.RFC3339), should.UTC().Format(time.RFC3339)).
			WithHint("set it right; if it is right as it is, start the server again")
	}
	return now, nil
}
