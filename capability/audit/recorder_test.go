package audit

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

var began = time.Date(2026, 1, 15, 10, 30, 45, 0, time.UTC)

func fixed() time.Time { return began }

func document(dir string) *hostdoc.Document {
	return &hostdoc.Document{
		Instance: "wasm-abc123",
		Agent:    hostdoc.Agent{ID: "mentatlab.secure-processor", Version: "1.0.0", Trust: "verified", Signer: "jane.doe@mentatlab.com"},
		Audit:    &hostdoc.Audit{Dir: dir, Bytes: limits.AuditRunBytes},
	}
}

func recorder(t testing.TB, dir string) *Recorder {
	t.Helper()
	r, err := NewRecorder(document(dir), fixed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// specified is the record of the specification's section 9.2.
const specified = `{
  "timestamp": "2026-01-15T10:30:45Z",
  "event_type": "agent_execution",
  "agent": {
    "id": "mentatlab.secure-processor",
    "version": "1.0.0",
    "runtime": "wasm",
    "attestation": {
      "verified": true,
      "signer": "jane.doe@mentatlab.com",
      "trust_level": "verified"
    }
  },
  "execution": {
    "instance_id": "wasm-abc123",
    "capabilities_requested": [
      "network:https:api.openai.com",
      "env:OPENAI_API_KEY"
    ],
    "memory_used_mb": 45,
    "execution_time_ms": 230,
    "result": "success"
  },
  "security": {
    "sandbox_violations": 0,
    "policy_checks": 3,
    "capability_grants": 2,
    "capability_denials": 0
  }
}`

func TestAnExecutionIsRecordedAsSpecified(t *testing.T) {
	dir := t.TempDir()
	r := recorder(t, dir)
	r.Execution(Outcome{
		Run: "wasm-abc123", Began: began.Add(-230 * time.Millisecond), Duration: 230 * time.Millisecond, Requested: []string{"network:https:api.openai.com", "env:OPENAI_API_KEY"},
		Checks: 3, Grants: 2, MemoryBytes: 45*limits.MiB - 5,
	})
	got := texts(waiting(t, dir))
	if len(got) != 1 {
		t.Fatalf("%q", got)
	}
	want := strings.Replace(specified, "10:30:45Z", "10:30:45.000Z", 1)
	var a, b any
	if err := json.Unmarshal([]byte(got[0]), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &b); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("got  %v\nwant %v", a, b)
	}
	// And the specification's own text is such a record.
	var e Execution
	dec := json.NewDecoder(strings.NewReader(specified))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil || e.Execution.MemoryUsedMB != 45 || !e.Timestamp.Equal(began) {
		t.Errorf("%+v, %v", e, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestHowARunEndedIsItsResult(t *testing.T) {
	dir := t.TempDir()
	r := recorder(t, dir)
	for _, o := range []Outcome{{}, {Status: 3}, {Status: 120, Reason: "trap"}} {
		r.Execution(o)
	}
	var results []string
	for _, text := range texts(waiting(t, dir)) {
		var e Execution
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		results = append(results, e.Execution.Result)
		if e.Execution.CapabilitiesRequested == nil {
			t.Error("the list is null")
		}
	}
	if got := strings.Join(results, " "); got != "success failure trap" {
		t.Error(got)
	}
}

func decisions(t testing.TB, dir string) []Decision {
	t.Helper()
	var list []Decision
	for _, text := range texts(waiting(t, dir)) {
		var d Decision
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		if d.EventType == EventDecision {
			list = append(list, d)
		}
	}
	return list
}

func TestEachDecisionHasItsRecord(t *testing.T) {
	dir := t.TempDir()
	r := recorder(t, dir)
	r.Decision(Choice{Time: began, Run: "1", Capability: "network:https:a.example", Allowed: true, Rule: "web"})
	r.Decision(Choice{Time: began, Run: "1", Capability: "network:https:b.example/x", Operation: "fetch", Rule: "no-b", Reason: "the rule \"no-b\" denies it"})
	r.Decision(Choice{Time: began, Run: "1", Capability: "llm:gpt-4o", Operation: "chat\nforged", Allowed: true, Rule: "soon", DryRun: true})
	got := decisions(t, dir)
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []string{"allowed web network:https:a.example ", "denied no-b network:https:b.example/x fetch", "dry_run soon llm:gpt-4o chat forged"} {
		d := got[i]
		if text := fmt.Sprintf("%s %s %s %s", d.Result, d.Policy, d.Capability, d.Operation); text != want || d.Agent.ID != "mentatlab.secure-processor" || d.InstanceID != "wasm-abc123/1" || d.Count != 0 {
			t.Errorf("%+v, want %s", d, want)
		}
	}
}

func TestAFloodOfDecisionsSharesRecordsThatCount(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	now := began
	r, err := NewRecorder(&hostdoc.Document{Instance: "i", Audit: &hostdoc.Audit{Dir: dir, Bytes: 64 * limits.MiB}}, func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	})
	if err != nil {
		t.Fatal(err)
	}
	const flood = 5000
	for i := range flood {
		r.Decision(Choice{Time: began, Run: "1", Capability: fmt.Sprintf("env:A%d", i%3), Rule: "none"})
	}
	if got := len(decisions(t, dir)); got != limits.AuditBurst {
		t.Errorf("%d records of their own", got)
	}
	// A second later there is room again, and what was counted comes first.
	mu.Lock()
	now = now.Add(time.Second)
	mu.Unlock()
	r.Decision(Choice{Time: began, Run: "1", Capability: "env:B", Rule: "none"})
	for i := range 2 * limits.AuditKeys {
		for range 2 {
			r.Decision(Choice{Time: began, Run: "1", Capability: fmt.Sprintf("env:C%d", i), Rule: "none"})
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	total, unnamed := int64(0), int64(0)
	list := decisions(t, dir)
	for _, d := range list {
		total += max(1, d.Count)
		if d.Capability == "" {
			unnamed += d.Count
		}
	}
	if want := int64(flood + 1 + 4*limits.AuditKeys); total != want {
		t.Errorf("%d decisions are recorded, want %d", total, want)
	}
	if len(list) > limits.AuditBurst+limits.AuditRate+limits.AuditKeys+10 || unnamed == 0 {
		t.Errorf("%d records, %d decisions without a name", len(list), unnamed)
	}
	if third := list[limits.AuditBurst]; third.Count < flood/3-limits.AuditBurst {
		t.Errorf("what was counted did not come first: %+v", third)
	}
}

func TestADiskThatHangsHoldsNobodyUpForEver(t *testing.T) {
	dir := t.TempDir()
	r := recorder(t, dir)
	r.spool.mu.Lock() // as a write that does not return
	const calls = 3 * queued
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() { r.Decision(Choice{Time: began, Run: "1", Capability: fmt.Sprintf("env:A%d", i), Rule: "r"}) })
	}
	wg.Wait() // ends although nothing is written
	if got := len(decisions(t, dir)); got != 0 {
		t.Errorf("%d records", got)
	}
	r.spool.mu.Unlock()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	written, lost := 0, int64(0)
	for _, text := range texts(waiting(t, dir)) {
		var l Loss
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		if l.EventType == EventLoss {
			lost += l.Lost
		} else {
			written++
		}
	}
	if int64(written)+lost != calls || lost == 0 || written < queued {
		t.Errorf("%d written and %d lost of %d", written, lost, calls)
	}
}

func TestARecorderOfNothingDoesNothing(t *testing.T) {
	r, err := NewRecorder(&hostdoc.Document{}, fixed)
	if r != nil || err != nil {
		t.Fatalf("%v, %v", r, err)
	}
	r.Decision(Choice{})
	r.Execution(Outcome{})
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if r, err := NewRecorder(document(filepath.Join(t.TempDir(), "gone")), fixed); r != nil || fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("%v, %v", r, err)
	}
}

func TestAfterItsEndARecorderTakesNothing(t *testing.T) {
	dir := t.TempDir()
	r := recorder(t, dir)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.Decision(Choice{Capability: "env:A"})
	r.Execution(Outcome{})
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if got := texts(waiting(t, dir)); len(got) != 0 {
		t.Errorf("%q", got)
	}
	// That there was a writer can be seen all the same.
	if !NewSource(dir).Began() {
		t.Error("nothing tells that the host began")
	}
	if NewSource(t.TempDir()).Began() {
		t.Error("an empty directory tells that a host began")
	}
}

func TestTextsFromOutsideAreOneShortLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "two\nlines": "two lines", "bad\xffbyte": "bad\uFFFDbyte", "esc\x1b[2J": "esc\uFFFD[2J", strings.Repeat("x", limits.AuditText+9): strings.Repeat("x", limits.AuditText) + "…",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}

func TestATimeIsReadAsItIsWritten(t *testing.T) {
	at := At(time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.FixedZone("x", 3600)))
	data, err := json.Marshal(at)
	if err != nil || string(data) != `"2026-01-02T02:04:05.678Z"` {
		t.Errorf("%s, %v", data, err)
	}
	var again Time
	if err := json.Unmarshal(data, &again); err != nil || !again.Equal(at.Time) {
		t.Errorf("%v, %v", again, err)
	}
	for _, bad := range []string{`1`, `"yesterday"`, `null`} {
		if err := json.Unmarshal([]byte(bad), &again); err == nil && bad != "null" {
			t.Errorf("%s is a time", bad)
		}
	}
}

func BenchmarkDecision(b *testing.B) {
	dir := b.TempDir()
	r, err := NewRecorder(&hostdoc.Document{Instance: "i", Audit: &hostdoc.Audit{Dir: dir, Bytes: 1 << 30}}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for b.Loop() {
		r.mu.Lock()
		r.tokens = limits.AuditBurst
		r.mu.Unlock()
		r.Decision(Choice{Time: began, Run: "1", Capability: "network:https:a.example", Allowed: true, Rule: "web"})
	}
}

func BenchmarkShared(b *testing.B) {
	s := OpenShared(b.TempDir(), limits.AuditNodeBytes)
	line := []byte(strings.Repeat("x", 400))
	for b.Loop() {
		if err := s.Append(line, line, line, line); err != nil {
			b.Fatal(err)
		}
	}
}
