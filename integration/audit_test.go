package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
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
	"syscall"
	"testing"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/limits"
)

// guestAsks asks for two variables, of which it may have one, prints the marker
// and succeeds.
const guestAsks = `(module
  (import "mentat" "request_capability" (func $request (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "` + marker + `\n")
  (data (i32.const 32) "env:GREETINGenv:SECRET")
  (func (export "process") (result i32)
    (drop (call $request (i32.const 32) (i32.const 12) (i32.const 0) (i32.const 0)))
    (drop (call $request (i32.const 44) (i32.const 10) (i32.const 0) (i32.const 0)))
    (call $write_output (i32.const 0) (i32.const 21))
    (i32.const 0)))`

// signed makes a signed agent and imports it.
func (g *guarded) signed(id, wat, extra string) string {
	g.t.Helper()
	l, _ := g.build(id, assemble(g.t, wat), extra)
	g.sign(l, g.pki, id, g.registry.Host+"/agents/"+id, nil)
	g.load(l, g.ref(id))
	return g.ref(id)
}

// service is a node service that runs.
type service struct {
	*guarded
	cmd  *exec.Cmd
	logs *safeBuffer
}

// safeBuffer is written while it is read.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// service starts the node service and waits until it runs.
func (g *guarded) service() *service {
	g.t.Helper()
	s := &service{guarded: g, cmd: g.Command(context.WithoutCancel(g.t.Context()), "mentatctl", "node", "serve", "--config", g.ConfigFile()), logs: new(safeBuffer)}
	s.cmd.Stderr = s.logs
	if err := s.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { s.end(syscall.SIGKILL) })
	eventually(g.t, "the node service", func() bool { return strings.Contains(s.logs.String(), "the node service runs") })
	return s
}

// end ends the service by a signal, once, and tells its status.
func (s *service) end(sig syscall.Signal) int {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(sig) // it may have ended
		_ = s.cmd.Wait()              // its status says it
	}
	return s.cmd.ProcessState.ExitCode()
}

// record is one of `mentatctl audit show`.
type record struct {
	Seq, Count                                               int64
	Event, Agent, Container, Subject, Policy, Result, Reason string
	Record                                                   json.RawMessage
}

// records are those of a container, or all.
func (g *guarded) records(args ...string) []record {
	g.t.Helper()
	args = append([]string{"audit", "show", "--config", g.ConfigFile(), "--output", "json"}, args...)
	out, err := g.Command(g.t.Context(), "mentatctl", args...).Output()
	if err != nil {
		g.t.Fatalf("audit show: %v", err)
	}
	var shown struct{ Records []record }
	if err := json.Unmarshal(out, &shown); err != nil {
		g.t.Fatalf("%v in %s", err, out)
	}
	return shown.Records
}

// executions are the results of a container's runs.
func (g *guarded) executions(id string) string {
	g.t.Helper()
	var results []string
	for _, r := range g.records("--container", id, "--kind", "execution") {
		results = append(results, r.Result)
	}
	return strings.Join(results, " ")
}

// logged tells whether nothing waits any more.
func (g *guarded) logged() bool {
	g.t.Helper()
	for _, r := range g.records() {
		if r.Seq == 0 {
			return false
		}
	}
	return true
}

// intact verifies the log.
func (g *guarded) intact() {
	g.t.Helper()
	if out, err := g.Command(g.t.Context(), "mentatctl", "audit", "verify", "--config", g.ConfigFile()).CombinedOutput(); err != nil {
		g.t.Errorf("audit verify: %v\n%s", err, out)
	}
}

