package node

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// errTorn says that a line is no JSON: its writer was killed within it.
type errTorn struct{}

func (errTorn) Error() string { return "the line is no JSON" }

// errForeign says that a line is no record that a host may write.
type errForeign struct{ why string }

func (e errForeign) Error() string { return e.why }

func event(line []byte) (string, error) {
	var head struct {
		EventType string `json:"event_type"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return "", errTorn{}
	}
	return head.EventType, nil
}

// rooted reads a record that root wrote.
func rooted(line []byte) (record any, err error) {
	kind, err := event(line)
	if err != nil {
		return nil, err
	}
	switch kind {
	case audit.EventAdmission:
		record = new(audit.Admission)
	case audit.EventDecision:
		record = new(audit.Decision)
	case audit.EventLoss:
		record = new(audit.Loss)
	default:
		return nil, errForeign{"an event of the type " + audit.Clean(kind)}
	}
	if err := json.Unmarshal(line, record); err != nil {
		return nil, errForeign{"a malformed record"}
	}
	return record, nil
}

// stamped reads a record that a run's host wrote, and makes it say what root knows
// of who it is from.
func stamped(line []byte, id *audit.Identity, now time.Time) (record any, err error) {
	kind, err := event(line)
	if err != nil {
		return nil, err
	}
	malformed := errForeign{"a malformed record"}
	switch kind {
	case audit.EventExecution:
		var e audit.Execution
		if !strict(line, &e) {
			return nil, malformed
		}
		e.Agent, e.Execution.InstanceID, e.Timestamp = id.Agent, instance(id, e.Execution.InstanceID), when(e.Timestamp, id, now)
		e.Execution.CapabilitiesRequested = clean(e.Execution.CapabilitiesRequested)
		e.Execution.Result = audit.Clean(e.Execution.Result)
		for _, n := range []*int64{&e.Execution.MemoryUsedMB, &e.Execution.ExecutionTimeMS} {
			*n = bounded(*n)
		}
		for _, n := range []*int{&e.Security.SandboxViolations, &e.Security.PolicyChecks, &e.Security.CapabilityGrants, &e.Security.CapabilityDenials} {
			*n = int(bounded(int64(*n)))
		}
		return &e, nil
	case audit.EventDecision:
		var d audit.Decision
		if !strict(line, &d) || !slices.Contains([]string{audit.Allowed, audit.Denied, audit.DryRun}, d.Result) {
			return nil, malformed
		}
		d.Agent, d.InstanceID, d.Timestamp = id.Agent, instance(id, d.InstanceID), when(d.Timestamp, id, now)
		d.Count = bounded(d.Count)
		for _, text := range []*string{&d.Capability, &d.Operation, &d.Policy, &d.Reason} {
			*text = audit.Clean(*text)
		}
		return &d, nil
	case audit.EventLoss:
		var l audit.Loss
		if !strict(line, &l) {
			return nil, malformed
		}
		return &audit.Loss{Timestamp: when(l.Timestamp, id, now), EventType: audit.EventLoss, InstanceID: id.Container, Lost: bounded(l.Lost), Reason: audit.Clean(l.Reason)}, nil
	}
	return nil, errForeign{"an event of the type " + audit.Clean(kind)}
}

func strict(line []byte, to any) bool {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	return dec.Decode(to) == nil
}

// maxRequested bounds the list of a run's capabilities.
const maxRequested = 64

func clean(list []string) []string {
	out := make([]string, 0, min(len(list), maxRequested))
	for _, s := range list[:min(len(list), maxRequested)] {
		out = append(out, audit.Clean(s))
	}
	return out
}

func bounded(n int64) int64 { return min(max(n, 0), canonical.MaxInteger) }

var runName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// instance is the container's id and, behind it, what the host calls the run.
func instance(id *audit.Identity, said string) string {
	_, run, ok := strings.Cut(said, "/")
	if !ok || !runName.MatchString(run) {
		return id.Container
	}
	return id.Container + "/" + run
}

// slack is how far a host's clock may seem to be off.
const slack = time.Hour

// when is the time that a host tells, if it can be.
func when(said audit.Time, id *audit.Identity, now time.Time) audit.Time {
	if said.Before(id.Created.Add(-slack)) || said.After(now.Add(slack)) {
		return audit.At(now)
	}
	return said
}
