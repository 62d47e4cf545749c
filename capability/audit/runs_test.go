package audit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/limits"
)

func spools(t testing.TB) Spools {
	t.Helper()
	s := Spools(filepath.Join(t.TempDir(), "spool"))
	if err := s.Make(); err != nil {
		t.Fatal(err)
	}
	return s
}

func add(t testing.TB, s Spools, at time.Time, mark string) Identity {
	t.Helper()
	id := Identity{Key: NewKey(at), Container: "c1", Namespace: "default", Agent: Agent{ID: "a.b", Version: "1.0.0"}, Mark: mark, Created: At(at)}
	if err := s.Add(id, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestARunsDirectoryIsItsHostsAndItsIdentityRoots(t *testing.T) {
	s := spools(t)
	mark := filepath.Join(t.TempDir(), "mark")
	id := add(t, s, began, mark)
	for path, mode := range map[string]os.FileMode{s.In(id.Key): 0o700 | os.ModeDir, filepath.Join(string(s), runDir, id.Key): 0o700 | os.ModeDir, filepath.Join(string(s), runDir, id.Key, identityName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	got, err := s.Identity(id.Key)
	if err != nil || *got != id {
		t.Errorf("%+v, %v", got, err)
	}
	if !got.Over() {
		t.Error("a run without its mark goes on")
	}
	put(t, filepath.Dir(mark), "mark", id.Key)
	if got.Over() {
		t.Error("a run with its mark is over")
	}
	put(t, filepath.Dir(mark), "mark", NewKey(began))
	if !got.Over() {
		t.Error("another run's mark counts")
	}
	for age, want := range map[time.Duration]bool{0: false, settling - time.Millisecond: false, settling: true, -time.Second: true} {
		if got.Settled(began.Add(age)) != want {
			t.Errorf("settled after %v: %v", age, !want)
		}
	}
	id.Agent.Version = "2.0.0"
	if err := s.Replace(id); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Identity(id.Key); err != nil || got.Agent.Version != "2.0.0" {
		t.Errorf("%+v, %v", got, err)
	}
	if runs, err := s.Runs(); err != nil || len(runs) != 1 {
		t.Errorf("%v, %v", runs, err)
	}
	if err := s.Remove(id.Key); err != nil {
		t.Fatal(err)
	}
	if runs, err := s.Runs(); err != nil || len(runs) != 0 {
		t.Errorf("%v, %v", runs, err)
	}
	for _, key := range []string{id.Key, "", "..", "../../etc", strings.Repeat("0", 31)} {
		if got, err := s.Identity(key); err == nil {
			t.Errorf("%q: %+v", key, got)
		}
	}
	if runs, err := Spools(t.TempDir()).Runs(); err != nil || runs != nil {
		t.Errorf("%v, %v", runs, err)
	}
}

func TestWhatNobodyCollectsIsBoundedAndItsLossRecorded(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes thousands of directories; run without -short")
	}
	s := spools(t)
	// Among the oldest, two go on: they are kept whatever comes.
	mark := filepath.Join(t.TempDir(), "mark")
	alive := add(t, s, began.Add(time.Millisecond), mark)
	put(t, filepath.Dir(mark), "mark", alive.Key)
	for i := range limits.AuditRuns + 3 {
		id := add(t, s, began.Add(time.Duration(i)*time.Second), "")
		if i < 5 {
			sp := OpenSpool(s.In(id.Key), limits.AuditRunBytes)
			for range 10 {
				if err := sp.Append([]byte("{}")); err != nil {
					t.Fatal(err)
				}
			}
			if err := sp.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		if err := s.Prune(began); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := s.Runs()
	if err != nil || len(runs) > limits.AuditRuns || len(runs) < limits.AuditRuns-pruneAtOnce {
		t.Errorf("%d runs wait, %v", len(runs), err)
	}
	if _, err := s.Identity(alive.Key); err != nil {
		t.Errorf("a run that goes on was removed: %v", err)
	}
	lost := int64(0)
	for _, text := range texts(waiting(t, s.Node())) {
		var l Loss
		if err := json.Unmarshal([]byte(text), &l); err != nil || l.EventType != EventLoss || !strings.Contains(l.Reason, "nobody collected them") {
			t.Errorf("%s, %v", text, err)
		}
		lost += l.Lost
	}
	if lost < 40 || lost > 50 {
		t.Errorf("a loss of %d is recorded", lost)
	}
}

func BenchmarkPreparation(b *testing.B) {
	s := spools(b)
	for b.Loop() {
		if err := s.Make(); err != nil {
			b.Fatal(err)
		}
		id := add(b, s, time.Now(), "")
		if err := s.Append(Admission{}, Decision{}, Decision{}, Decision{}); err != nil {
			b.Fatal(err)
		}
		if err := s.Prune(began); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Remove(id.Key); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
