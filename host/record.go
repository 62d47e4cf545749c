package host

import (
	"sync"
	"time"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// Recorder keeps what must be accounted for. Calls come from several goroutines;
// the guest waits for them.
type Recorder interface {
	// Decision is called before the guest learns of it.
	Decision(Decision)
	// Execution is called when a run has ended, before [Program.Run] returns.
	Execution(Execution)
}

// Decision is one answer to a guest that wants to use a capability.
type Decision struct {
	Time time.Time
	// Run is [IO.ID].
	Run string
	// Capability is the canonical string of what was asked for.
	Capability string
	// Operation is empty when the capability was requested, else what was to be
	// done with it.
	Operation string
	Allowed   bool
	// Rule names what decided, Reason says why not; it has no secret in it.
	Rule, Reason string
	// DryRun says that Rule decided nothing: it is one in dry run, which would have
	// denied what was allowed.
	DryRun bool
}

// Execution is how a run went.
type Execution struct {
	Run      string
	Began    time.Time
	Duration time.Duration
	// Instantiated is how much of it passed before the guest's first instruction.
	Instantiated time.Duration
	Exit         hostdoc.Exit
	// Requested are the capabilities that were asked for, canonical and each once,
	// at most [MaxRequested].
	Requested []string
	// Checks counts the decisions, Grants and Denials their results.
	Checks, Grants, Denials int
	// Violations counts what the guest tried that the sandbox ended.
	Violations int
	// MemoryBytes is the guest's memory at its end, which is its most.
	MemoryBytes int64
	// InputBytes is what was read of the input, OutputBytes what was written.
	InputBytes, OutputBytes int64
}

// MaxRequested bounds [Execution.Requested].
const MaxRequested = 64

// decided records a decision.
func (s *session) decided(capability, operation string, allowed bool, rule, reason string) {
	s.tally.decide(capability, allowed)
	if s.p.o.Recorder != nil {
		s.p.o.Recorder.Decision(Decision{time.Now(), s.id, capability, operation, allowed, rule, reason, false})
	}
}

// counted records that rules in dry run would have denied what was allowed.
func (s *session) counted(capability, operation string, rules []string) {
	if s.p.o.Recorder == nil {
		return
	}
	for _, rule := range rules {
		s.p.o.Recorder.Decision(Decision{time.Now(), s.id, capability, operation, true, rule, "the rule would deny it", true})
	}
}

// execution is the record of a run that ended. Of a guest that was left behind
// only that is known.
func (s *session) execution(began time.Time, exit hostdoc.Exit, back bool) Execution {
	e := Execution{Run: s.id, Began: began, Duration: time.Since(began), Exit: exit}
	if !back {
		return e
	}
	t := &s.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Requested, e.Checks, e.Grants, e.Denials, e.Violations = t.requested, t.checks, t.grants, t.denials, t.violations
	e.Instantiated = s.instantiated
	e.MemoryBytes, e.InputBytes, e.OutputBytes = s.memory, s.in.total, s.p.doc.Limits.OutputBytes-s.out.left
	return e
}

// tally counts for [Execution].
type tally struct {
	mu                      sync.Mutex // answers are judged as they arrive
	requested               []string
	seen                    map[string]bool
	checks, grants, denials int
	violations              int
}

func (t *tally) decide(capability string, allowed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checks++
	if allowed {
		t.grants++
	} else {
		t.denials++
	}
	if t.seen[capability] || len(t.requested) >= MaxRequested {
		return
	}
	if t.seen == nil {
		t.seen = map[string]bool{}
	}
	t.seen[capability] = true
	t.requested = append(t.requested, capability)
}
