package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/capability/audit/chain"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// roleEnv makes the test binary a part of a node: "service", "preparer" or "host".
const roleEnv = "NODE_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Args[1], os.Args[2:]))
	}
	os.Exit(m.Run())
}

func configIn(dir string) *nodeconfig.Config {
	c, err := nodeconfig.Parse(filepath.Join(dir, "config.toml"), []byte("[audit]\nspool = 'spool'\nlog = 'log'\n[verify]\nstate = 'state'\n[capability]\nmedia = 'media'\n[service]\nlisten = 'unix:"+filepath.Join(dir, "s")+"'\n"))
	if err != nil {
		panic(err)
	}
	return c
}

// play is one process of a node, until it is killed. Writers say what was
// acknowledged.
func play(role, dir string, args []string) int {
	c := configIn(dir)
	spools := audit.Spools(c.Audit.Spool)
	switch role {
	case "service":
		err := Run(context.Background(), Options{Config: c, Interval: time.Millisecond})
		fmt.Fprintln(os.Stderr, err)
		return 1
	case "preparer":
		for i := 0; ; i++ {
			if err := spools.Append(&audit.Admission{EventType: audit.EventAdmission, InstanceID: args[0], Namespace: strconv.Itoa(i)}); err != nil {
				continue // not acknowledged: somebody held the lock for too long
			}
			if _, err := fmt.Printf("%s %d\n", args[0], i); err != nil {
				return 0
			}
		}
	case "host":
		r, err := audit.NewRecorder(&hostdoc.Document{Instance: args[1], Audit: &hostdoc.Audit{Dir: spools.In(args[0]), Bytes: 1 << 30}}, time.Now)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for i := range limits.AuditBurst - 10 {
			r.Decision(audit.Choice{Time: time.Now(), Run: strconv.Itoa(i), Capability: "env:A", Rule: "r"})
			if _, err := fmt.Printf("%s %d\n", args[1], i); err != nil {
				return 0
			}
		}
		return 0
	}
	return 2
}

// bench is a collector with its spool and log.
type bench struct {
	testing.TB
	*collector
	dir   string
	mu    sync.Mutex
	now   time.Time
	taken []any
}

var discard = slog.New(slog.DiscardHandler)

var began = time.Date(2026, 1, 15, 10, 30, 45, 0, time.UTC)

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{TB: t, dir: t.TempDir(), now: began}
	b.restart()
	return b
}

func (b *bench) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *bench) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

// restart is what a service that was killed and started again has.
func (b *bench) restart() {
	b.Helper()
	if b.collector != nil {
		b.log.Close()
	}
	spools := audit.Spools(filepath.Join(b.dir, "spool"))
	if err := spools.Make(); err != nil {
		b.Fatal(err)
	}
	log, err := chain.Open(filepath.Join(b.dir, "log"), chain.Options{Clock: b.clock})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { log.Close() })
	b.collector = newCollector(spools, log, b.clock, discard, func(r any) { b.taken = append(b.taken, r) })
	if err := b.forget(); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) collect() {
	b.Helper()
	for more := true; more; {
		var err error
		if more, err = b.pass(); err != nil {
			b.Fatal(err)
		}
	}
}