// hostOf is the process of a task's host.
func (tk *task) hostOf() int {
	tk.t.Helper()
	for line := range strings.Lines(tk.ctr("tasks", "ls")) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == tk.id {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				tk.t.Fatal(err)
			}
			return pid
		}
	}
	tk.t.Fatalf("%s has no process", tk.id)
	return 0
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// What is decided on a node and how its agents ran is in the log, whether the node
// service runs meanwhile or not.
func TestWhatHappensOnANodeIsRecorded(t *testing.T) {
	g := newGuarded(t)
	g.grants(`  - {name: no-secrets, deny: ["env:SECRET"]}
  - {name: greeting, allow: ["env:GREETING"]}
`)
	asks := g.signed("asks", guestAsks, "wasm:\n  capabilities: [\"env:GREETING\", \"env:SECRET\"]\n")
	unsigned, _ := g.build("unsigned", assemble(t, guestMarker(2)), "")
	g.load(unsigned, g.ref("unsigned"))
	box := g.container("busybox", "/bin/sh", "-c", "exit 0")
	run := func() (ran, refused string) {
		t.Helper()
		ran, refused = g.id(), g.id()
		if got := g.run("", "--env", "GREETING=hi", "--env", "SECRET=s3cret", asks, ran); got.code != 0 || !strings.Contains(got.stdout, marker) {
			t.Fatalf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
		}
		if got := g.run("", g.ref("unsigned"), refused); got.code == 0 || strings.Contains(got.stdout, marker) {
			t.Fatalf("an unsigned agent ran: %+v", got)
		}
		return ran, refused
	}
	check := func(ran, refused string) {
		t.Helper()
		var got []string
		for _, r := range g.records("--container", ran) {
			if r.Event == audit.EventExecution {
				got = append(got, fmt.Sprintf("%s %s %s", r.Event, r.Agent, r.Result))
				continue
			}
			got = append(got, fmt.Sprintf("%s %s %s %s %s", r.Event, r.Agent, r.Subject, r.Policy, r.Result))
		}
		want := []string{
			"admission asks " + asks + " agents allowed",
			"capability_decision asks env:GREETING (grant) greeting allowed",
			"capability_decision asks env:SECRET (grant) no-secrets denied",
			"capability_decision asks env:GREETING greeting allowed",
			"capability_decision asks env:SECRET no-secrets denied",
			"agent_execution asks success",
		}
		if !slices.Equal(got, want) {
			t.Errorf("records of %s:\n%s\nwant\n%s", ran, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		denied := g.records("--container", refused)
		if len(denied) != 1 || denied[0].Event != audit.EventAdmission || denied[0].Result != "denied" || denied[0].Policy != "agents" || denied[0].Reason == "" {
			t.Errorf("records of %s: %+v", refused, denied)
		}
		for _, r := range g.records() {
			if strings.Contains(string(r.Record), "s3cret") {
				t.Errorf("a record has a variable's value: %s", r.Record)
			}
		}
	}
	// Nobody collects: the records wait.
	ran, refused := run()
	check(ran, refused)
	if g.logged() {
		t.Error("nothing waits, and nobody collects")
	}
	// The service takes what waits and what comes.
	s := g.service()
	other, alsoRefused := run()
	if got := g.run("", box, g.id()); got.code != 0 {
		t.Errorf("%+v", got)
	}
	eventually(t, "every record in the log", g.logged)
	check(ran, refused)
	check(other, alsoRefused)
	if status := s.end(syscall.SIGTERM); status != 0 {
		t.Errorf("SIGTERM ended the service with %d: %s", status, s.logs)
	}
	g.intact()
	if left, err := audit.Spools(filepath.Join(g.Root, "audit", "spool")).Runs(); err != nil || len(left) > 0 {
		t.Errorf("of runs that ended is left %q, %v", left, err)
	}
}

// Whoever is killed without a word, what was recorded before is in the log once,
// and each run has the record of its end.
func TestNoRecordIsLostWhoeverIsKilled(t *testing.T) {
	g := newGuarded(t)
	spin, asks := g.signed("spin", guestSpin, ""), g.signed("asks", guestAsks, "")
	running := func() *task {
		t.Helper()
		tk := g.start(spin)
		eventually(t, "the agent runs", func() bool { return strings.Contains(tk.output(), marker) })
		return tk
	}
	s := g.service()

	host := running()
	kill(t, host.hostOf())
	eventually(t, "the task's end", func() bool { return host.state() == "STOPPED" })
	host.remove()
	eventually(t, "the record of a killed host's run", func() bool { return g.executions(host.id) == "killed" })

	shim := running()
	pid := shimOf(t, g.Namespace, shim.id)
	if pid == 0 {
		t.Fatal("the task has no shim")
	}
	kill(t, pid)
	eventually(t, "the task to be reported as gone", func() bool { s := shim.state(); return s == "" || s == "STOPPED" })
	shim.remove()
	eventually(t, "the record of a run whose shim was killed", func() bool { return g.executions(shim.id) == "killed" })

	// The service is killed again and again while agents run and end.
	var ids []string
	across := running()
	for round := range 3 {
		for range 3 {
			id := g.id()
			ids = append(ids, id)
			if got := g.run("", asks, id); got.code != 0 {
				t.Fatalf("%+v", got)
			}
		}
		s.end(syscall.SIGKILL)
		id := g.id()
		ids = append(ids, id)
		if got := g.run("", asks, id); got.code != 0 {
			t.Fatalf("without the service: %+v", got)
		}
		if round == 1 {
			// A host is killed while nobody collects.
			kill(t, across.hostOf())
			eventually(t, "the task's end", func() bool { return across.state() == "STOPPED" })
			across.remove()
		}
		s = g.service()
	}
	eventually(t, "every record in the log", g.logged)
	eventually(t, "the record of a run whose host was killed meanwhile", func() bool { return g.executions(across.id) == "killed" })
	for _, id := range ids {
		if got := g.executions(id); got != "success" {
			t.Errorf("%s: executions %q", id, got)
		}
		if got := g.records("--container", id, "--kind", "admission"); len(got) != 1 {
			t.Errorf("%s: admissions %+v", id, got)
		}
		// env:GREETING and env:SECRET, which nobody granted.
		if got := g.records("--container", id, "--kind", "decision", "--result", "denied"); len(got) != 2 {
			t.Errorf("%s: denials %+v", id, got)
		}
	}
	for _, id := range []string{host.id, shim.id, across.id} {
		if got := g.executions(id); got != "killed" {
			t.Errorf("%s: executions %q", id, got)
		}
	}
	g.answers()
	if status := s.end(syscall.SIGTERM); status != 0 {
		t.Errorf("SIGTERM ended the service with %d: %s", status, s.logs)
	}
	g.intact()
}

// guestFloods asks five thousand times for what it may not have.
const guestFloods = `(module
  (import "mentat" "request_capability" (func $request (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 32) "env:SECRET")
  (func (export "process") (result i32) (local $n i32)
    (loop $more
      (drop (call $request (i32.const 32) (i32.const 10) (i32.const 0) (i32.const 0)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 5000))))
    (i32.const 0)))`

// An agent that makes decisions by the thousand fills no disk and is not held up,
// and what has no record of its own is counted.
func TestAFloodOfDecisionsIsBoundedAndTold(t *testing.T) {
	g := newGuarded(t)
	id := g.id()
	if got := g.run("", g.signed("floods", guestFloods, ""), id); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	var size int64
	err := filepath.WalkDir(filepath.Join(g.Root, "audit", "spool", "run"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil || size > limits.AuditRunBytes+64*limits.KiB {
		t.Errorf("%d bytes wait, %v", size, err)
	}
	var denied, lost int64
	for _, r := range g.records("--container", id) {
		switch {
		case r.Event == audit.EventDecision && r.Result == audit.Denied:
			denied += r.Count
		case r.Event == audit.EventLoss:
			lost += r.Count
		}
	}
	if denied == 0 || lost == 0 || denied+lost < 5000 {
		t.Errorf("%d denials are recorded, %d records lost", denied, lost)
	}
	if got := g.executions(id); got != "success" {
		t.Errorf("executions %q", got)
	}
}

// answers checks that the service tells its health and metrics.
func (g *guarded) answers() {
	g.t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(g.Root, "node.sock"))
	}}}
	defer client.CloseIdleConnections()
	for path, part := range map[string]string{"/healthz": "ok", "/metrics": "mentatlab_"} {
		resp, err := client.Get("http://node" + path)
		if err != nil {
			g.t.Fatal(err)
		}
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(body.String(), part) {
			g.t.Errorf("%s: %s %v\n%s", path, resp.Status, err, body.String())
		}
	}
}

