package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/host/serve"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// guest does what the first byte of its input says: e echoes, t traps, s spins,
// m takes all memory, f fails, w streams tokens for ever, c counts its runs in
// its memory and asks for a capability.
const guest = `(module
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (import "mentat" "set_error" (func $set_error (param i32 i32 i32) (result i32)))
  (import "mentat" "start_stream" (func $start_stream (param i32 i32) (result i32)))
  (import "mentat" "write_stream" (func $write_stream (param i32 i32 i32) (result i32)))
  (import "mentat" "record_metric" (func $record_metric (param i32 i32 i32 f64 i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request_capability (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "tokens")
  (data (i32.const 8) "not today")
  (data (i32.const 24) "network:https:a.example")
  (func $culprit unreachable)
  (func (export "process") (result i32)
    (local $n i32) (local $h i32) (local $what i32)
    (drop (call $read_input))
    (local.set $n (call $read (i32.const 0) (i32.const 1024) (i32.const 65536)))
    (local.set $what (i32.load8_u (i32.const 1024)))
    (if (i32.eq (local.get $what) (i32.const 116)) (then (call $culprit)))
    (if (i32.eq (local.get $what) (i32.const 115)) (then (loop $forever (br $forever))))
    (if (i32.eq (local.get $what) (i32.const 109)) (then (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)))
    (if (i32.eq (local.get $what) (i32.const 102)) (then (drop (call $set_error (i32.const 7) (i32.const 8) (i32.const 9))) (return (i32.const 3))))
    (if (i32.eq (local.get $what) (i32.const 119)) (then
      (local.set $h (call $start_stream (i32.const 0) (i32.const 6)))
      (loop $again (br_if $again (i32.gt_s (call $write_stream (local.get $h) (i32.const 1024) (i32.const 4096)) (i32.const 0))))
      (return (i32.const 9))))
    (if (i32.eq (local.get $what) (i32.const 99)) (then
      (drop (call $request_capability (i32.const 24) (i32.const 23) (i32.const 0) (i32.const 0)))
      (drop (call $record_metric (i32.const 0) (i32.const 6) (i32.const 0) (f64.const 1) (i32.const 0) (i32.const 0)))
      (i32.store (i32.const 512) (i32.add (i32.load (i32.const 512)) (i32.const 49)))
      (i32.store8 (i32.const 1024) (i32.load8_u (i32.const 512)))))
    (call $write_output (i32.const 1024) (local.get $n))
    (i32.const 0)))`

// command is a WASI command that copies its input to its output and ends with
// the number of its arguments.
const command = `(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 2 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024))
    (loop $more
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
      (br_if $more (i32.load (i32.const 8))))
    (drop (call $args (i32.const 16) (i32.const 20)))
    (call $proc_exit (i32.sub (i32.load (i32.const 16)) (i32.const 1)))))`

var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "mentat-serve-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

var compiled sync.Map

func compile(t testing.TB, text string) string {
	t.Helper()
	if name, ok := compiled.Load(text); ok {
		return name.(string)
	}
	wasm, err := wasmtime.Wat2Wasm(text)
	if err != nil {
		t.Fatal(err)
	}
	code, err := host.Compile(wasm)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(scratch, "*.cwasm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(code); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	compiled.Store(text, f.Name())
	return f.Name()
}

func document(t testing.TB, text string) *hostdoc.Document {
	t.Helper()
	return &hostdoc.Document{
		Version: hostdoc.Version,
		Agent:   hostdoc.Agent{ID: "org.example.served", Version: "1.0.0"}, Instance: "c1",
		Module: compile(t, text), Input: hostdoc.Input{Kind: hostdoc.InputStdin}, Args: []string{"agent.wasm"},
		Serve: &hostdoc.Serve{Listen: "127.0.0.1:0", Concurrent: 8, Queue: 1024, BufferBytes: 16 << 20, DrainMillis: 20_000},
		Limits: hostdoc.Limits{
			MemoryBytes: 4 << 20, DeadlineMillis: 60_000, InputBytes: 1 << 20, OutputBytes: 1 << 30,
		},
		ExitFile: filepath.Join(t.TempDir(), "exit.json"), LogFormat: "json",
	}
}

// logs is a stderr that is read while it is written.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type served struct {
	t    testing.TB
	doc  *hostdoc.Document
	url  string
	logs *logs
	stop context.CancelCauseFunc
	exit chan hostdoc.Exit
}

