package verifier

import (
	"context"
	"slices"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

// Change is a moment from which on a judgement comes out otherwise.
type Change struct {
	At time.Time `json:"at"`
	// Because is what happens then; empty for the first, which is now.
	Because []string     `json:"because,omitempty"`
	Allowed bool         `json:"allowed"`
	Reason  fault.Reason `json:"reason,omitempty"`
	Message string       `json:"message,omitempty"`
	Trust   TrustLevel   `json:"trust"`
	// Warnings are the verdict's.
	Warnings []string `json:"warnings,omitempty"`
}

// Forecast says what the verdict is now and how the passing of time alone changes
// it until a time, with the policy and the revocation data that are there now: it
// judges at each moment at which a judgement says that it may come out otherwise.
// The last change is what holds at until.
func (v *Verifier) Forecast(ctx context.Context, in Input, until time.Time) []Change {
	var changes []Change
	var because []string
	for at := v.clock(); ; {
		var trace Trace
		in.Trace = &trace
		vd := v.At(at).Verify(ctx, in)
		next := Change{At: at.UTC(), Because: because, Allowed: vd.Allowed, Reason: vd.Reason, Message: vd.Message, Trust: vd.Trust, Warnings: vd.Warnings}
		if len(changes) == 0 || next.differs(changes[len(changes)-1]) {
			changes = append(changes, next)
		}
		if len(trace.Turns) == 0 || trace.Turns[0].At.After(until) || ctx.Err() != nil {
			return changes
		}
		at, because = trace.Turns[0].At, nil
		for _, t := range trace.Turns {
			if t.At.Equal(at) && !slices.Contains(because, t.What) {
				because = append(because, t.What)
			}
		}
	}
}

func (c Change) differs(from Change) bool {
	return c.Allowed != from.Allowed || c.Reason != from.Reason || c.Trust != from.Trust || !slices.Equal(c.Warnings, from.Warnings)
}