// run is a run that goes on until end is called.
func (b *bench) run(container string) (id audit.Identity, end func()) {
	b.Helper()
	id = audit.Identity{
		Key: audit.NewKey(b.clock()), Container: container, Namespace: "default", Created: audit.At(b.clock()), Mark: filepath.Join(b.dir, "mark-"+container),
		Agent: audit.Agent{ID: "example.agent", Version: "1.0.0", Runtime: "wasm", Attestation: audit.Attestation{Verified: true, Signer: "dev@example.com", TrustLevel: "verified"}},
	}
	if err := os.WriteFile(id.Mark, []byte(id.Key), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := b.spools.Add(id, os.Getuid(), os.Getgid()); err != nil {
		b.Fatal(err)
	}
	return id, func() {
		if err := os.Remove(id.Mark); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *bench) recorder(id audit.Identity) *audit.Recorder {
	b.Helper()
	r, err := audit.NewRecorder(&hostdoc.Document{Instance: id.Container, Audit: &hostdoc.Audit{Dir: b.spools.In(id.Key), Bytes: limits.AuditRunBytes}}, b.clock)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// raw puts lines into a run's directory as a host that was taken over can.
func (b *bench) raw(id audit.Identity, lines ...string) {
	b.Helper()
	s := audit.OpenSpool(b.spools.In(id.Key), limits.AuditRunBytes)
	for _, l := range lines {
		if err := s.Append([]byte(l)); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// executions and others are what the log has.
func (b *bench) entries() (all []chain.Entry) {
	b.Helper()
	if err := chain.Read(filepath.Join(b.dir, "log"), 0, func(e chain.Entry) error { all = append(all, e); return nil }); err != nil {
		b.Fatal(err)
	}
	r, err := chain.Verify(filepath.Join(b.dir, "log"), "")
	if err != nil || len(r.Problems) > 0 {
		b.Fatalf("%+v, %v", r, err)
	}
	return all
}

func of[T any](b *bench, event string) (list []T) {
	b.Helper()
	for _, e := range b.entries() {
		var head struct {
			EventType string `json:"event_type"`
		}
		if err := json.Unmarshal(e.Record, &head); err != nil {
			b.Fatal(err)
		}
		if head.EventType == event {
			var r T
			if err := json.Unmarshal(e.Record, &r); err != nil {
				b.Fatal(err)
			}
			list = append(list, r)
		}
	}
	return list
}

func TestARunsRecordsGoIntoTheLogOnce(t *testing.T) {
	b := newBench(t)
	id, end := b.run("c1")
	r := b.recorder(id)
	if err := b.spools.Append(&audit.Admission{EventType: audit.EventAdmission, InstanceID: "c1", Result: audit.Allowed}); err != nil {
		t.Fatal(err)
	}
	r.Decision(audit.Choice{Time: b.clock(), Run: "r1", Capability: "env:A", Allowed: true, Rule: "web"})
	b.collect()
	b.collect()
	b.restart()
	r.Decision(audit.Choice{Time: b.clock(), Run: "r1", Capability: "env:B", Rule: "none", Reason: "no"})
	r.Execution(audit.Outcome{Run: "r1", Began: b.clock(), Duration: time.Second})
	b.collect()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	end()
	b.restart()
	b.collect()
	b.restart()
	b.collect()
	if got := len(of[audit.Admission](b, audit.EventAdmission)); got != 1 {
		t.Errorf("%d admissions", got)
	}
	decisions := of[audit.Decision](b, audit.EventDecision)
	if len(decisions) != 2 || decisions[0].Capability != "env:A" || decisions[1].Capability != "env:B" || decisions[0].Agent != id.Agent || decisions[0].InstanceID != "c1/r1" {
		t.Errorf("%+v", decisions)
	}
	executions := of[audit.Execution](b, audit.EventExecution)
	if len(executions) != 1 || executions[0].Execution.Result != audit.Success || executions[0].Execution.ExecutionTimeMS != 1000 || executions[0].Agent != id.Agent {
		t.Errorf("%+v", executions)
	}
	if keys, err := b.spools.Runs(); err != nil || len(keys) > 0 {
		t.Errorf("still waiting: %v, %v", keys, err)
	}
	if spools := b.log.Spools(); len(spools) != 1 || spools[0] != nodeSpool {
		t.Errorf("not forgotten: %v", spools)
	}
}

// Between the old mark and the new one a container that is created anew looks like
// one that ended.
func TestACreateThatIsRetriedKeepsItsDirectory(t *testing.T) {
	b := newBench(t)
	id, takeMark := b.run("again")
	decide := func(capability string) {
		r := b.recorder(id)
		r.Decision(audit.Choice{Time: b.clock(), Run: "1", Capability: capability, Rule: "none"})
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	decide("env:A")
	b.collect()
	b.advance(time.Minute)
	id.Created = audit.At(b.clock())
	if err := b.spools.Replace(id); err != nil {
		t.Fatal(err)
	}
	takeMark()
	b.collect()
	if keys, err := b.spools.Runs(); err != nil || !slices.Equal(keys, []string{id.Key}) {
		t.Fatalf("what is being prepared again was taken for ended: %v, %v", keys, err)
	}
	if err := os.WriteFile(id.Mark, []byte(id.Key), 0o600); err != nil {
		t.Fatal(err)
	}
	decide("env:B")
	b.collect()
	takeMark()
	b.advance(time.Minute)
	b.collect()
	if got := of[audit.Decision](b, audit.EventDecision); len(got) != 2 || got[1].Capability != "env:B" {
		t.Errorf("%+v", got)
	}
	if keys, err := b.spools.Runs(); err != nil || len(keys) > 0 {
		t.Errorf("still waiting: %v, %v", keys, err)
	}
}

func TestAHostThatWasKilledHasAnExecutionRecordAllTheSame(t *testing.T) {
	b := newBench(t)
	killed, endKilled := b.run("killed")
	r := b.recorder(killed)
	r.Decision(audit.Choice{Time: b.clock(), Run: "1", Capability: "env:A", Rule: "none"})
	never, endNever := b.run("never-began")
	b.collect()
	b.advance(3 * time.Second)
	endKilled()
	endNever()
	b.collect()
	if keys, err := b.spools.Runs(); err != nil || !slices.Equal(keys, []string{never.Key}) {
		t.Errorf("what may still be prepared is not waited for: %v, %v", keys, err)
	}
	b.advance(3 * time.Second)
	b.restart()
	b.collect()
	list := of[audit.Execution](b, audit.EventExecution)
	if len(list) != 1 || list[0].Execution.Result != audit.Killed || list[0].Execution.InstanceID != "killed" || list[0].Agent != killed.Agent || list[0].Execution.ExecutionTimeMS != 3000 {
		t.Errorf("%+v", list)
	}
	if keys, err := b.spools.Runs(); err != nil || len(keys) > 0 {
		t.Errorf("still waiting: %v, %v", keys, err)
	}
}

func TestWhoARecordIsFromIsWhatRootKnows(t *testing.T) {
	b := newBench(t)
	id, _ := b.run("c1")
	forged := `"agent":{"id":"other.agent","version":"9","runtime":"native","attestation":{"verified":true,"signer":"root@example.com","trust_level":"god"}}`
	b.raw(id,
		`{"timestamp":"1999-01-01T00:00:00Z","event_type":"agent_execution",`+forged+`,"execution":{"instance_id":"c2","capabilities_requested":["`+strings.Repeat(`x","`, 200)+`"],"memory_used_mb":-5,"execution_time_ms":9007199254740993,"result":"su\nccess"},"security":{"sandbox_violations":-1,"policy_checks":1,"capability_grants":0,"capability_denials":0}}`,
		`{"timestamp":"2999-01-01T00:00:00Z","event_type":"capability_decision",`+forged+`,"instance_id":"c2/run one","capability":"env:A`+strings.Repeat("A", 5000)+`","policy":"p","result":"allowed","reason":"\u001b[2J"}`,
		`{"timestamp":"2026-01-15T10:30:46Z","event_type":"capability_decision",`+forged+`,"instance_id":"c2/run-1","capability":"env:A","policy":"p","result":"denied","reason":""}`,
		`{"event_type":"audit_loss","timestamp":"2026-01-15T10:30:46Z","instance_id":"c9","lost":3,"reason":"r"}`,
	)
	b.collect()
	for _, e := range of[audit.Execution](b, audit.EventExecution) {
		if e.Agent != id.Agent || e.Execution.InstanceID != "c1" || e.Execution.MemoryUsedMB != 0 || e.Execution.ExecutionTimeMS > 1<<53 || e.Security.SandboxViolations != 0 ||
			len(e.Execution.CapabilitiesRequested) != maxRequested || e.Execution.Result != "su ccess" || !e.Timestamp.Equal(began) {
			t.Errorf("%+v", e)
		}
	}
	decisions := of[audit.Decision](b, audit.EventDecision)
	if len(decisions) != 2 {
		t.Fatalf("%+v", decisions)
	}
	for i, want := range []string{"c1", "c1/run-1"} {
		d := decisions[i]
		if d.Agent != id.Agent || d.InstanceID != want || len(d.Capability) > limits.AuditText+8 || strings.Contains(d.Reason, "\x1b") || d.Timestamp.Year() != 2026 {
			t.Errorf("%+v", d)
		}
	}
	if l := of[audit.Loss](b, audit.EventLoss); len(l) != 1 || l[0].InstanceID != "c1" || l[0].Lost != 3 {
		t.Errorf("%+v", l)
	}
}

func TestWhatNoHostWritesIsAnAnomaly(t *testing.T) {
	for name, lines := range map[string][]string{
		"an admission":        {`{"event_type":"admission","instance_id":"c1","result":"allowed"}`},
		"the service's words": {`{"event_type":"audit_removed","last":5,"hash":"x"}`},
		"no event":            {`{}`},
		"an unknown key":      {`{"event_type":"audit_loss","timestamp":"2026-01-15T10:30:46Z","lost":3,"reason":"r","x":1}`},
		"another result":      {`{"event_type":"capability_decision","timestamp":"2026-01-15T10:30:46Z","agent":{"id":"","version":"","runtime":"","attestation":{"verified":false,"signer":"","trust_level":""}},"instance_id":"","capability":"","policy":"","result":"maybe","reason":""}`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			id, _ := b.run("c1")
			b.raw(id, lines...)
			b.collect()
			if got := of[audit.Note](b, audit.EventAnomaly); len(got) != 1 || got[0].InstanceID != "c1" {
				t.Errorf("%+v", got)
			}
			if len(b.entries()) > 1 {
				t.Errorf("something was taken for a record: %s", b.entries()[0].Record)
			}
		})
	}
	// A flood of them is not one in the log, and a torn line is none.
	b := newBench(t)
	id, _ := b.run("c1")
	b.raw(id, "[]", `{"event_ty`, "\x00")
	for range 5 {
		b.raw(id, slicesOf(`{"event_type":"x"}`, 50)...)
		b.collect()
	}
	if got := of[audit.Note](b, audit.EventAnomaly); len(got) != maxAnomalies {
		t.Errorf("%d anomalies are recorded", len(got))
	}
}

func slicesOf(s string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = s
	}
	return list
}

func TestOneRunsFloodKeepsNobodyElse(t *testing.T) {
	b := newBench(t)
	flood, endFlood := b.run("flood")
	quiet, _ := b.run("quiet")
	line := func(i int) string {
		data, err := json.Marshal(&audit.Decision{Timestamp: audit.At(began), EventType: audit.EventDecision, Capability: fmt.Sprintf("env:A%d", i), Result: audit.Denied})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	const all = runBurst + 500
	s := audit.OpenSpool(b.spools.In(flood.Key), 64*limits.MiB)
	for i := range all {
		if err := s.Append([]byte(line(i))); err != nil {
			t.Fatal(err)
		}
	}
	b.raw(quiet, line(-1))
	b.collect()
	count := func() (flooded, others int) {
		for _, d := range of[audit.Decision](b, audit.EventDecision) {
			if d.InstanceID == "flood" {
				flooded++
			} else {
				others++
			}
		}
		return flooded, others
	}
	if flooded, others := count(); flooded != runBurst || others != 1 {
		t.Errorf("%d of the flood, %d of the others", flooded, others)
	}
	// It is over, and still taken at its own pace, to the end.
	endFlood()
	for range 10 {
		b.advance(time.Second)
		b.collect()
	}
	if flooded, _ := count(); flooded != all {
		t.Errorf("%d of the flood", flooded)
	}
	if keys, err := b.spools.Runs(); err != nil || len(keys) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestALossIsCountedOnceWhoeverIsKilled(t *testing.T) {
	b := newBench(t)
	id, _ := b.run("c1")
	s := audit.OpenSpool(b.spools.In(id.Key), 16*limits.KiB)
	data, err := json.Marshal(&audit.Decision{Timestamp: audit.At(began), EventType: audit.EventDecision, Result: audit.Denied})
	if err != nil {
		t.Fatal(err)
	}
	const all = 1500
	random := rand.New(rand.NewPCG(7, 8))
	for range all {
		if err := s.Append(data); err != nil {
			t.Fatal(err)
		}
		switch random.IntN(150) {
		case 0:
			b.collect()
		case 1:
			b.restart()
			b.collect()
		}
	}
	b.advance(time.Minute)
	b.collect()
	lost := int64(0)
	for _, l := range of[audit.Loss](b, audit.EventLoss) {
		lost += l.Lost
	}
	if got := int64(len(of[audit.Decision](b, audit.EventDecision))); got+lost != all || lost == 0 {
		t.Errorf("%d taken and %d lost of %d", got, lost, all)
	}
}

func TestADamagedDirectoryKeepsNobodyElse(t *testing.T) {
	b := newBench(t)
	good, _ := b.run("good")
	b.raw(good, `{"event_type":"audit_loss","timestamp":"2026-01-15T10:30:46Z","lost":1,"reason":"r"}`)
	for _, key := range []string{"nonsense", strings.Repeat("0", 32), strings.Repeat("1", 32)} {
		if err := os.MkdirAll(filepath.Join(b.dir, "spool", "run", key), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "spool", "run", strings.Repeat("1", 32), "identity.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken, _ := b.run("broken")
	if err := os.RemoveAll(b.spools.In(broken.Key)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.spools.In(broken.Key), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.collect()
	if got := of[audit.Loss](b, audit.EventLoss); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// start runs a process of a node.
func start(t *testing.T, role, dir string, args ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{dir}, args...)...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, out
}

// TestNoAcknowledgedRecordIsLostWhoeverIsKilled kills service, preparers and hosts
// again and again while they work, and then holds the log against what they said.
func TestNoAcknowledgedRecordIsLostWhoeverIsKilled(t *testing.T) {
	dir := t.TempDir()
	spools := audit.Spools(configIn(dir).Audit.Spool)
	if err := spools.Make(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var writers sync.WaitGroup
	write := func(role string, stop int, args ...string) {
		cmd, out := start(t, role, dir, args...)
		writers.Go(func() {
			words := bufio.NewReader(out)
			for i := 0; ; i++ {
				word, err := words.ReadString('\n')
				if err != nil {
					break
				}
				mu.Lock()
				acknowledged[strings.TrimSpace(word)] = true
				mu.Unlock()
				if i == stop {
					_ = cmd.Process.Kill()
				}
			}
			_ = cmd.Wait()
		})
	}
	// The service is killed as long as anybody writes, and three times at least.
	quit, killer := make(chan struct{}), make(chan int)
	go func() {
		for kills := 1; ; kills++ {
			service, _ := start(t, "service", dir)
			var over <-chan struct{}
			if kills > 3 {
				over = quit
			}
			select {
			case <-over:
			case <-time.After(time.Duration(rand.IntN(150)) * time.Millisecond):
				over = nil
			}
			_ = service.Process.Kill()
			_ = service.Wait()
			if over != nil {
				killer <- kills
				return
			}
		}
	}()
	for round := range 4 {
		for i := range 2 {
			name := fmt.Sprintf("p%d-%d", round, i)
			write("preparer", 500+rand.IntN(2000), name)
		}
		name := fmt.Sprintf("h%d", round)
		id := audit.Identity{Key: audit.NewKey(time.Now()), Container: name, Created: audit.At(time.Now()), Mark: filepath.Join(dir, "mark-"+name)}
		if err := os.WriteFile(id.Mark, []byte(id.Key), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spools.Add(id, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
		write("host", 20+rand.IntN(900), id.Key, name)
		writers.Wait()
		if err := os.Remove(id.Mark); err != nil {
			t.Fatal(err)
		}
	}
	close(quit)
	kills := <-killer
	// The last one is left to finish.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, Options{Config: configIn(dir), Interval: time.Millisecond}) }()
	eventually(t, "all runs are collected", func() bool {
		keys, err := spools.Runs()
		return err == nil && len(keys) == 0
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	killed := 0
	err := chain.Read(configIn(dir).Audit.Log, 0, func(e chain.Entry) error {
		var r struct {
			EventType  string `json:"event_type"`
			InstanceID string `json:"instance_id"`
			Namespace  string `json:"namespace"`
			Execution  struct{ Result string }
		}
		if err := json.Unmarshal(e.Record, &r); err != nil {
			return err
		}
		switch r.EventType {
		case audit.EventAdmission:
			found[r.InstanceID+" "+r.Namespace]++
		case audit.EventDecision:
			found[strings.Replace(r.InstanceID, "/", " ", 1)]++
		case audit.EventExecution:
			killed++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for word := range acknowledged {
		if found[word] == 0 {
			t.Errorf("%s was acknowledged and is not in the log", word)
		}
	}
	for word, n := range found {
		if n > 1 {
			t.Errorf("%s is in the log %d times", word, n)
		}
	}
	if r, err := chain.Verify(configIn(dir).Audit.Log, ""); err != nil || len(r.Problems) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if len(acknowledged) < 4000 || killed != 4 {
		t.Errorf("%d records were acknowledged, %d hosts have an execution record, the service was killed %d times", len(acknowledged), killed, kills)
	}
	t.Logf("%d records, the service was killed %d times", len(acknowledged), kills)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// serve runs a service until the test ends, and returns a client of its socket.
func serve(t *testing.T, c *nodeconfig.Config, o Options) (client *http.Client, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan string, 1), make(chan error, 1)
	o.Config, o.Ready = c, func(address string) { ready <- address }
	go func() { done <- Run(ctx, o) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	var address string
	select {
	case address = <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("it does not begin")
	}
	network := "unix"
	if !strings.HasPrefix(address, "/") {
		network = "tcp"
	}
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}}, stop
}

func get(t *testing.T, client *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := client.Get("http://node" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestMetricsTellOfWhatWasRecorded(t *testing.T) {
	dir := t.TempDir()
	c := configIn(dir)
	spools := audit.Spools(c.Audit.Spool)
	if err := spools.Make(); err != nil {
		t.Fatal(err)
	}
	agent := audit.Agent{ID: "example.agent"}
	records := []any{
		&audit.Admission{EventType: audit.EventAdmission, Result: audit.Allowed, SignerOrg: "MentatLab", Microseconds: 2000},
		&audit.Admission{EventType: audit.EventAdmission, Result: audit.Allowed, Agent: agent, Pending: "unsigned", Overlooked: []string{"permissive chain outside-validity", "nonsense"}},
		&audit.Decision{EventType: audit.EventDecision, Agent: agent, Capability: "network:https:a.example", Result: audit.Denied},
		&audit.Decision{EventType: audit.EventDecision, Agent: agent, Capability: "network:https:b.example", Result: audit.DryRun, Count: 7},
		&audit.Decision{EventType: audit.EventDecision, Agent: agent, Capability: "nonsense\"} 1", Result: audit.Denied},
		&audit.Loss{EventType: audit.EventLoss, Lost: 5, Reason: "r"},
	}
	if err := spools.Append(records...); err != nil {
		t.Fatal(err)
	}
	client, stop := serve(t, c, Options{Interval: time.Millisecond})
	if info, err := os.Stat(filepath.Join(dir, "s")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	code, body := get(t, client, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	for _, want := range []string{
		`mentatlab_attestation_verify_seconds_count{result="allowed",signer_org="MentatLab"} 1`,
		`mentatlab_capability_requests_total{agent_id="example.agent",capability_type="network",result="denied"} 1`,
		`mentatlab_capability_requests_total{agent_id="example.agent",capability_type="network",result="dry_run"} 7`,
		`mentatlab_capability_requests_total{agent_id="example.agent",capability_type="other",result="denied"} 1`,
		`mentatlab_audit_lost_total 5`,
		`mentatlab_attestation_pending_total{agent_id="example.agent"} 1`,
		`mentatlab_attestation_overlooked_total{agent_id="example.agent",check="chain"} 1`,
		`mentatlab_audit_records_total{event="admission"} 2`,
		`mentatlab_audit_sequence 7`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if code, body := get(t, client, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get(t, client, "/"); code != http.StatusNotFound {
		t.Errorf("%d", code)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if r, err := chain.Verify(c.Audit.Log, ""); err != nil || len(r.Problems) > 0 || r.Last != 8 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhatCannotBeCollectedIsToldByItsHealth(t *testing.T) {
	dir := t.TempDir()
	c := configIn(dir)
	var mu sync.Mutex
	now := began
	client, _ := serve(t, c, Options{Interval: time.Millisecond, Clock: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	// Something else is in the place of the runs.
	runs := filepath.Join(c.Audit.Spool, "run")
	if err := os.Remove(runs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(runs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service says that it is not well", func() bool {
		mu.Lock()
		now = now.Add(unhealthyAfter)
		mu.Unlock()
		code, body := get(t, client, "/healthz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "cannot list the runs")
	})
	if err := os.Remove(runs); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is well again", func() bool { code, _ := get(t, client, "/healthz"); return code == http.StatusOK })
}

func TestOnlyOneServiceRuns(t *testing.T) {
	dir := t.TempDir()
	client, _ := serve(t, configIn(dir), Options{})
	if err := Run(t.Context(), Options{Config: configIn(dir)}); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("%v", err)
	}
	// And the second took nothing from the first.
	if code, _ := get(t, client, "/healthz"); code != http.StatusOK {
		t.Errorf("%d", code)
	}
}

func TestMetricsAreServedOnThisMachineOnly(t *testing.T) {
	for address, want := range map[string]fault.Reason{
		"127.0.0.1:0": "", "[::1]:0": "", "localhost:0": "", "0.0.0.0:0": fault.PolicyInvalid, ":0": fault.PolicyInvalid, "192.0.2.1:0": fault.PolicyInvalid,
		"example.com:80": fault.PolicyInvalid, "nonsense": fault.PolicyInvalid, "unix:relative": fault.PolicyInvalid, "unix:/proc/no/such": fault.Unavailable, "": fault.PolicyInvalid,
	} {
		l, err := listen(address)
		if fault.ReasonOf(err) != want && !(address == "[::1]:0" && fault.ReasonOf(err) == fault.Unavailable) {
			t.Errorf("%q: %v", address, err)
		}
		if l != nil {
			l.Close()
		}
	}
	// What is no socket is not removed for one.
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen("unix:" + path); fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestRevocationListsAreKeptFresh(t *testing.T) {
	dir := t.TempDir()
	pki := testpki.New(t)
	c := configIn(dir)
	for name, data := range map[string][]byte{"trust/agents/root.pem": testpki.PEM(pki.Root), "root.crl": pki.RootCRL(), "policy.yaml": []byte(`version: 1
scopes:
  - {name: agents, match: ["registry.example/**"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: allow}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
`)} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Verify.Policy = filepath.Join(dir, "policy.yaml")
	client, _ := serve(t, c, Options{Interval: time.Millisecond, Refresh: time.Millisecond, Clock: testpki.Clock})
	eventually(t, "the list is compiled", func() bool {
		entries, err := os.ReadDir(c.Verify.State)
		return err == nil && len(entries) > 0
	})
	eventually(t, "the metrics tell of it", func() bool {
		_, body := get(t, client, "/metrics")
		return strings.Contains(body, `mentatlab_revocation_refreshes_total{result="success"}`)
	})
	if err := os.WriteFile(c.Verify.Policy, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the metrics tell of the failure", func() bool {
		_, body := get(t, client, "/metrics")
		return strings.Contains(body, `mentatlab_revocation_refreshes_total{result="failure"}`)
	})
}

// The service asks a responder, which is asked by no gate here, and takes a release
// list from a server.
func TestTheServiceKeepsAnswersAndReleaseListsNew(t *testing.T) {
	pki := testpki.New(t)
	var asked, fetched atomic.Int32
	releases, err := verifier.SignReleases(verifier.Releases{Number: 1, NextUpdate: testpki.Now.Add(time.Hour).Format(time.RFC3339)}, pki.LeafKey, pki.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/releases" {
			fetched.Add(1)
			_, _ = w.Write(releases)
			return
		}
		asked.Add(1)
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(pki.OCSP())
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	c := configIn(dir)
	for name, data := range map[string][]byte{"trust/agents/root.pem": testpki.PEM(pki.Root), "root.crl": pki.RootCRL(), "policy.yaml": fmt.Appendf(nil, `version: 1
scopes:
  - {name: agents, match: ["registry.example/**"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: allow}
revocation:
  ocsp:
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", url: %q}
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
releases:
  - {name: ours, url: %q, stores: [agents], identities: [email:dev@example.com]}
`, server.URL+"/ocsp", server.URL+"/releases")} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Verify.Policy = filepath.Join(dir, "policy.yaml")
	// An old answer that a gate left.
	old := pki.OCSP(func(r *ocsp.Response) {
		r.ThisUpdate, r.NextUpdate = testpki.Now.Add(-10*time.Hour), testpki.Now.Add(10*time.Hour)
	})
	if err := os.MkdirAll(c.Verify.State, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := verifier.StoreOCSP(c.Verify.State, pki.Leaf, pki.Agent, old, testpki.Now); err != nil {
		t.Fatal(err)
	}
	client, _ := serve(t, c, Options{Interval: time.Millisecond, Refresh: time.Millisecond, Clock: testpki.Clock})
	eventually(t, "the metrics tell of it", func() bool {
		_, body := get(t, client, "/metrics")
		return strings.Contains(body, `mentatlab_ocsp_refreshes_total{result="success"}`) && strings.Contains(body, "mentatlab_ocsp_answers 1\n")
	})
	kept, err := verifier.LoadOCSP(c.Verify.State, pki.Leaf, pki.Agent)
	if err != nil || bytes.Equal(kept, old) || asked.Load() != 1 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
	if _, err := os.Stat(filepath.Join(c.Verify.State, "releases-ours.json")); err != nil {
		t.Error(err)
	}
	// The responder's answer is used up, and it says nothing new any more.
	server.Close()
	if err := os.Remove(filepath.Join(c.Verify.State, "releases-ours.json")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the metrics tell of the failure", func() bool {
		_, body := get(t, client, "/metrics")
		return strings.Contains(body, `mentatlab_revocation_refreshes_total{result="failure"}`)
	})
}

func TestTheServiceRemovesOldMedia(t *testing.T) {
	const hour, day = time.Hour, 24 * time.Hour
	for name, tc := range map[string]struct {
		policy string
		want   []string
	}{
		"by the policy":      {"version: 1\nmedia: {dir: media, keep_days: 1}\n", []string{"young"}},
		"none without a key": {"version: 1\nmedia: {dir: media}\n", []string{"old", "young"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := configIn(dir)
			c.Capability.Policy = filepath.Join(dir, "capabilities.yaml")
			if err := errors.Join(os.WriteFile(c.Capability.Policy, []byte(tc.policy), 0o600), os.Mkdir(c.Capability.Media, 0o755)); err != nil {
				t.Fatal(err)
			}
			store, err := media.OpenDir(c.Capability.Media)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close() })
			refs := map[string]media.Ref{}
			age := func(name string, by time.Duration) {
				then := time.Now().Add(-by)
				if err := os.Chtimes(filepath.Join(c.Capability.Media, name), then, then); err != nil {
					t.Fatal(err)
				}
			}
			for name, old := range map[string]time.Duration{"old": day + hour, "young": day - hour} {
				ref, err := store.Put(t.Context(), "text/plain", strings.NewReader(name), int64(len(name)))
				if err != nil {
					t.Fatal(err)
				}
				refs[name] = ref
				age(ref.Hex(), old)
			}
			// A killed writer's file goes in either case: it tells that there was a sweep.
			if err := os.WriteFile(filepath.Join(c.Capability.Media, ".new-x"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			age(".new-x", 2*day)
			_, stop := serve(t, c, Options{Refresh: time.Millisecond})
			eventually(t, "a sweep", func() bool {
				_, err := os.Stat(filepath.Join(c.Capability.Media, ".new-x"))
				return errors.Is(err, fs.ErrNotExist)
			})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			for name, ref := range refs {
				r, _, err := store.Open(t.Context(), ref, 100)
				if there := err == nil; there != slices.Contains(tc.want, name) {
					t.Errorf("%s: %v", name, err)
				} else if there {
					_ = r.Close()
				}
			}
		})
	}
}

func TestLabelsAreBounded(t *testing.T) {
	m := newMetrics()
	for i := range 2 * maxAgents {
		m.observe(&audit.Decision{EventType: audit.EventDecision, Agent: audit.Agent{ID: fmt.Sprintf("agent-%d", i)}, Capability: fmt.Sprintf("kind%d:x", i), Result: audit.Denied})
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mentatlab_capability_requests_total" && len(f.GetMetric()) != maxAgents+1 {
			t.Errorf("%d series", len(f.GetMetric()))
		}
	}
}

func FuzzStamped(f *testing.F) {
	f.Add([]byte(`{"event_type":"audit_loss","timestamp":"2026-01-15T10:30:46Z","lost":1,"reason":"r"}`))
	f.Add([]byte(`{"event_type":"capability_decision","timestamp":"2026-01-15T10:30:46Z","instance_id":"x/y","capability":"env:A","result":"denied"}`))
	f.Add([]byte(`{"event_type":"agent_execution","execution":{"instance_id":"a/b","capabilities_requested":null,"result":"x"}}`))
	f.Add([]byte(`{"event_type":"admission"}`))
	f.Add([]byte(`nonsense`))
	id := &audit.Identity{Key: "k", Container: "c1", Created: audit.At(began), Agent: audit.Agent{ID: "example.agent"}}
	f.Fuzz(func(t *testing.T, line []byte) {
		record, err := stamped(line, id, began)
		if (record == nil) != (err != nil) {
			t.Fatalf("%v, %v", record, err)
		}
		if err != nil {
			return
		}
		// Whatever it is, it is the run's, and a log can hold it.
		data, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		l, err := chain.Open(t.TempDir(), chain.Options{Clock: func() time.Time { return began }})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Append(chain.Pending{Record: record}); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		switch r := record.(type) {
		case *audit.Execution:
			if r.Agent != id.Agent || !strings.HasPrefix(r.Execution.InstanceID, "c1") {
				t.Fatalf("%+v", r)
			}
		case *audit.Decision:
			if r.Agent != id.Agent || !strings.HasPrefix(r.InstanceID, "c1") {
				t.Fatalf("%+v", r)
			}
		case *audit.Loss:
			if r.InstanceID != "c1" {
				t.Fatalf("%+v", r)
			}
		default:
			t.Fatalf("%T", record)
		}
	})
}
