package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testnet"
)

// role makes the test binary the command itself, or an extension.
const role = "MENTAT_HOST_NET_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(role) == "main" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const canary = "sk-CANARY/4f+1=9&c d"

// guest asks for a capability, invokes it, and writes the answer, or the detail
// of the error, to its output.
func guest(capability, op, head, body string) string {
	frame := string(binary.LittleEndian.AppendUint32(nil, uint32(len(head)))) + head + body
	escape := func(s string) string {
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
  (import "mentat" "log" (func $log (param i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "%s") (data (i32.const 1024) "%s") (data (i32.const 2048) "%s")
  (func $drain (param $h i32) (result i32) (local $n i32)
    (loop $again
      (local.set $n (call $read (local.get $h) (i32.const 65536) (i32.const 65536)))
      (if (i32.gt_s (local.get $n) (i32.const 0)) (then
        (call $write (i32.const 65536) (local.get $n))
        (call $log (i32.const 65536) (local.get $n))
        (br $again))))
    (local.get $n))
  (func (export "process") (result i32) (local $h i32) (local $n i32)
    (local.set $h (call $request (i32.const 0) (i32.const %d) (i32.const 0) (i32.const 0)))
    (if (i32.ge_s (local.get $h) (i32.const 0)) (then
      (local.set $h (call $invoke (local.get $h) (i32.const 1024) (i32.const %d) (i32.const 2048) (i32.const %d)))))
    (local.set $n (local.get $h))
    (if (i32.ge_s (local.get $h) (i32.const 0)) (then (local.set $n (call $drain (local.get $h)))))
    (if (i32.lt_s (local.get $n) (i32.const 0)) (then
      (drop (call $drain (call $last)))
      (return (i32.sub (i32.const 0) (local.get $n)))))
    (i32.const 0)))`, escape(capability), escape(op), escape(frame), len(capability), len(op), len(frame))
}

// run is one run of the program.
type run struct {
	stdout, stderr string
	status         int
	exit           hostdoc.Exit
	// records are the audit log's.
	records [][]byte
	// left is everything that the run left in its directory, document and secrets
	// aside.
	left string
}

// document writes a document for a guest.
func document(t *testing.T, wat string, edit func(*hostdoc.Document)) (path string) {
	t.Helper()
	dir := t.TempDir()
	wasm, err := wasmtime.Wat2Wasm(wat)
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := host.Compile(wasm)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := json.Marshal(hostdoc.Secrets{"key": canary})
	if err != nil {
		t.Fatal(err)
	}
	doc := &hostdoc.Document{
		Agent: hostdoc.Agent{ID: "test.agent", Version: "1.0.0"}, Instance: "i1", Entry: hostdoc.EntryProcess,
		Module: filepath.Join(dir, "module.cwasm"), Input: hostdoc.Input{Kind: hostdoc.InputText}, SecretsFile: filepath.Join(dir, "secrets.json"),
		Limits:    hostdoc.Limits{MemoryBytes: 8 * limits.MiB, InputBytes: limits.MiB, OutputBytes: limits.MiB},
		LogFormat: "json", ExitFile: filepath.Join(dir, "exit.json"), Termination: filepath.Join(dir, "termination"),
		Audit: &hostdoc.Audit{Dir: filepath.Join(dir, "audit"), Bytes: limits.AuditRunBytes},
	}
	edit(doc)
	data, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "host.json")
	if err := os.Mkdir(doc.Audit.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{doc.Module: compiled, filepath.Join(dir, "secrets.json"): secrets, path: data} {
		if err := os.WriteFile(file, content, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func command(t *testing.T, path string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), self, "run", "--document", path)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = []string{role + "=main"}, &out, &errs, filepath.Dir(path)
	return cmd, &out, &errs
}

func finished(t *testing.T, path string, cmd *exec.Cmd, out, errs *bytes.Buffer) run {
	t.Helper()
	r := run{stdout: out.String(), stderr: errs.String(), status: cmd.ProcessState.ExitCode()}
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		switch e.Name() {
		case "exit.json":
			if err := json.Unmarshal(data, &r.exit); err != nil {
				t.Fatal(err)
			}
			fallthrough
		default:
			r.left += string(data)
		case "secrets.json", "host.json", "module.cwasm":
		}
	}
	nothing := func(string) (int64, bool) { return 0, false }
	batch, err := audit.NewSource(filepath.Join(dir, "audit")).Next(1000, nothing)
	if err != nil || len(batch.Lost)+len(batch.Anomalies) > 0 {
		t.Errorf("%+v, %v", batch, err)
	}
	for _, line := range batch.Lines {
		r.records = append(r.records, line.Data)
		r.left += string(line.Data)
	}
	return r
}

func execute(t *testing.T, wat string, edit func(*hostdoc.Document)) run {
	t.Helper()
	path := document(t, wat, edit)
	cmd, out, errs := command(t, path)
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return finished(t, path, cmd, out, errs)
}

// leaks tells in which form the secret is in a text.
func leaks(text string) []string {
	var found []string
	forms := map[string]string{"plain": canary, "a part": canary[:10], "query": url.QueryEscape(canary), "path": url.PathEscape(canary), "hex": hex.EncodeToString([]byte(canary))}
	for _, before := range []string{"", "u", "us"} {
		core := base64.StdEncoding.EncodeToString([]byte(before + canary))
		forms["base64 after "+before] = core[4 : len(core)-4]
	}
	for name, form := range forms {
		if strings.Contains(text, form) {
			found = append(found, name)
		}
	}
	return found
}

func granted(ca *testnet.CA, capability string) func(*hostdoc.Document) {
	return func(d *hostdoc.Document) {
		d.Grants = []hostdoc.Grant{{Capability: capability, Rule: "r"}}
		d.Network = &hostdoc.Network{
			Mode: hostdoc.NetworkRestricted, CAFile: ca.File,
			Inject: []hostdoc.Injection{
				{Capability: capability, Header: "Authorization", Prefix: "Bearer ", Secret: "key"},
				{Capability: capability, Query: "key", Secret: "key"},
			},
			Limits: hostdoc.NetworkLimits{Concurrent: 4, RequestBytes: 1 << 20, ResponseBytes: 1 << 20, TimeoutMillis: 60_000},
		}
	}
}

func TestAGuestUsesASecretThatShowsNowhere(t *testing.T) {
	ca := testnet.NewCA(t)
	var arrived atomic.Int32
	s := ca.Secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+canary && r.URL.Query().Get("key") == canary {
			arrived.Add(1)
		}
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		fmt.Fprintf(w, "you sent %s %v %s", r.RequestURI, r.Header, base64.StdEncoding.EncodeToString([]byte("user:"+canary)))
	}), nil, "127.0.0.1")
	capability := "network:https:127.0.0.1:" + s.Port
	for _, c := range []struct {
		name, head, want string
		status           int
		grant            string
	}{
		{"an answer that repeats it", `{"method":"GET","url":"` + s.At("127.0.0.1", "/a?b=c") + `"}`, "you sent /a?b=c&key=****", 0, capability},
		{"a refusal", `{"method":"GET","url":"` + s.At("127.0.0.1", "/") + `","headers":[["authorization","x"]]}`, "is set by the node", 2, capability},
		{"another host", `{"method":"GET","url":"https://example.com/"}`, "does not cover", 2, capability},
		{"nobody there", `{"method":"GET","url":"https://127.0.0.1:1/"}`, "refuses the connection", 7, "network:https:127.0.0.1:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			grant := c.grant
			if grant != capability {
				// Port 1 is not for HTTP; any closed one will do.
				grant = "network:https:127.0.0.1:" + closedPort(t)
				c.head = strings.Replace(c.head, ":1/", ":"+grant[strings.LastIndexByte(grant, ':')+1:]+"/", 1)
			}
			r := execute(t, guest(grant, "fetch", c.head, ""), granted(ca, grant))
			if r.status != c.status || !strings.Contains(r.stdout, c.want) {
				t.Errorf("status %d, %s\n%s", r.status, r.stdout, r.stderr)
			}
			if found := leaks(r.stdout + r.stderr + r.left); len(found) > 0 {
				t.Errorf("the secret shows (%s): %+v", strings.Join(found, ", "), r)
			}
		})
	}
	if arrived.Load() != 1 {
		t.Errorf("the secret arrived %d times", arrived.Load())
	}
}

// Every decision and the run itself become records: what was allowed and by which
// rule, what was denied and why, and what a rule in dry run would have denied.
func TestARunLeavesItsRecords(t *testing.T) {
	ca := testnet.NewCA(t)
	s := ca.Secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), nil, "127.0.0.1")
	under := func(path string) string { return "network:https:127.0.0.1/32:" + s.Port + path }
	capability := under("")
	began := time.Now()
	for _, c := range []struct {
		path   string
		hole   hostdoc.Hole
		status int
		want   []string
		run    audit.Execution
	}{
		{"/soon/x", hostdoc.Hole{Capability: "network:*:127.0.0.1/soon", Rule: "no-soon", DryRun: true}, 0, []string{
			capability + " '' r allowed ''",
			under("/soon/x") + " 'use' no-soon dry_run 'the rule would deny it'",
			capability + " 'fetch' r allowed ''",
			// A connection serves many paths.
			under("") + " 'use' no-soon dry_run 'the rule would deny it'",
		}, audit.Execution{Execution: audit.Run{Result: "success"}, Security: audit.Security{PolicyChecks: 2, CapabilityGrants: 2}}},
		{"/never", hostdoc.Hole{Capability: "network:*:127.0.0.1/never", Rule: "no-never"}, 2, []string{
			capability + " '' r allowed ''",
			capability + " 'fetch' no-never denied 'the rule \"no-never\" of the node's policy denies it'",
		}, audit.Execution{Execution: audit.Run{Result: "failure"}, Security: audit.Security{PolicyChecks: 2, CapabilityGrants: 1, CapabilityDenials: 1}}},
	} {
		r := execute(t, guest(capability, "fetch", `{"method":"GET","url":"`+s.At("127.0.0.1", c.path)+`"}`, ""), func(d *hostdoc.Document) {
			granted(ca, capability)(d)
			d.Agent.Trust, d.Agent.Signer = "verified", "dev@example.com"
			d.Holes = []hostdoc.Hole{c.hole}
		})
		if r.status != c.status || len(r.records) != len(c.want)+1 {
			t.Errorf("%s: status %d, records %s\n%s", c.path, r.status, bytes.Join(r.records, nil), r.stderr)
			continue
		}
		// The request is under way when the host tells that it began.
		var got []string
		for _, line := range r.records[:len(c.want)] {
			var d audit.Decision
			if err := json.Unmarshal(line, &d); err != nil {
				t.Fatal(err)
			}
			if d.EventType != audit.EventDecision || d.InstanceID != "i1" || d.Agent.ID != "test.agent" {
				t.Errorf("%s: %s", c.path, line)
			}
			got = append(got, fmt.Sprintf("%s '%s' %s %s '%s'", d.Capability, d.Operation, d.Policy, d.Result, d.Reason))
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q; want %q", c.path, got, c.want)
		}
		var e audit.Execution
		if err := json.Unmarshal(r.records[len(c.want)], &e); err != nil {
			t.Fatal(err)
		}
		if e.EventType != audit.EventExecution || e.Execution.Result != c.run.Execution.Result || e.Security != c.run.Security ||
			e.Execution.InstanceID != "i1" || len(e.Execution.CapabilitiesRequested) != 1 || e.Execution.CapabilitiesRequested[0] != capability ||
			e.Execution.MemoryUsedMB != 1 || e.Agent.Attestation.Signer != "dev@example.com" || e.Timestamp.Before(began.Add(-time.Second)) {
			t.Errorf("%s: %s", c.path, r.records[len(c.want)])
		}
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	s := testnet.Plain(t, http.NotFoundHandler())
	s.Close()
	return s.Port
}

func TestAKilledHostLeavesNoCoreAndNoSecret(t *testing.T) {
	ca := testnet.NewCA(t)
	arrived, stop := make(chan struct{}), make(chan struct{})
	s := ca.Secure(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-stop
	}), nil, "127.0.0.1")
	defer close(stop)
	capability := "network:https:127.0.0.1:" + s.Port
	path := document(t, guest(capability, "fetch", `{"method":"GET","url":"`+s.At("127.0.0.1", "/")+`"}`, ""), granted(ca, capability))
	cmd, out, errs := command(t, path)
	// A shell that allows cores.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1 << 30, Max: 1 << 30}); err != nil {
		t.Log("cores cannot be allowed: ", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-arrived:
	case <-time.After(time.Minute):
		t.Fatalf("nothing arrives: %s", errs.String())
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
			t.Error(line)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.CoreDump() {
		t.Error("there is a core")
	}
	r := finished(t, path, cmd, out, errs)
	if found := leaks(r.stdout + r.stderr + r.left); len(found) > 0 {
		t.Errorf("the secret shows: %v", found)
	}
}

func TestAGuestChatsWithAModelOfTheNode(t *testing.T) {
	s := testnet.Plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+canary {
			t.Errorf("%v", r.Header)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"model":"m-1","choices":[{"index":0,"delta":{"content":"hello `+canary+`"},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
	}))
	r := execute(t, guest("llm:m-1", "chat", "{}", `{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`), func(d *hostdoc.Document) {
		d.Grants = []hostdoc.Grant{{Capability: "llm:m-*", Rule: "r"}}
		d.LLM = &hostdoc.LLM{Providers: []hostdoc.LLMProvider{{Name: "p", URL: s.URL + "/v1", Models: []string{"m-*"}, Secret: "key"}}, Tokens: 100}
	})
	if r.status != 0 || !strings.Contains(r.stdout, `{"delta":{"content":"hello ****`) || !strings.HasSuffix(r.stdout, "{\"finish\":\"stop\"}\n") {
		t.Errorf("status %d, %q\n%s", r.status, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stderr, "a chat with m-1 of the provider p used ") || !strings.Contains(r.stderr, "tokens (estimated)") {
		t.Errorf("nobody is told what the chat used: %s", r.stderr)
	}
	if found := leaks(r.stdout + r.stderr + r.left); len(found) > 0 {
		t.Errorf("the secret shows: %v", found)
	}
}

func TestAGuestCallsAnExtensionOfTheNode(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sample")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../host/extension/sample").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := execute(t, guest("extension:notes", "put", `{"key":"a"}`, "text"), func(d *hostdoc.Document) {
		d.Grants = []hostdoc.Grant{{Capability: "extension:notes", Rule: "r"}}
		d.Extensions = []hostdoc.Extension{{Name: "notes", Command: []string{program}}}
		d.SecretsFile = ""
	})
	if r.status != 0 || r.stdout != "\x02\x00\x00\x00{}" {
		t.Errorf("status %d, %q\n%s", r.status, r.stdout, r.stderr)
	}
}

func TestAServiceThatCannotBeOpenedIsReported(t *testing.T) {
	ca := testnet.NewCA(t)
	const capability = "network:https:127.0.0.1"
	good := granted(ca, capability)
	for name, c := range map[string]struct {
		edit func(*hostdoc.Document)
		want fault.Reason
	}{
		"no secrets":     {func(d *hostdoc.Document) { d.SecretsFile = "/nonexistent" }, fault.PolicyInvalid},
		"a public range": {func(d *hostdoc.Document) { d.Network.AllowPrivate = []string{"0.0.0.0/0"} }, fault.PolicyInvalid},
		"no provider":    {func(d *hostdoc.Document) { d.LLM = &hostdoc.LLM{} }, fault.Internal},
		"no bucket's key": {func(d *hostdoc.Document) {
			d.Media = &hostdoc.Media{S3: &hostdoc.MediaS3{Endpoint: "https://s3.example"}}
		}, fault.PolicyInvalid},
		"no extension": {func(d *hostdoc.Document) {
			d.Extensions = []hostdoc.Extension{{Name: "x", Command: []string{"/nonexistent"}}}
		}, fault.Unavailable},
		"a server": {func(d *hostdoc.Document) {
			d.Limits.DeadlineMillis = 1000
			d.Serve = &hostdoc.Serve{Listen: "256.0.0.1:1", Concurrent: 1, BufferBytes: 1 << 20, DrainMillis: 1}
		}, fault.Unavailable},
		"a lock that the command line does not know": {func(d *hostdoc.Document) { d.Lock = &hostdoc.Lock{} }, fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			r := execute(t, guest(capability, "fetch", "{}", ""), func(d *hostdoc.Document) {
				good(d)
				c.edit(d)
			})
			if r.status != fault.RowOf(c.want).Exit || r.exit.Reason != string(c.want) || r.exit.Status != r.status || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("status %d, %+v, %q, %q", r.status, r.exit, r.stdout, r.stderr)
			}
		})
	}
}

func TestAHostThatWaitsForAServerEndsWithItsDeadline(t *testing.T) {
	ca := testnet.NewCA(t)
	stop := make(chan struct{})
	s := ca.Secure(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}), nil, "127.0.0.1")
	defer close(stop)
	capability := "network:https:127.0.0.1:" + s.Port
	began := time.Now()
	r := execute(t, guest(capability, "fetch", `{"method":"GET","url":"`+s.At("127.0.0.1", "/")+`"}`, ""), func(d *hostdoc.Document) {
		granted(ca, capability)(d)
		d.Limits.DeadlineMillis = 300
	})
	if r.status != fault.ExitDeadline || time.Since(began) > 40*time.Second {
		t.Errorf("status %d after %v", r.status, time.Since(began))
	}
}
