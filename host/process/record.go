package process

import (
	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/host"
)

// recorder writes what the host accounts for as audit records.
type recorder struct{ records *audit.Recorder }

func (r recorder) Decision(d host.Decision) {
	r.records.Decision(audit.Choice{
		Time: d.Time, Run: d.Run, Capability: d.Capability, Operation: d.Operation,
		Allowed: d.Allowed, Rule: d.Rule, Reason: d.Reason, DryRun: d.DryRun,
	})
}

func (r recorder) Execution(e host.Execution) {
	r.records.Execution(audit.Outcome{
		Run: e.Run, Began: e.Began, Duration: e.Duration, Status: e.Exit.Status, Reason: e.Exit.Reason,
		Requested: e.Requested, Checks: e.Checks, Grants: e.Grants, Denials: e.Denials, Violations: e.Violations, MemoryBytes: e.MemoryBytes,
	})
}