// A request that the node's rules grant carries the node's secret, in a container
// as under mentatctl run; what they cut out of the grant is refused on the way.
func TestAGrantedRequestCarriesTheNodesSecret(t *testing.T) {
	g := newGuarded(t)
	node.Privileged(t, "mentat-host-net")
	var mu sync.Mutex
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.Path+" "+r.Header.Get("Authorization"))
		fmt.Fprint(w, "you sent "+r.Header.Get("Authorization"))
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	if err := os.WriteFile(filepath.Join(g.Etc, "key"), []byte("sk-CANARY\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.grants(fmt.Sprintf(`  - name: api
    allow: ["network:http:%[1]s/v1"]
    private: ["127.0.0.0/8"]
    inject: [{capability: "network:http:%[1]s/v1", header: Authorization, prefix: "Bearer ", secret: {file: key}}]
  - {name: soon, dry_run: true, deny: ["network:http:%[1]s/v1/old"]}
`, host))
	fetch := func(path string) outcome {
		t.Helper()
		id := "fetch" + strings.ReplaceAll(path, "/", "-")
		ref := g.signed(id, guestFetch("network:http:"+host+"/v1", server.URL+path), fmt.Sprintf("wasm:\n  capabilities: [\"network:http:%s\"]\n", host))
		return g.run("", "--net-host", ref, id)
	}
	for path, want := range map[string]string{"/v1/x": "you sent Bearer ****", "/v1/old": "you sent Bearer ****", "/v2": `"code":-2`} {
		if got := fetch(path); !strings.Contains(got.stdout, want) || strings.Contains(got.stdout+got.stderr, "CANARY") {
			t.Errorf("%s: %+v", path, got)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, s := range seen {
		if !strings.HasPrefix(s, "/v1/") || !strings.HasSuffix(s, " Bearer sk-CANARY") {
			t.Errorf("the server saw %q", s)
		}
	}
	if len(seen) != 2 {
		t.Errorf("the server saw %q", seen)
	}
	// At the grant of each, and at the request of one.
	if got := g.records("--result", "dry_run", "--container", "fetch-v1-old"); len(got) < 2 || got[0].Policy != "soon" || got[1].Policy != "soon" || !strings.Contains(got[1].Subject, "/v1/old") {
		t.Errorf("in dry run %+v", got)
	}
	for _, r := range g.records() {
		if strings.Contains(string(r.Record), "CANARY") {
			t.Errorf("a record has the secret: %s", r.Record)
		}
	}
}

// guestFetch asks for a capability, requests a URL by it and prints the answer, or
// why not.
func guestFetch(capability, url string) string {
	head := `{"method":"GET","url":"` + url + `"}`
	frame := string([]byte{byte(len(head)), byte(len(head) >> 8), 0, 0}) + head
	text := func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, `\%02x`, s[i])
		}
		return b.String()
	}
	return fmt.Sprintf(`(module
  (import "mentat" "request_capability" (func $request (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "invoke_capability" (func $invoke (param i32 i32 i32 i32 i32) (result i32)))
  (import "mentat" "last_error" (func $last (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "%s") (data (i32.const 1024) "fetch") (data (i32.const 2048) "%s")
  (func $drain (param $h i32) (result i32) (local $n i32)
    (loop $again
      (local.set $n (call $read (local.get $h) (i32.const 65536) (i32.const 65536)))
      (if (i32.gt_s (local.get $n) (i32.const 0)) (then
        (call $write (i32.const 65536) (local.get $n))
        (br $again))))
    (local.get $n))
  (func (export "process") (result i32) (local $n i32)
    (local.set $n (call $request (i32.const 0) (i32.const %d) (i32.const 0) (i32.const 0)))
    (if (i32.ge_s (local.get $n) (i32.const 0)) (then
      (local.set $n (call $invoke (local.get $n) (i32.const 1024) (i32.const 5) (i32.const 2048) (i32.const %d)))))
    (if (i32.ge_s (local.get $n) (i32.const 0)) (then (local.set $n (call $drain (local.get $n)))))
    (if (i32.lt_s (local.get $n) (i32.const 0)) (then (drop (call $drain (call $last)))))
    (i32.const 0)))`, text(capability), text(frame), len(capability), len(frame))
}
