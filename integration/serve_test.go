package integration

import (
	"bufio"
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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mentatlab/mentat/integration/node"
)

// guestServed does what the first byte of its input says: e echoes, s sleeps for
// two seconds before, w never ends, m takes all the memory there is before it
// echoes, k writes a stream of chunks for ever.
const guestServed = `(module
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (import "mentat" "start_stream" (func $start_stream (param i32 i32) (result i32)))
  (import "mentat" "write_stream" (func $write_stream (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "tokens")
  (func (export "process") (result i32)
    (local $n i32) (local $h i32) (local $what i32) (local $pages i32)
    (drop (call $read_input))
    (local.set $n (call $read (i32.const 0) (i32.const 1024) (i32.const 65536)))
    (local.set $what (i32.load8_u (i32.const 1024)))
    (if (i32.eq (local.get $what) (i32.const 115)) (then
      (i32.store (i32.const 528) (i32.const 1))
      (i64.store (i32.const 536) (i64.const 2000000000))
      (drop (call $poll (i32.const 512) (i32.const 576) (i32.const 1) (i32.const 640)))))
    (if (i32.eq (local.get $what) (i32.const 119)) (then (loop $forever (br $forever))))
    (if (i32.eq (local.get $what) (i32.const 109)) (then
      (loop $more
        (local.set $pages (memory.grow (i32.const 1)))
        (if (i32.ge_s (local.get $pages) (i32.const 0)) (then
          (memory.fill (i32.mul (local.get $pages) (i32.const 65536)) (i32.const 1) (i32.const 65536))
          (br $more))))))
    (if (i32.eq (local.get $what) (i32.const 107)) (then
      (local.set $h (call $start_stream (i32.const 0) (i32.const 6)))
      (loop $again (br_if $again (i32.gt_s (call $write_stream (local.get $h) (i32.const 1024) (i32.const 64)) (i32.const 0))))
      (return (i32.const 9))))
    (call $write_output (i32.const 1024) (local.get $n))
    (i32.const 0)))`

// server is a served agent as its clients see it.
type server struct {
	t      *testing.T
	url    string
	client *http.Client
}

