package audit

import (
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// The events that records are about.
const (
	EventExecution = "agent_execution"
	EventDecision  = "capability_decision"
	EventAdmission = "admission"
	EventLoss      = "audit_loss"
	EventAnomaly   = "audit_anomaly"
	EventService   = "node_service"
	EventRemoved   = "audit_removed"
	EventBroken    = "audit_broken"
)

// Results of a decision.
const (
	Allowed = "allowed"
	Denied  = "denied"
	DryRun  = "dry_run" // allowed, and a rule in dry run would have denied it
)

// Results of an execution besides a fault's reason.
const (
	Success = "success"
	Failure = "failure" // the agent ended with another status than 0
	Killed  = "killed"  // the host said nothing more
)

// Execution is the record of one run, as the specification (§9.2) has it.
type Execution struct {
	Timestamp Time     `json:"timestamp"`
	EventType string   `json:"event_type"`
	Agent     Agent    `json:"agent"`
	Execution Run      `json:"execution"`
	Security  Security `json:"security"`
}

// Agent says who acted.
type Agent struct {
	ID          string      `json:"id"`
	Version     string      `json:"version"`
	Runtime     string      `json:"runtime"`
	Attestation Attestation `json:"attestation"`
}

// Attestation says how far the agent was trusted.
type Attestation struct {
	Verified   bool   `json:"verified"`
	Signer     string `json:"signer"`
	TrustLevel string `json:"trust_level"`
}

// Run is how a run went.
type Run struct {
	InstanceID            string   `json:"instance_id"`
	CapabilitiesRequested []string `json:"capabilities_requested"`
	MemoryUsedMB          int64    `json:"memory_used_mb"`
	ExecutionTimeMS       int64    `json:"execution_time_ms"`
	Result                string   `json:"result"`
}

// Security counts what was decided in a run.
type Security struct {
	SandboxViolations int `json:"sandbox_violations"`
	PolicyChecks      int `json:"policy_checks"`
	CapabilityGrants  int `json:"capability_grants"`
	CapabilityDenials int `json:"capability_denials"`
}

// Decision is one answer to the question whether an agent may use a capability.
type Decision struct {
	Timestamp  Time   `json:"timestamp"`
	EventType  string `json:"event_type"`
	Agent      Agent  `json:"agent"`
	InstanceID string `json:"instance_id"`
	Capability string `json:"capability"`
	// Operation is what was to be done; empty when the capability was asked for.
	Operation string `json:"operation,omitempty"`
	// Policy names what decided, Result is one of the constants above.
	Policy string `json:"policy"`
	Result string `json:"result"`
	Reason string `json:"reason"`
	// Count is how many equal decisions the record stands for; 0 is one.
	Count int64 `json:"count,omitempty"`
}

// Admission is the record of a gate: whether an image may run.
type Admission struct {
	Timestamp  Time   `json:"timestamp"`
	EventType  string `json:"event_type"`
	Agent      Agent  `json:"agent"`
	InstanceID string `json:"instance_id"`
	Namespace  string `json:"namespace"`
	Image      string `json:"image"`
	Digest     string `json:"digest"`
	// Policy is the scope that decided, "" for none.
	Policy string `json:"policy"`
	// Result is [Allowed] or [Denied]; Reason is a fault's, Message its line.
	Result  string `json:"result"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
	// Pending is the reason for which it is refused once the policy's
	// attestation_required is enforced; empty for what that does not concern.
	Pending string `json:"pending,omitempty"`
	// Overlooked is what does not hold and the scope's level let by, each as level,
	// check and reason.
	Overlooked []string `json:"overlooked,omitempty"`
	// Countersigners are the addresses of those whose countersignatures counted for
	// the policy's required_signers.
	Countersigners []string `json:"countersigners,omitempty"`
	// Signature is "notation" where a Notary Project signature was judged, empty where
	// an attestation was or nothing was signed.
	Signature string `json:"signature,omitempty"`
	// SignerOrg is the organisation of the signer's certificate.
	SignerOrg string `json:"signer_org,omitempty"`
	// Microseconds is how long it took to find, read and verify.
	Microseconds int64 `json:"duration_us"`
}

// Loss says that records were dropped.
type Loss struct {
	Timestamp  Time   `json:"timestamp"`
	EventType  string `json:"event_type"`
	InstanceID string `json:"instance_id,omitempty"`
	// Lost is how many, Reason why.
	Lost   int64  `json:"lost"`
	Reason string `json:"reason"`
}

// Note is a record of the log's own keeper: that it began, ended, removed old
// segments, or found something that should not be.
type Note struct {
	Timestamp  Time   `json:"timestamp"`
	EventType  string `json:"event_type"`
	InstanceID string `json:"instance_id,omitempty"`
	Message    string `json:"message"`
	// First, Last and Hash are of entries that were removed, or expected.
	First int64  `json:"first,omitempty"`
	Last  int64  `json:"last,omitempty"`
	Hash  string `json:"hash,omitempty"`
}

// Time is a point in time, written in UTC to the millisecond.
type Time struct{ time.Time }

const timeLayout = "2006-01-02T15:04:05.000Z"

// At is t as records write it.
func At(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

// MarshalJSON writes the time.
func (t Time) MarshalJSON() ([]byte, error) { return json.Marshal(t.UTC().Format(timeLayout)) }

// UnmarshalJSON reads a time of RFC 3339.
func (t *Time) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	parsed, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return err
	}
	*t = At(parsed)
	return nil
}

// Identity is what root knows of a run: a record from inside says nothing about
// who it is from.
type Identity struct {
	// Key names the run's directory.
	Key string `json:"key"`
	// Container is the container's id, Namespace containerd's.
	Container string `json:"container"`
	Namespace string `json:"namespace"`
	Agent     Agent  `json:"agent"`
	Reference string `json:"reference"`
	Manifest  string `json:"manifest"`
	Module    string `json:"module"`
	// Mark is a file that holds Key until the container is gone.
	Mark    string `json:"mark"`
	Created Time   `json:"created"`
	// Again says that the container is created anew in a bundle whose earlier host
	// may have written records ([Spools.Replace]).
	Again bool `json:"again,omitempty"`
}

// Clean is a text from outside as a record holds it: one line, of no more than
// [limits.AuditText] bytes.
func Clean(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	s = fault.OneLine(s)
	if len(s) > limits.AuditText {
		s = strings.ToValidUTF8(s[:limits.AuditText], "") + "…"
	}
	return s
}
