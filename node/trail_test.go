package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func (b *bench) trail() *Trail {
	return NewTrail(filepath.Join(b.dir, "spool"), filepath.Join(b.dir, "log"), b.clock)
}

// shown is what a trail gives, a line each.
func shown(t testing.TB, tr *Trail, f Filter) string {
	t.Helper()
	var list []string
	if err := tr.Next(f, func(i Item) error {
		where := "waits"
		if i.Seq > 0 {
			where = "log"
		}
		list = append(list, strings.Join([]string{where, i.Event, i.Agent, i.Container, i.Subject, i.Policy, i.Result}, " "))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, "\n")
}

func TestATrailShowsEachRecordOnceWhereverItIs(t *testing.T) {
	b := newBench(t)
	tr := b.trail()
	if got := shown(t, tr, Filter{}); got != "" {
		t.Errorf("an empty node shows %q", got)
	}
	id, _ := b.run("c1")
	r := b.recorder(id)
	if err := b.spools.Append(&audit.Admission{Timestamp: audit.At(began), EventType: audit.EventAdmission, InstanceID: "c1", Image: "r/a:1", Result: audit.Allowed, Policy: "agents"}); err != nil {
		t.Fatal(err)
	}
	b.advance(time.Second)
	r.Decision(audit.Choice{Time: b.clock(), Run: "1", Capability: "env:A", Operation: "get", Rule: "none"})
	const first = "waits admission  c1 r/a:1 agents allowed\nwaits capability_decision example.agent c1/1 env:A (get) none denied"
	if got := shown(t, tr, Filter{}); got != first {
		t.Errorf("%s", got)
	}
	if got := shown(t, tr, Filter{}); got != "" {
		t.Errorf("shown twice: %s", got)
	}
	b.collect()
	if got := shown(t, tr, Filter{}); got != "" {
		t.Errorf("shown again from the log: %s", got)
	}
	r.Execution(audit.Outcome{Run: "1", Began: b.clock(), Duration: 1500 * time.Millisecond})
	if got, want := shown(t, tr, Filter{}), "waits agent_execution example.agent c1/1 1.5s  success"; got != want {
		t.Errorf("%s", got)
	}
	// One that begins now sees all of it, in the log's order and then what waits.
	if got, want := shown(t, b.trail(), Filter{}), strings.ReplaceAll(first, "waits", "log")+"\nwaits agent_execution example.agent c1/1 1.5s  success"; got != want {
		t.Errorf("%s", got)
	}
	for _, c := range []struct {
		f    Filter
		want int
	}{
		{Filter{Agent: "example.agent"}, 2}, {Filter{Agent: "example.*"}, 2}, {Filter{Agent: "other"}, 0}, {Filter{Agent: "["}, 0}, {Filter{Container: "c1"}, 3}, {Filter{Container: "c1/1"}, 2}, {Filter{Container: "c"}, 0},
		{Filter{Events: []string{audit.EventAdmission}}, 1}, {Filter{Results: []string{audit.Denied, audit.Success}}, 2}, {Filter{Since: began.Add(500 * time.Millisecond)}, 2}, {Filter{Since: began.Add(time.Hour)}, 0},
	} {
		got := 0
		if err := b.trail().Next(c.f, func(Item) error { got++; return nil }); err != nil || got != c.want {
			t.Errorf("%+v: %d records, %v", c.f, got, err)
		}
	}
	stop := errors.New("enough")
	if err := b.trail().Next(Filter{}, func(Item) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func TestASummaryCountsByAgentRuleAndResult(t *testing.T) {
	b := newBench(t)
	id, end := b.run("c1")
	r := b.recorder(id)
	for range 3 {
		r.Decision(audit.Choice{Time: b.clock(), Run: "1", Capability: "env:A", Allowed: true, Rule: "soon", DryRun: true})
	}
	r.Decision(audit.Choice{Time: b.clock(), Run: "1", Capability: "env:B", Rule: "none"})
	b.raw(id, `{"event_type":"nonsense"}`)
	if err := b.spools.Append(&audit.Loss{EventType: audit.EventLoss, Lost: 4}, &audit.Admission{EventType: audit.EventAdmission, Result: audit.Denied}); err != nil {
		t.Fatal(err)
	}
	end()
	b.collect()
	s := NewSummary()
	if err := b.trail().Next(Filter{}, func(i Item) error { s.Add(i); return nil }); err != nil {
		t.Fatal(err)
	}
	s.Sort()
	want := []Tally{{"example.agent", "none", audit.Denied, 1}, {"example.agent", "soon", audit.DryRun, 3}}
	if len(s.Decisions) != 2 || s.Decisions[0] != want[0] || s.Decisions[1] != want[1] || s.Lost != 4 || s.Admissions[audit.Denied] != 1 || s.Executions[audit.Killed] != 1 || s.Anomalies != 1 {
		t.Errorf("%+v", s)
	}
}

// A loss shows even where nobody collects, and once.
func TestATrailTellsOfALossBeforeItIsLogged(t *testing.T) {
	b := newBench(t)
	id, _ := b.run("c1")
	s := audit.OpenSpool(b.spools.In(id.Key), 16*limits.KiB)
	data, err := json.Marshal(&audit.Decision{Timestamp: audit.At(began), EventType: audit.EventDecision, Result: audit.Denied})
	if err != nil {
		t.Fatal(err)
	}
	const all = 500
	for range all {
		if err := s.Append(data); err != nil {
			t.Fatal(err)
		}
	}
	follows := b.trail()
	count := func(tr *Trail) (kept, lost int64) {
		t.Helper()
		err := tr.Next(Filter{Container: "c1"}, func(i Item) error {
			if i.Event == audit.EventLoss {
				lost += i.Count
			} else {
				kept++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return kept, lost
	}
	if kept, lost := count(follows); kept+lost != all || lost == 0 {
		t.Errorf("%d wait and %d are lost of %d", kept, lost, all)
	}
	b.collect()
	if kept, lost := count(follows); kept+lost != 0 {
		t.Errorf("shown again from the log: %d, %d lost", kept, lost)
	}
	if kept, lost := count(b.trail()); kept+lost != all || lost == 0 {
		t.Errorf("logged: %d, and %d lost, of %d", kept, lost, all)
	}
}

func TestATrailThatCannotBeReadIsNotEmpty(t *testing.T) {
	if os.Getuid() == 0 {
		// Root reads everything; another kind of failure does as well.
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "run"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := NewTrail(dir, filepath.Join(dir, "log"), time.Now).Next(Filter{}, func(Item) error { return nil }); err == nil {
			t.Error("nothing was said")
		}
		return
	}
	b := newBench(t)
	if err := os.Chmod(filepath.Join(b.dir, "spool", "run"), 0); err != nil {
		t.Fatal(err)
	}
	if err := b.trail().Next(Filter{}, func(Item) error { return nil }); fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("%v", err)
	}
}
