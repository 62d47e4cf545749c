package verifier

import (
	"fmt"
	"slices"

	"github.com/mentatlab/mentat/internal/fault"
)

// Level is how a scope takes an attestation that is intact and does not hold.
type Level string

// The levels, strictest first. What is broken, revoked or denied is refused at each.
const (
	// Strict refuses all that does not hold. It is the level of a scope that names
	// none.
	Strict Level = "strict"
	// Permissive lets by what has ended since it was signed, and revocation data that
	// are missing or too old: it runs as [Signed] at most.
	Permissive Level = "permissive"
	// Audit also lets by signers, roots and names that the scope does not know: it
	// runs as [Untrusted].
	Audit Level = "audit"
)

// levels are ordered; the zero value of a scope's level is the first.
var levels = []Level{Strict, Permissive, Audit}

// lenience is a level's place in levels. The zero value overlooks nothing.
type lenience int

func leniencyOf(l string) lenience { return lenience(max(0, slices.Index(levels, Level(l)))) }

const (
	fromPermissive lenience = 1
	fromAudit      lenience = 2
	never          lenience = 3
)

func (l lenience) String() string { return string(levels[l]) }

// Overlooked is a check that failed and that the scope's level let by.
type Overlooked struct {
	Check   string       `json:"check"`
	Reason  fault.Reason `json:"reason"`
	Message string       `json:"message"`
	Level   Level        `json:"level"`
}

// hold is [judge.check] for what a lenient scope lets by, from a level on. What is
// let by is a warning, never silent. Revocation is never let by.
func (j *judge) hold(from lenience, name string, err error, format string, args ...any) error {
	if err == nil || from < fromPermissive || j.scope.level < from || fault.ReasonOf(err) == fault.Revoked {
		return j.check(name, err, format, args...)
	}
	o := Overlooked{Check: name, Reason: fault.ReasonOf(err), Message: fault.OneLine(err.Error()), Level: levels[j.scope.level]}
	j.verdict.Overlooked = append(j.verdict.Overlooked, o)
	j.verdict.Checks = append(j.verdict.Checks, Check{Name: name, Detail: fmt.Sprintf("overlooked at the level %s: %s", o.Level, o.Message)})
	j.warn("%s (%s): overlooked, since the scope %q is at the level %s", o.Message, o.Reason, j.scope.name, o.Level)
	j.trace.overlooked(name, o)
	return nil
}

// lowered is the most that an agent is trusted of which something was overlooked.
func (j *judge) lowered() TrustLevel {
	if j.scope.level >= fromAudit {
		return Untrusted
	}
	return Signed
}