func start(t testing.TB, text string, edit func(*hostdoc.Document)) *served {
	t.Helper()
	v := &served{t: t, doc: document(t, text), logs: new(logs), exit: make(chan hostdoc.Exit, 1)}
	if edit != nil {
		edit(v.doc)
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(t.Context()))
	v.stop = stop
	go func() { v.exit <- Serve(ctx, v.doc, host.Options{Stderr: v.logs}) }()
	t.Cleanup(func() {
		v.stop(host.Signal(syscall.SIGTERM))
		v.ended()
	})
	eventually(t, "the server listens", func() bool {
		_, rest, ok := strings.Cut(v.logs.String(), "serving on ")
		addr, _, ok2 := strings.Cut(rest, ": ")
		v.url = "http://" + addr
		return ok && ok2
	})
	return v
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

func (v *served) ended() hostdoc.Exit {
	v.t.Helper()
	select {
	case exit := <-v.exit:
		v.exit <- exit
		return exit
	case <-time.After(time.Minute):
		v.t.Fatal("the server does not end")
		return hostdoc.Exit{}
	}
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

func (v *served) post(ctx context.Context, body, accept string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url+serve.ProcessPath, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	return client.Do(r)
}

func (v *served) wants(body string, code int, part string) string {
	v.t.Helper()
	answer, err := v.post(v.t.Context(), body, "*/*")
	if err != nil {
		v.t.Error(err)
		return ""
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != code || !strings.Contains(string(data), part) {
		v.t.Errorf("%q: %s, %q, %v; want %d, %q", body, answer.Status, data, err, code, part)
	}
	return string(data)
}

func (v *served) get(path string) string {
	v.t.Helper()
	answer, err := client.Get(v.url + path)
	if err != nil {
		v.t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return string(data)
}

func TestEachRequestGetsARunOfItsOwn(t *testing.T) {
	v := start(t, guest, func(d *hostdoc.Document) { d.Limits.DeadlineMillis = 500 })
	large := "e" + strings.Repeat("x", 60_000)
	for range 3 {
		v.wants(large, http.StatusOK, large)
		v.wants("c", http.StatusOK, "1") // its memory is zero each time
		v.wants("t", http.StatusBadGateway, `"function":"culprit"`)
		v.wants("s", http.StatusGatewayTimeout, "the deadline of 500 ms passed")
		v.wants("m", http.StatusInsufficientStorage, "4194304 bytes")
		v.wants("f", http.StatusInternalServerError, `not today`)
	}
	page := v.get(serve.MetricsPath)
	for _, line := range []string{
		`mentatlab_http_requests_total{agent_id="org.example.served",code="507",reason="out-of-memory"} 3`,
		`mentatlab_capability_requests_total{agent_id="org.example.served",capability_type="network",result="denied"} 3`,
		`mentatlab_agent_tokens 3`,
		`mentatlab_wasm_execution_seconds_count{agent_id="org.example.served",operation="process"} 18`,
		`mentatlab_wasm_instantiation_seconds_count{agent_id="org.example.served",engine="wasmtime",module_size_bucket="up to 1 MiB"} 18`,
		`mentatlab_wasm_memory_bytes{agent_id="org.example.served",instance_id="c1"} 0`,
	} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("no line %s in\n%s", line, page)
		}
	}
	if got := v.logs.String(); !strings.Contains(got, `"run":"`) || !strings.Contains(got, "in culprit") {
		t.Errorf("the log does not tell which run failed: %s", got)
	}
}

func TestARuleInDryRunCountsAsNoRequest(t *testing.T) {
	v := start(t, guest, func(d *hostdoc.Document) {
		d.Grants = []hostdoc.Grant{{Capability: "network:https:a.example", Rule: "r"}}
		d.Holes = []hostdoc.Hole{{Capability: "network:https:a.example", Rule: "soon", DryRun: true}}
	})
	v.wants("c", http.StatusOK, "1")
	line := `mentatlab_capability_requests_total{agent_id="org.example.served",capability_type="network",result="granted"} 1`
	if page := v.get(serve.MetricsPath); !strings.Contains(page, line+"\n") {
		t.Errorf("no line %s in\n%s", line, page)
	}
}

func TestACommandReadsTheBodyAndWritesTheAnswer(t *testing.T) {
	v := start(t, command, nil)
	body := strings.Repeat("line\n", 50_000)
	if got := v.wants(body, http.StatusOK, ""); got != body {
		t.Errorf("%d bytes of %d", len(got), len(body))
	}
	v.wants("", http.StatusOK, "")
	w := start(t, command, func(d *hostdoc.Document) { d.Args = []string{"agent.wasm", "a", "b", "c"} })
	w.wants("x", http.StatusInternalServerError, `"exit_status":3`)
}

func TestAStreamIsReadWhileTheGuestWrites(t *testing.T) {
	v := start(t, guest, nil)
	ctx, leave := context.WithCancel(t.Context())
	answer, err := v.post(ctx, "w", "text/event-stream")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for chunks := 0; chunks < 100; {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e struct {
				Event, Stream string
				Seq           int
			}
			if err := json.Unmarshal([]byte(data), &e); err != nil || e.Stream != "tokens" || e.Event == "chunk" && e.Seq != chunks {
				t.Fatalf("%s, %v", data, err)
			}
			if e.Event == "chunk" {
				chunks++
			}
		}
	}
	leave()
	eventually(t, "the guest is gone", func() bool { return host.MemoryInUse() == 0 })
}

func TestAClientThatLeavesTakesItsGuestAlong(t *testing.T) {
	v := start(t, guest, nil)
	var clients sync.WaitGroup
	ctx, leave := context.WithCancel(t.Context())
	for range 4 {
		clients.Go(func() {
			if answer, err := v.post(ctx, "s", "*/*"); err == nil {
				answer.Body.Close()
				t.Errorf("a guest that spins gave %s", answer.Status)
			}
		})
	}
	eventually(t, "all four spin", func() bool { return host.MemoryInUse() == 4*128<<10 })
	leave()
	clients.Wait()
	eventually(t, "the guests are gone", func() bool { return host.MemoryInUse() == 0 })
	v.wants("e", http.StatusOK, "e")
	if page := v.get(serve.MetricsPath); !strings.Contains(page, `mentatlab_http_running{agent_id="org.example.served"} 0`) {
		t.Errorf("a place is held:\n%s", page)
	}
}

func TestSIGTERMDrainsAndIsTheExitStatus(t *testing.T) {
	v := start(t, guest, nil)
	v.wants("e", http.StatusOK, "e")
	v.stop(host.Signal(syscall.SIGTERM))
	exit := v.ended()
	if exit.Status != 143 || exit.Reason != string(fault.Canceled) || !strings.Contains(exit.Message, "ended by SIGTERM, after every request was answered") {
		t.Errorf("%+v", exit)
	}
	data, err := os.ReadFile(v.doc.ExitFile)
	var reported hostdoc.Exit
	if err = errors.Join(err, json.Unmarshal(data, &reported)); err != nil || reported != exit {
		t.Errorf("reported %+v, %v", reported, err)
	}
	if answer, err := client.Get(v.url + serve.HealthPath); err == nil {
		answer.Body.Close()
		t.Error("it still answers")
	}
}

func TestAGuestThatOutlivesTheDrainIsCancelled(t *testing.T) {
	v := start(t, guest, func(d *hostdoc.Document) { d.Serve.DrainMillis = 100 })
	answered := make(chan string, 1)
	go func() {
		answer, err := v.post(t.Context(), "s", "*/*")
		if err != nil {
			answered <- err.Error()
			return
		}
		defer answer.Body.Close()
		data, _ := io.ReadAll(answer.Body)
		answered <- answer.Status + string(data)
	}()
	eventually(t, "it spins", func() bool { return host.MemoryInUse() > 0 })
	v.stop(host.Signal(syscall.SIGTERM))
	if exit := v.ended(); exit.Status != 143 || !strings.Contains(exit.Message, "1 requests did not finish") {
		t.Errorf("%+v", exit)
	}
	if got := <-answered; !strings.HasPrefix(got, "503") || !strings.Contains(got, "ended by SIGTERM") {
		t.Errorf("the client was told %s", got)
	}
	if host.MemoryInUse() != 0 {
		t.Errorf("%d bytes are in use", host.MemoryInUse())
	}
}

func TestWhatKeepsAServerFromStartingIsItsExit(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	locked := errors.New("cannot be locked in")
	for name, c := range map[string]struct {
		edit   func(*hostdoc.Document)
		o      host.Options
		status int
		want   string
	}{
		"not served":        {func(d *hostdoc.Document) { d.Serve = nil }, host.Options{}, 124, "does not say how"},
		"a taken address":   {func(d *hostdoc.Document) { d.Serve.Listen = taken.Addr().String() }, host.Options{}, 124, "cannot listen"},
		"no module":         {func(d *hostdoc.Document) { d.Module = "/no/such/module" }, host.Options{}, 124, "cannot load"},
		"no socket":         {func(d *hostdoc.Document) { d.Serve.Socket = 1000 }, host.Options{}, 124, "no listening socket"},
		"a lock that fails": {func(*hostdoc.Document) {}, host.Options{Locked: func() error { return locked }}, 124, "cannot be locked in"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document(t, guest)
			c.edit(doc)
			c.o.Stderr = new(logs)
			exit := Serve(t.Context(), doc, c.o)
			if exit.Status != c.status || !strings.Contains(exit.Message, c.want) || !strings.Contains(c.o.Stderr.(*logs).String(), c.want) {
				t.Errorf("%+v, logged %s", exit, c.o.Stderr)
			}
		})
	}
}

func TestAGivenSocketIsServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	// The descriptor becomes the server's.
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	v := start(t, guest, func(d *hostdoc.Document) { d.Serve.Listen, d.Serve.Socket = l.Addr().String(), fd })
	if v.url != "http://"+l.Addr().String() {
		t.Errorf("it serves %s", v.url)
	}
	v.wants("e", http.StatusOK, "e")
}

func TestTheSocketIsOpenBeforeTheHostLocksItselfIn(t *testing.T) {
	var doc *hostdoc.Document
	dialed := errors.New("never locked")
	doc = document(t, guest)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	doc.Serve.Listen = l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	exit := Serve(ctx, doc, host.Options{Locked: func() error {
		var conn net.Conn
		if conn, dialed = net.Dial("tcp", doc.Serve.Listen); dialed == nil {
			conn.Close()
		}
		cancel(host.Signal(syscall.SIGTERM))
		return nil
	}})
	if dialed != nil || exit.Status != 143 {
		t.Errorf("%v, %+v", dialed, exit)
	}
}

// open is how many descriptors this process has.
func open(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAThousandClientsLeaveMemoryDescriptorsAndGoroutinesAsTheyWere(t *testing.T) {
	v := start(t, guest, func(d *hostdoc.Document) { d.Limits.DeadlineMillis = 5_000 })
	crowd := func(n int) {
		var clients sync.WaitGroup
		for i := range n {
			clients.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				body := string("etfmcw"[i%6])
				answer, err := v.post(ctx, body, []string{"*/*", "text/event-stream"}[i/6%2])
				if err != nil {
					t.Errorf("%s: %v", body, err)
					return
				}
				defer answer.Body.Close()
				if body == "w" {
					// This one leaves in the middle, unless it was cut short before.
					_, _ = io.ReadFull(answer.Body, make([]byte, 100))
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
			})
		}
		clients.Wait()
		client.CloseIdleConnections()
	}
	v.wants("e", http.StatusOK, "e") // the engine has started what it needs
	client.CloseIdleConnections()
	settled := func() bool { return host.MemoryInUse() == 0 }
	goroutines, files := runtime.NumGoroutine(), open(t)
	crowd(1000)
	eventually(t, "the guests are gone", settled)
	eventually(t, "goroutines and descriptors are as they were", func() bool { return runtime.NumGoroutine() <= goroutines && open(t) <= files })
	v.wants("e", http.StatusOK, "e")
}
