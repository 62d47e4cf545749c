package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/capability/audit/chain"
	"github.com/mentatlab/mentat/internal/fault"
)

// Trail reads audit records for people: those in the log and those that wait for
// the service to take them. It can be asked again for what is new.
type Trail struct {
	spools audit.Spools
	log    string
	clock  func() time.Time
	// seq is the last entry that was read, waiting the records that were read where
	// they wait.
	seq     int64
	waiting map[chain.Source]bool
}

// NewTrail reads the spool and the log in these directories, either of which may
// not be there.
func NewTrail(spool, log string, clock func() time.Time) *Trail {
	return &Trail{spools: audit.Spools(spool), log: log, clock: clock, waiting: map[chain.Source]bool{}}
}

// Item is one record.
type Item struct {
	// Seq is the entry's number in the log, 0 for a record that waits.
	Seq       int64           `json:"seq,omitempty"`
	Time      audit.Time      `json:"time"`
	Event     string          `json:"event"`
	Agent     string          `json:"agent,omitempty"`
	Version   string          `json:"version,omitempty"`
	Container string          `json:"container,omitempty"`
	Subject   string          `json:"subject,omitempty"`
	Policy    string          `json:"policy,omitempty"`
	Result    string          `json:"result,omitempty"`
	Reason    string          `json:"reason,omitempty"`
	Count     int64           `json:"count"`
	Record    json.RawMessage `json:"record"`
}

// Filter says which records are wanted. The zero value wants all.
type Filter struct {
	// Agent is an agent's id, in which * stands for any text.
	Agent string
	// Container is a container's id.
	Container string
	Since     time.Time
	// Events and Results are lists of which one must fit.
	Events, Results []string
}

func (f *Filter) wants(i *Item) bool {
	agent, err := path.Match(f.Agent, i.Agent)
	container, _, _ := strings.Cut(i.Container, "/")
	return (f.Agent == "" || err == nil && agent) &&
		(f.Container == "" || f.Container == container || f.Container == i.Container) &&
		!i.Time.Before(f.Since) &&
		(len(f.Events) == 0 || slices.Contains(f.Events, i.Event)) &&
		(len(f.Results) == 0 || slices.Contains(f.Results, i.Result))
}

// Next gives the records that are new since it was last asked: first those of the
// log, then those that wait.
func (t *Trail) Next(f Filter, give func(Item) error) error {
	if err := t.logged(f, give); err != nil {
		return err
	}
	items, err := t.spooled()
	if err != nil {
		return unreadable(err, string(t.spools))
	}
	for _, item := range items {
		if !f.wants(&item) {
			continue
		}
		if err := give(item); err != nil {
			return err
		}
	}
	// What was taken in between is in the log now.
	return t.logged(f, give)
}

// logged gives what is new in the log.
func (t *Trail) logged(f Filter, give func(Item) error) error {
	err := chain.Read(t.log, t.seq+1, func(e chain.Entry) error {
		t.seq = max(t.seq, e.Seq)
		if e.Source != nil && t.waiting[*e.Source] {
			delete(t.waiting, *e.Source)
			return nil
		}
		item := itemOf(e.Record)
		item.Seq = e.Seq
		if !f.wants(&item) {
			return nil
		}
		return give(item)
	})
	if err != nil {
		return unreadable(err, t.log)
	}
	return nil
}

func unreadable(err error, on string) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.Wrap(err, fault.AccessDenied, on, "audit records are root's")
	}
	return err
}

// spooled are the records that wait, in the order of their times.
func (t *Trail) spooled() ([]Item, error) {
	head, err := chain.ReadHead(t.log)
	if err != nil {
		// A damaged head is Verify's to tell of; no head means that nothing was taken.
		if errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		head = &chain.Head{}
	}
	var items []Item
	give := func(source chain.Source, record any) error {
		if t.waiting[source] {
			return nil
		}
		data, err := json.Marshal(record)
		if err != nil {
			return err
		}
		t.waiting[source] = true
		items = append(items, itemOf(data))
		return nil
	}
	add := func(spool, dir, instance string, read func(line []byte) (any, error)) error {
		b, err := audit.NewSource(dir).Next(1<<30, head.Taken(spool))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for in, loss := range lossesOf(b, head.Taken(spool), instance, t.clock()) {
			if err := give(chain.Source{Spool: spool, File: in}, loss); err != nil {
				return err
			}
		}
		for _, l := range b.Lines {
			record, err := read(l.Data)
			if err != nil {
				continue
			}
			if err := give(chain.Source{Spool: spool, File: l.File, Line: l.Number}, record); err != nil {
				return err
			}
		}
		return nil
	}
	if err := add(nodeSpool, t.spools.Node(), "", rooted); err != nil {
		return nil, err
	}
	keys, err := t.spools.Runs()
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		id, err := t.spools.Identity(key)
		if err != nil {
			continue // gone meanwhile, or none
		}
		if err := add(runPrefix+key, t.spools.In(key), id.Container, func(line []byte) (any, error) { return stamped(line, id, t.clock()) }); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(items, func(a, b Item) int { return a.Time.Compare(b.Time.Time) })
	return items, nil
}

