package doctor

import (
	"fmt"
	"slices"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

// Severity is how bad a finding is.
type Severity string

// The severities. A note never counts, a warning counts where the caller asks for
// strictness, a failure always does: something runs or is pulled unverified, or
// nothing runs at all.
const (
	OK      Severity = "ok"
	Note    Severity = "note"
	Warning Severity = "warning"
	Failure Severity = "failure"
)

// Finding is the outcome of one check. Several findings may have one check.
type Finding struct {
	// Check is a stable name, such as verifier.directory.
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// On is what was looked at: a file, a setting, a program.
	On string `json:"on,omitempty"`
	// What was found, why that matters, what to do; the last two are empty for what
	// is as it should be.
	What string `json:"what"`
	Why  string `json:"why,omitempty"`
	Do   string `json:"do,omitempty"`
}

// Options say which node to look at.
type Options struct {
	// Address is containerd's socket.
	Address string
	// Config is the node's config.toml; empty is the one that containerd's
	// environment names for its shims and verifiers.
	Config string
	// Containerd and ContainerdConfig are looked at where no daemon answers.
	Containerd, ContainerdConfig string
	// Clock is the node's.
	Clock func() time.Time
	// Lint reads a policy file and says what is well formed and looks wrong; its
	// error is why a node would refuse the file.
	Lint func(path string) (warnings []string, err error)
	// NoCanary leaves out what asks the node's gates.
	NoCanary bool
}

// Report is everything that was found, in the order in which it was looked for.
type Report struct {
	// Daemon is the containerd that was found, nil for none.
	Daemon   *Daemon   `json:"containerd,omitempty"`
	Findings []Finding `json:"findings"`
}

// Daemon is a running containerd.
type Daemon struct {
	PID     int       `json:"pid"`
	Program string    `json:"program"`
	Config  string    `json:"config"`
	Started time.Time `json:"started"`

	exe string // what can be executed even when Program was replaced
	env []string
}

// Count is the number of findings of a severity.
func (r *Report) Count(s Severity) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Err is nil for a node without failures and, with strict, without warnings; else
// an error with the reason [fault.NodeUnsound].
func (r *Report) Err(strict bool) error {
	failures, warnings := r.Count(Failure), r.Count(Warning)
	if failures == 0 && (!strict || warnings == 0) && len(r.Findings) > 0 {
		return nil
	}
	return fault.New(fault.NodeUnsound, "node", "%d failures, %d warnings in %d findings", failures, warnings, len(r.Findings))
}

func (r *Report) add(s Severity, check, on, what, why, do string) {
	f := Finding{Check: check, Severity: s, On: fault.OneLine(on), What: fault.OneLine(what), Why: fault.OneLine(why), Do: fault.OneLine(do)}
	// Several files lie in one directory: it is looked at for each, and told once.
	if !slices.Contains(r.Findings, f) {
		r.Findings = append(r.Findings, f)
	}
}

func (r *Report) ok(check, on, format string, args ...any) {
	r.add(OK, check, on, fmt.Sprintf(format, args...), "", "")
}

func (r *Report) note(check, on, what, why string) { r.add(Note, check, on, what, why, "") }

func (r *Report) warn(check, on, what, why, do string) { r.add(Warning, check, on, what, why, do) }

func (r *Report) fail(check, on, what, why, do string) { r.add(Failure, check, on, what, why, do) }