func newServer(t *testing.T, addr string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *server {
	transport := &http.Transport{DialContext: dial}
	t.Cleanup(transport.CloseIdleConnections)
	return &server{t, "http://" + addr, &http.Client{Transport: transport}}
}

// got is an answer, read whole.
type got struct {
	code   int
	header http.Header
	body   string
}

func (s *server) do(ctx context.Context, method, path, body, accept string) (got, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return got{}, err
	}
	r.Header.Set("Accept", accept)
	answer, err := s.client.Do(r)
	if err != nil {
		return got{}, err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	return got{answer.StatusCode, answer.Header, string(data)}, err
}

func (s *server) post(body string) got {
	s.t.Helper()
	g, err := s.do(s.t.Context(), http.MethodPost, "/v1/process", body, "*/*")
	if err != nil {
		s.t.Errorf("%s: %v", body, err)
	}
	return g
}

// probe asks as kubelet does: what is no answer is no success.
func (s *server) probe(path string) int {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	g, err := s.do(ctx, http.MethodGet, path, "", "*/*")
	if err != nil {
		return 0
	}
	return g.code
}

// metric is a line's value in /metrics, "" if it is not there.
func (s *server) metric(name string) string {
	g, err := s.do(s.t.Context(), http.MethodGet, "/metrics", "", "*/*")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(g.body) {
		if full, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (full == name || strings.HasPrefix(full, name+"{")) {
			return value
		}
	}
	return ""
}

func (s *server) ready() {
	s.t.Helper()
	eventually(s.t, "the agent is ready", func() bool { return s.probe("/readyz") == http.StatusOK })
}

// netns is a network namespace of the test's own, with its loopback up.
func netns(t *testing.T) (path string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A thread that was elsewhere never comes back: it ends with its goroutine.
	elsewhere := func(work func() error) error {
		result := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			result <- work()
		}()
		return <-result
	}
	err := elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path, func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = elsewhere(func() error {
			ns, err := os.Open(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			conn, err = new(net.Dialer).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}

// serves starts a served agent in a network namespace of its own.
func (w *world) serves(settings string, flags ...string) (*task, *server) {
	w.t.Helper()
	node.Privileged(w.t, "mentat-host-net")
	ns, dial := netns(w.t)
	ref := w.agent("served", guestServed, "mode: serve\n"+settings)
	tk := w.start(ref, append([]string{"--with-ns", "network:" + ns}, flags...)...)
	s := newServer(w.t, "127.0.0.1:8080", dial)
	s.ready()
	return tk, s
}

func TestAServedAgentAnswersOnItsPort(t *testing.T) {
	w := newWorld(t, node.Config{})
	_, s := w.serves("")
	if g := s.post("echo"); g.code != http.StatusOK || g.body != "echo" {
		t.Errorf("%+v", g)
	}
	if g := s.post("memory"); g.code != http.StatusOK || g.body != "memory" {
		t.Errorf("%+v", g)
	}
	g, err := s.do(t.Context(), http.MethodPost, "/v1/process", "echo", "text/event-stream")
	if err != nil || !strings.Contains(g.body, "id: 1\nevent: output\ndata: {\"event\":\"output\",\"data\":\"echo\"}\n\n") || !strings.Contains(g.body, `{"event":"exit","status":0}`) {
		t.Errorf("%+v, %v", g, err)
	}
	if code := s.probe("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz says %d", code)
	}
	if n := s.metric("mentatlab_wasm_execution_seconds_count"); n != "3" {
		t.Errorf("/metrics tells of %s runs", n)
	}
}

func TestSIGTERMLetsRequestsFinish(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk, s := w.serves("")
	slow := make(chan got, 1)
	go func() { slow <- s.post("sleep, then echo") }()
	eventually(t, "the slow request runs", func() bool { return s.metric("mentatlab_http_running") == "1" })
	unready := make(chan bool, 1)
	go func() {
		code := http.StatusOK
		for code == http.StatusOK {
			code = s.probe("/readyz")
		}
		unready <- code == http.StatusServiceUnavailable
	}()
	status := tk.killed("SIGTERM")
	if !<-unready {
		t.Error("it never said that it is not ready")
	}
	if g := <-slow; g.code != http.StatusOK || g.body != "sleep, then echo" {
		t.Errorf("the request that ran got %+v", g)
	}
	if status != 143 {
		t.Errorf("status %d, log %s", status, tk.output())
	}
}

func TestWhatOutlivesTheDrainIsEnded(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk, s := w.serves("serve: {drain: 1s}\n")
	endless := make(chan got, 1)
	go func() { endless <- s.post("without end") }()
	eventually(t, "it runs", func() bool { return s.metric("mentatlab_http_running") == "1" })
	if status := tk.killed("SIGTERM"); status != 143 {
		t.Errorf("status %d", status)
	}
	var p struct{ Reason string }
	if g := <-endless; g.code != http.StatusServiceUnavailable || json.Unmarshal([]byte(g.body), &p) != nil || p.Reason != "canceled" {
		t.Errorf("%+v", g)
	}
}

func TestAClientThatLeavesEndsItsGuest(t *testing.T) {
	w := newWorld(t, node.Config{})
	_, s := w.serves("")
	for body, accept := range map[string]string{"without end": "*/*", "k": "text/event-stream"} {
		ctx, leave := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := s.do(ctx, http.MethodPost, "/v1/process", body, accept)
			failed <- err
		}()
		eventually(t, "it runs", func() bool { return s.metric("mentatlab_wasm_memory_bytes") == "131072" })
		leave()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", body, err)
		}
		eventually(t, "nothing of it is left", func() bool {
			return s.metric("mentatlab_http_running") == "0" && s.metric("mentatlab_wasm_memory_bytes") == "0"
		})
	}
}

func TestAStreamReachesItsClientWhileItIsWritten(t *testing.T) {
	w := newWorld(t, node.Config{})
	_, s := w.serves("")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/process", strings.NewReader("k"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	answer, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	// The guest never ends: all that arrives came while it wrote.
	lines := bufio.NewScanner(answer.Body)
	for seq := 0; seq < 1000; {
		if !lines.Scan() {
			t.Fatalf("after %d chunks: %v", seq, lines.Err())
		}
		if strings.Contains(lines.Text(), fmt.Sprintf(`{"event":"chunk","stream":"tokens","seq":%d,`, seq)) {
			seq++
		}
	}
}