// itemOf takes out of a record what is shown of it.
func itemOf(record json.RawMessage) Item {
	var r struct {
		Timestamp  audit.Time  `json:"timestamp"`
		EventType  string      `json:"event_type"`
		Agent      audit.Agent `json:"agent"`
		InstanceID string      `json:"instance_id"`
		Capability string      `json:"capability"`
		Operation  string      `json:"operation"`
		Image      string      `json:"image"`
		Policy     string      `json:"policy"`
		Result     string      `json:"result"`
		Reason     string      `json:"reason"`
		Message    string      `json:"message"`
		Count      int64       `json:"count"`
		Lost       int64       `json:"lost"`
		Execution  audit.Run   `json:"execution"`
	}
	if err := json.Unmarshal(record, &r); err != nil {
		return Item{Event: "unreadable", Record: record}
	}
	i := Item{
		Time: r.Timestamp, Event: r.EventType, Agent: r.Agent.ID, Version: r.Agent.Version, Container: r.InstanceID,
		Subject: r.Capability, Policy: r.Policy, Result: r.Result, Reason: r.Reason, Count: max(1, r.Count), Record: record,
	}
	switch r.EventType {
	case audit.EventAdmission:
		i.Subject, i.Reason = r.Image, cmp.Or(r.Message, r.Reason)
	case audit.EventExecution:
		i.Container, i.Result = r.Execution.InstanceID, r.Execution.Result
		i.Subject = (time.Duration(r.Execution.ExecutionTimeMS) * time.Millisecond).String()
	case audit.EventLoss:
		i.Count = r.Lost
	case audit.EventDecision:
		if r.Operation != "" {
			i.Subject = r.Capability + " (" + r.Operation + ")"
		}
	default:
		i.Reason = r.Message
	}
	return i
}

// Summary counts records.
type Summary struct {
	// Executions and Admissions are by result.
	Executions map[string]int64 `json:"executions"`
	Admissions map[string]int64 `json:"admissions"`
	Decisions  []Tally          `json:"decisions"`
	Lost       int64            `json:"lost"`
	Anomalies  int64            `json:"anomalies"`
}

// Tally is how often one rule decided so about one agent.
type Tally struct {
	Agent  string `json:"agent"`
	Policy string `json:"policy"`
	Result string `json:"result"`
	Count  int64  `json:"count"`
}

// NewSummary counts nothing yet.
func NewSummary() *Summary {
	return &Summary{Executions: map[string]int64{}, Admissions: map[string]int64{}, Decisions: []Tally{}}
}

// Add counts a record.
func (s *Summary) Add(i Item) {
	switch i.Event {
	case audit.EventExecution:
		s.Executions[i.Result]++
	case audit.EventAdmission:
		s.Admissions[i.Result]++
	case audit.EventLoss:
		s.Lost += i.Count
	case audit.EventAnomaly, audit.EventBroken:
		s.Anomalies++
	case audit.EventDecision:
		at := slices.IndexFunc(s.Decisions, func(t Tally) bool { return t.Agent == i.Agent && t.Policy == i.Policy && t.Result == i.Result })
		if at < 0 {
			at = len(s.Decisions)
			s.Decisions = append(s.Decisions, Tally{Agent: i.Agent, Policy: i.Policy, Result: i.Result})
		}
		s.Decisions[at].Count += i.Count
	}
}

// Sort brings the decisions into an order that does not depend on when they were
// made.
func (s *Summary) Sort() {
	slices.SortFunc(s.Decisions, func(a, b Tally) int {
		return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Policy, b.Policy), strings.Compare(a.Result, b.Result))
	})
}
