package backend

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/mentatlab/mentat/manifest"
)

// Code is one of the ABI's error codes (abi.md, Codes).
type Code int32

// The codes.
const (
	Invalid     Code = -1
	Denied      Code = -2
	NotFound    Code = -3
	Limit       Code = -4
	Deadline    Code = -5
	Canceled    Code = -6
	Unavailable Code = -7
	BadHandle   Code = -8
	Unsupported Code = -9
	Conflict    Code = -10
	Internal    Code = -11
)

// Refusal is why something was not done; the guest reads it by last_error.
type Refusal struct {
	Code Code
	// Reason is one sentence without a secret in it. Rule names what decided,
	// Hint what would help.
	Reason, Rule, Hint string
	// RetryAfter is when trying again may help; 0 says nothing.
	RetryAfter time.Duration
}

func (r *Refusal) Error() string { return r.Reason }

// Grant is what a capability was opened with.
type Grant struct {
	// Capability is what the guest asked for; a grant of the run covers it.
	Capability manifest.Capability
	// Rule names the rule that granted it.
	Rule string
	// Args narrow it further: JSON, or empty.
	Args json.RawMessage
}

// Backend serves the capabilities of one kind for the runs of one process. It
// may be used from several goroutines.
type Backend interface {
	// Open judges the arguments of a request and returns what serves its calls.
	// run identifies the run for which budgets are kept.
	Open(ctx context.Context, run string, g Grant) (Capability, *Refusal)
	// Done says that a run ended: what was kept for it is dropped.
	Done(run string)
	// Close ends the backend after the last run.
	Close() error
}

// Capability serves the calls of one opened capability.
type Capability interface {
	// Invoke judges a call and starts it. It returns once the call is allowed and
	// queued: what fails later fails [Answer.Head] or the body. head and body are
	// copies that the implementation may keep. The work ends with ctx, which lives
	// until the answer is closed or the run ends.
	Invoke(ctx context.Context, op string, head json.RawMessage, body []byte) (Answer, *Refusal)
}

// Answer is a call's answer as it arrives.
type Answer interface {
	// Head waits for the answer's head, JSON.
	Head() (json.RawMessage, *Refusal)
	// Read reads the body after the head; an error that is a [*Refusal] keeps its
	// meaning, any other is [Unavailable].
	io.Reader
	// Close ends the call, finished or not.
	io.Closer
}

// counterKey finds a run's counter in a context.
type counterKey struct{}

// WithCounter gives a run's calls a counter: it is told of uses that rules in dry
// run would have denied, from several goroutines.
func WithCounter(ctx context.Context, count func(used manifest.Capability, rules []string)) context.Context {
	return context.WithValue(ctx, counterKey{}, count)
}

// Count tells the counter of the run that ctx belongs to, if there is one.
func Count(ctx context.Context, used manifest.Capability, rules []string) {
	if count, ok := ctx.Value(counterKey{}).(func(manifest.Capability, []string)); ok && len(rules) > 0 {
		count(used, rules)
	}
}

// Usage is what one chat with a model used.
type Usage struct {
	// Run is the run's id.
	Run string
	// Provider and Model are the node's provider and what the guest asked for.
	Provider, Model string
	// Prompt and Completion are tokens. Estimated says that the provider did not
	// count them, or was not heard to the end.
	Prompt, Completion int64
	Estimated          bool
}

// Meters are told what chats used, by several goroutines at once. The zero value
// tells nobody.
type Meters struct {
	mu    sync.Mutex
	meter []func(Usage)
}

// Add adds one that is told from now on.
func (m *Meters) Add(meter func(Usage)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meter = append(m.meter, meter)
}

// Tell tells all of them.
func (m *Meters) Tell(u Usage) {
	if m == nil {
		return
	}
	m.mu.Lock()
	meters := slices.Clone(m.meter)
	m.mu.Unlock()
	for _, meter := range meters {
		meter(u)
	}
}