func TestAnOverloadedAgentSaysSo(t *testing.T) {
	w := newWorld(t, node.Config{})
	_, s := w.serves("serve: {concurrency: 1, queue: 1}\n")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			if _, err := s.do(ctx, http.MethodPost, "/v1/process", "without end", "*/*"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	eventually(t, "one runs and one waits", func() bool {
		return s.metric("mentatlab_http_running") == "1" && s.metric("mentatlab_http_waiting") == "1"
	})
	if g := s.post("echo"); g.code != http.StatusServiceUnavailable || g.header.Get("Retry-After") == "" {
		t.Errorf("%+v", g)
	}
	if s.probe("/readyz") != http.StatusServiceUnavailable || s.probe("/healthz") != http.StatusOK {
		t.Error("the probes do not tell overload from death")
	}
	leave()
	clients.Wait()
	s.ready()
	if g := s.post("echo"); g.body != "echo" {
		t.Errorf("%+v", g)
	}
}

func TestAllInstancesAtOnceFitIntoTheContainersMemory(t *testing.T) {
	w := newWorld(t, node.Config{})
	tk, s := w.serves("serve: {concurrency: 6, queue: 100}\n", "--memory-limit", fmt.Sprint(96<<20))
	var clients sync.WaitGroup
	for range 30 {
		clients.Go(func() {
			if g := s.post("memory"); g.code != http.StatusOK {
				t.Errorf("%+v", g)
			}
		})
	}
	clients.Wait()
	if state := tk.state(); state != "RUNNING" {
		t.Errorf("the task is %s, log %s", state, tk.output())
	}
	if n := s.metric("mentatlab_wasm_execution_seconds_count"); n != "30" {
		t.Errorf("%s runs", n)
	}
}

func TestALimitThatCannotHoldTheInstancesIsRefused(t *testing.T) {
	w := newWorld(t, node.Config{})
	node.Privileged(t, "mentat-host-net")
	ref := w.agent("served", guestServed, "mode: serve\nserve: {concurrency: 10}\nwasm: {memory: {maximum: 64}}\n")
	g := w.run("", "--memory-limit", fmt.Sprint(256<<20), ref, w.id())
	if g.code == 0 || !strings.Contains(g.stderr, "cannot hold 10 instances of 67108864 bytes") {
		t.Errorf("status %d, stderr %q", g.code, g.stderr)
	}
}

func TestAServedAgentIsProbedAndStoppedByCRI(t *testing.T) {
	const pause = "mentat.test/pause:1.0.0"
	w := newWorld(t, node.Config{CRI: true, SandboxImage: pause})
	node.Privileged(t, "mentat-host-net")
	// The pod has the node's network: no plugin is there to give it one.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	w.kubernetes(func() {
		w.container("pause", "/bin/sleep", "2147483647")
		w.agent("served", guestServed, fmt.Sprintf("mode: serve\nserve: {port: %d}\n", port))
	})
	p := w.pod(pause)
	free.Close()
	id, err := p.add("served", "mentat.test/served:1.0.0", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 128 << 20
	})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, fmt.Sprintf("127.0.0.1:%d", port), nil)
	s.ready()
	if g := s.post("echo"); g.code != http.StatusOK || g.body != "echo" {
		t.Errorf("%+v, log %s", g, p.log("served"))
	}
	slow := make(chan got, 1)
	go func() { slow <- s.post("sleep, then echo") }()
	eventually(t, "the slow request runs", func() bool { return s.metric("mentatlab_http_running") == "1" })
	if err := p.service.StopContainer(t.Context(), id, 30); err != nil {
		t.Fatal(err)
	}
	if g := <-slow; g.code != http.StatusOK || g.body != "sleep, then echo" {
		t.Errorf("the request that ran got %+v", g)
	}
	if st := p.status(id); st.ExitCode != 143 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("%s with %d (%s %s), log %s", st.State, st.ExitCode, st.Reason, st.Message, p.log("served"))
	}
}
