package serve

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

func TestTheOutputIsTheAnswer(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 2*limits.ServeHeld/16)
	for name, c := range map[string]struct {
		declared, input, contentType string
	}{
		"an object":                    {"", ` {"a": [1]}` + "\n", "application/json"},
		"an array":                     {"", `["a"]`, "application/json"},
		"an object cut short":          {"", `{"a": [1`, "application/octet-stream"},
		"a number, which is text, too": {"", `1`, "application/octet-stream"},
		"text":                         {"", "hello", "application/octet-stream"},
		"bytes":                        {"", "\x00\xff\x80", "application/octet-stream"},
		"nothing":                      {"", "", "application/octet-stream"},
		"what the manifest says":       {"text/plain; charset=utf-8", `{}`, "text/plain; charset=utf-8"},
		"more than is held back":       {"", long, "application/octet-stream"},
	} {
		t.Run(name, func(t *testing.T) {
			v := start(t, agent(echo), func(d *hostdoc.Document) {
				d.Serve.ContentType = c.declared
				d.Limits.InputBytes = 1 << 20
			})
			got := v.post(c.input).wants(t, http.StatusOK, c.input)
			if got.body != c.input || got.Header.Get("Content-Type") != c.contentType {
				t.Errorf("%d bytes of %s, want %d of %s", len(got.body), got.Header.Get("Content-Type"), len(c.input), c.contentType)
			}
			if got.Header.Get("X-Content-Type-Options") != "nosniff" || got.Header.Get("Cache-Control") != "no-store" || len(got.Header.Get(runHeader)) != 24 {
				t.Errorf("header %v", got.Header)
			}
			status := got.Header.Get(statusHeader)
			if len(c.input) > limits.ServeHeld {
				status = got.Trailer.Get(statusHeader)
			}
			if status != "0" {
				t.Errorf("exit status %q", status)
			}
		})
	}
}

func TestABodyWithoutALengthIsTheInputToo(t *testing.T) {
	v := start(t, agent(echo), nil)
	input := strings.Repeat("chunked ", 20_000)
	v.do(http.MethodPost, ProcessPath, io.MultiReader(strings.NewReader(input)), nil).wants(t, http.StatusOK, input)
}

func TestEveryEndHasItsStatus(t *testing.T) {
	var exit hostdoc.Exit
	v := start(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
		if err := r.Sink.Output([]byte("half an out")); err != nil {
			t.Error(err)
		}
		return exit
	}), nil)
	known := map[fault.Reason]int{}
	for _, s := range Statuses {
		if _, twice := known[s.Reason]; twice {
			t.Errorf("%q is there twice", s.Reason)
		}
		known[s.Reason] = s.Code
	}
	check := func(e hostdoc.Exit, reason string, code int) {
		t.Helper()
		exit = e
		got := v.post("x")
		if got.StatusCode != code || got.Header.Get("Content-Type") != "application/problem+json" || got.Header.Get(statusHeader) != strconv.Itoa(e.Status) {
			t.Errorf("%s: %s, %v", reason, got.Status, got.Header)
		}
		if strings.Contains(got.body, "half an out") {
			t.Errorf("%s: the answer to a failure carries output: %s", reason, got.body)
		}
		var p problem
		if err := json.Unmarshal([]byte(got.body), &p); err != nil {
			t.Fatal(err)
		}
		if p.Type != problemTypes+reason || p.Reason != reason || p.Status != code || p.ExitStatus != e.Status || p.Detail != e.Message || p.Title == "" || p.Run != got.Header.Get(runHeader) {
			t.Errorf("%s: problem %+v", reason, p)
		}
	}
	check(hostdoc.Exit{Status: 7, Message: "no such page"}, agentFailed, http.StatusInternalServerError)
	for _, row := range fault.Table {
		code, ok := known[row.Reason]
		if !ok {
			code = http.StatusInternalServerError
		}
		check(hostdoc.Exit{Status: row.Exit, Reason: string(row.Reason), Message: "why"}, string(row.Reason), code)
		delete(known, row.Reason)
	}
	delete(known, "")
	if len(known) > 0 {
		t.Errorf("statuses for reasons that do not exist: %v", known)
	}
}

func TestALongOutputArrivesBeforeTheRunHasEnded(t *testing.T) {
	seen := make(chan struct{})
	v := start(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
		if err := r.Sink.Output(make([]byte, 2*limits.ServeHeld)); err != nil {
			t.Error(err)
		}
		<-seen
		return hostdoc.Exit{}
	}), nil)
	answer, err := v.request(http.MethodPost, ProcessPath, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(answer.Body, make([]byte, limits.ServeHeld)); err != nil {
		t.Error(err)
	}
	close(seen)
	if rest := whole(answer); rest.err != nil || len(rest.body) != limits.ServeHeld {
		t.Errorf("%d bytes more, %v", len(rest.body), rest.err)
	}
}

// late writes more than is held back and then fails.
func late(_ context.Context, r Request) hostdoc.Exit {
	if err := r.Sink.Output(make([]byte, limits.ServeHeld+1)); err != nil {
		return hostdoc.Exit{Status: 1, Message: err.Error()}
	}
	return hostdoc.Exit{Status: 120, Reason: string(fault.Trap), Message: "trap"}
}

func TestAnOutputThatWasCutShortDoesNotLookWhole(t *testing.T) {
	v := start(t, agent(late), nil)
	got := v.post("x")
	if got.StatusCode != http.StatusOK || !errors.Is(got.err, io.ErrUnexpectedEOF) {
		t.Errorf("%s, then %d bytes, then %v", got.Status, len(got.body), got.err)
	}
}

func TestWhoReadsTrailersIsToldTheEndByThem(t *testing.T) {
	v := start(t, agent(late), nil)
	got := v.do(http.MethodPost, ProcessPath, nil, header("TE", "trailers"))
	if got.err != nil || len(got.body) != limits.ServeHeld+1 || got.Trailer.Get(statusHeader) != "120" || got.Trailer.Get(reasonHeader) != "trap" {
		t.Errorf("%s, %d bytes, %v, trailers %v", got.Status, len(got.body), got.err, got.Trailer)
	}
}

func TestWhoReadsTrailersGetsEveryPieceAtOnce(t *testing.T) {
	next := make(chan struct{})
	v := start(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
		for range 3 {
			if err := r.Sink.StreamChunk("s", 0, []byte("x")); err != nil {
				t.Error(err)
			}
			<-next
		}
		return hostdoc.Exit{}
	}), nil)
	answer, err := v.request(http.MethodPost, ProcessPath, nil, header("TE", "deflate, trailers;q=0.5"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := io.ReadFull(answer.Body, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		next <- struct{}{}
	}
	if rest := whole(answer); rest.body != "" || rest.err != nil {
		t.Errorf("%q, %v", rest.body, rest.err)
	}
}

func TestEventsArriveAsTheyArise(t *testing.T) {
	next := make(chan struct{})
	v := start(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
		for _, step := range []func() error{
			func() error { return r.Sink.Output([]byte("line\n\n")) },
			func() error { return r.Sink.StreamStart("tokens") },
			func() error { return r.Sink.StreamChunk("tokens", 0, []byte("\xff\x00")) },
			func() error { return r.Sink.StreamEnd("tokens", 0) },
			func() error { return r.Sink.Error(7, "no\ndata: more") },
		} {
			<-next
			if err := step(); err != nil {
				t.Error(err)
			}
		}
		<-next
		return hostdoc.Exit{Status: 7, Message: "no"}
	}), nil)
	// The header alone says that the run has begun.
	answer, err := v.request(http.MethodPost, ProcessPath, strings.NewReader("x"), header("Accept", "application/json;q=0.1, text/event-stream"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" || answer.Header.Get("X-Accel-Buffering") != "no" || answer.Header.Get(runHeader) == "" {
		t.Errorf("%s, %v", answer.Status, answer.Header)
	}
	r := bufio.NewReader(answer.Body)
	for i, want := range []event{
		{name: "output", data: `{"event":"output","data":"line\n\n"}`},
		{name: "start", data: `{"event":"start","stream":"tokens"}`},
		{name: "chunk", data: `{"event":"chunk","stream":"tokens","seq":0,"data":"/wA=","encoding":"base64"}`},
		{name: "end", data: `{"event":"end","stream":"tokens","status":0}`},
		{name: "error", data: `{"event":"error","code":7,"message":"no\ndata: more"}`},
		{name: "exit", data: `{"event":"exit","status":7,"message":"no"}`},
	} {
		next <- struct{}{}
		want.id = strconv.Itoa(i + 1)
		if got, err := readEvent(r); err != nil || got != want {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("then %q, %v", rest, err)
	}
}

func TestALongOutputBecomesSeveralEvents(t *testing.T) {
	text := strings.Repeat("ä", 100_000)
	v := start(t, agent(echo), nil)
	answer, err := v.request(http.MethodPost, ProcessPath, strings.NewReader(text), header("Accept", "text/event-stream"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	n := 0
	for r := bufio.NewReader(answer.Body); ; n++ {
		e, err := readEvent(r)
		if errors.Is(err, io.EOF) {
			break
		}
		var v struct{ Event, Data, Encoding string }
		if err != nil || json.Unmarshal([]byte(e.data), &v) != nil || v.Encoding != "" {
			t.Fatalf("%q, %v", e, err)
		}
		got.WriteString(v.Data)
	}
	if n < 4 || got.String() != text {
		t.Errorf("%d events, %d bytes of %d", n, got.Len(), len(text))
	}
}

func TestOnlyWhoNamesEventsGetsThem(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                    false,
		"*/*":                                 false,
		"text/*":                              false,
		"text/event-streams":                  false,
		"text/event-stream;q=0":               false,
		"text/event-stream;q=0.0":             false,
		"text/event-stream;q=x":               false,
		"text/event-stream;q=NaN":             false,
		"text/event-stream":                   true,
		"Text/Event-Stream; charset=utf-8":    true,
		"text/html, text/event-stream;q=0.01": true,
	} {
		if got := wantsEvents(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

func TestAClientThatLeavesEndsItsRunAtOnce(t *testing.T) {
	for name, accept := range map[string]string{"bytes": "*/*", "events": "text/event-stream"} {
		t.Run(name, func(t *testing.T) {
			began, ended := make(chan struct{}), make(chan error, 1)
			v := start(t, agent(func(ctx context.Context, _ Request) hostdoc.Exit {
				close(began)
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return hostdoc.Exit{Status: 124, Reason: string(fault.Canceled)}
			}), nil)
			ctx, leave := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.addr+ProcessPath, strings.NewReader("x"))
				r.Header.Set("Accept", accept)
				answer, err := v.send(r)
				if err == nil {
					_, err = io.ReadAll(answer.Body)
				}
				failed <- err
			}()
			<-began
			leave()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("the client was told %v", err)
			}
			select {
			case cause := <-ended:
				if !errors.Is(cause, output.ErrGone) {
					t.Errorf("the cause is %v", cause)
				}
			case <-time.After(time.Minute):
				t.Fatal("the run goes on")
			}
			eventually(t, "nothing is left", func() bool { return len(v.admission.slots) == 0 && v.bodies.held.Load() == 0 })
			// It is no answer of the server's that would alarm anybody.
			const line = `mentatlab_http_requests_total{agent_id="org.example.served",code="499",reason="client-left"} 1`
			eventually(t, "it is counted", func() bool { return strings.Contains(v.get(MetricsPath).body, line) })
		})
	}
}

func TestBeyondTheQueueRequestsAreRefused(t *testing.T) {
	b := newBlocking()
	v := start(t, b, nil) // two run, two wait
	replies := make(chan reply, 4)
	for i := range 4 {
		go func() { replies <- v.post(strconv.Itoa(i)) }()
		if i < 2 {
			b.next(t)
		} else {
			eventually(t, "it waits", func() bool { return v.admission.waiting.Load() == int64(i-1) })
		}
	}
	got := v.post("beyond").wants(t, http.StatusServiceUnavailable, `"reason":"unavailable"`)
	if after, err := strconv.Atoi(got.Header.Get("Retry-After")); err != nil || after < 1 || after > 30 {
		t.Errorf("Retry-After %q", got.Header.Get("Retry-After"))
	}
	v.get(ReadyPath).wants(t, http.StatusServiceUnavailable, "overloaded")
	v.get(HealthPath).wants(t, http.StatusOK, "ok")
	close(b.gate)
	for range 4 {
		(<-replies).wants(t, http.StatusOK, "")
	}
	for range 2 {
		if s := b.next(t); s == "beyond" {
			t.Error("the refused request ran")
		}
	}
	v.get(ReadyPath).wants(t, http.StatusOK, "ok")
	if len(b.began) != 0 {
		t.Errorf("%q ran, too", <-b.began)
	}
}

func TestThoseThatWaitRunInTheirOrder(t *testing.T) {
	b := newBlocking()
	v := start(t, b, func(d *hostdoc.Document) { d.Serve.Concurrent, d.Serve.Queue = 1, 5 })
	var clients sync.WaitGroup
	for i := range 6 {
		clients.Go(func() { v.post(strconv.Itoa(i)).wants(t, http.StatusOK, strconv.Itoa(i)) })
		eventually(t, "it came", func() bool { return len(v.admission.slots) == 1 && v.admission.waiting.Load() == int64(i) })
	}
	for i := range 6 {
		if got := b.next(t); got != strconv.Itoa(i) {
			t.Errorf("%s ran as number %d", got, i)
		}
		b.gate <- struct{}{}
	}
	clients.Wait()
}

func TestAWaitingClientThatLeavesNeverRuns(t *testing.T) {
	b := newBlocking()
	v := start(t, b, func(d *hostdoc.Document) { d.Serve.Concurrent = 1 })
	var clients sync.WaitGroup
	clients.Go(func() { v.post("first").wants(t, http.StatusOK, "first") })
	b.next(t)
	ctx, leave := context.WithCancel(t.Context())
	clients.Go(func() {
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.addr+ProcessPath, strings.NewReader("second"))
		if answer, err := v.send(r); err == nil {
			t.Errorf("answered with %s", whole(answer).Status)
		}
	})
	eventually(t, "it waits", func() bool { return v.admission.waiting.Load() == 1 })
	leave()
	eventually(t, "it left the queue", func() bool { return v.admission.waiting.Load() == 0 })
	close(b.gate)
	clients.Wait()
	if len(b.began) != 0 {
		t.Errorf("%q ran", <-b.began)
	}
}

// refused is a request that must not reach the agent.
func TestWhatIsNoProperRequestNeverRuns(t *testing.T) {
	var ran atomic.Int64
	v := start(t, agent(func(ctx context.Context, r Request) hostdoc.Exit {
		ran.Add(1)
		return echo(ctx, r)
	}), func(d *hostdoc.Document) { d.Limits.InputBytes = 1000 })
	large := strings.Repeat("x", 1001)
	for name, c := range map[string]struct {
		method, path string
		body         io.Reader
		edit         func(*http.Request)
		code         int
		want         string
	}{
		"another method":         {http.MethodGet, ProcessPath, nil, nil, http.StatusMethodNotAllowed, `"reason":"usage"`},
		"another path":           {http.MethodPost, "/v1/processes", nil, nil, http.StatusNotFound, ProcessPath},
		"a method for a probe":   {http.MethodPost, HealthPath, strings.NewReader("x"), nil, http.StatusMethodNotAllowed, `"reason":"usage"`},
		"a large body":           {http.MethodPost, ProcessPath, strings.NewReader(large), nil, http.StatusRequestEntityTooLarge, "over 1000 bytes"},
		"a large body in chunks": {http.MethodPost, ProcessPath, io.MultiReader(strings.NewReader(large)), nil, http.StatusRequestEntityTooLarge, "over 1000 bytes"},
		"a coded body":           {http.MethodPost, ProcessPath, strings.NewReader("x"), header("Content-Encoding", "gzip"), http.StatusUnsupportedMediaType, "Content-Encoding"},
		"another host":           {http.MethodPost, ProcessPath, strings.NewReader("x"), func(r *http.Request) { r.Host = "rebound.example" }, http.StatusMisdirectedRequest, "rebound.example"},
		"another origin":         {http.MethodPost, ProcessPath, strings.NewReader("x"), header("Origin", "https://evil.example"), http.StatusForbidden, "other origins"},
		"another site":           {http.MethodPost, ProcessPath, strings.NewReader("x"), header("Sec-Fetch-Site", "cross-site"), http.StatusForbidden, "other origins"},
	} {
		t.Run(name, func(t *testing.T) {
			got := v.do(c.method, c.path, c.body, c.edit).wants(t, c.code, c.want)
			if got.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("header %v", got.Header)
			}
			if c.code == http.StatusMethodNotAllowed && got.Header.Get("Allow") == "" {
				t.Error("no word of what is allowed")
			}
		})
	}
	if n := ran.Load(); n != 0 {
		t.Errorf("%d of them ran", n)
	}
	v.post(large[1:]).wants(t, http.StatusOK, large[1:])
	v.do(http.MethodPost, ProcessPath, strings.NewReader("x"), func(r *http.Request) {
		r.Host = "localhost:1"
		r.Header.Set("Origin", "http://localhost:1")
	}).wants(t, http.StatusOK, "x")
	if v.bodies.held.Load() != 0 {
		t.Errorf("%d bytes are held", v.bodies.held.Load())
	}
}

func TestOnEveryAddressNamesAndOriginsAreTheIngresss(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	v := startOn(t, agent(echo), nil, l, &http.Transport{})
	v.addr = fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)
	v.do(http.MethodPost, ProcessPath, strings.NewReader("x"), func(r *http.Request) {
		r.Host = "agent.example"
		r.Header.Set("Origin", "https://app.example")
	}).wants(t, http.StatusOK, "x")
}

func TestNamesOfThisMachine(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:80": true, "127.0.0.1:80": true, "127.1.2.3": true, "[::1]:80": true, "[::1]": true, "::1": true,
		"": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "10.0.0.1:80": false, "0.0.0.0": false, "[::ffff:10.0.0.1]": false, "2130706433": false,
	} {
		if got := localName(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func TestAllBodiesTogetherAreBounded(t *testing.T) {
	b := newBlocking()
	v := start(t, b, func(d *hostdoc.Document) {
		d.Serve.Concurrent, d.Serve.BufferBytes = 4, 300<<10
	})
	large := strings.Repeat("x", 200<<10)
	first := make(chan reply, 1)
	go func() { first <- v.post(large) }()
	b.next(t)
	v.post(large).wants(t, http.StatusServiceUnavailable, "fill the memory")
	close(b.gate)
	(<-first).wants(t, http.StatusOK, large)
	v.post(large).wants(t, http.StatusOK, large)
	eventually(t, "nothing is held", func() bool { return v.bodies.held.Load() == 0 })
}

func TestRequestsOnOneConnectionAreAnsweredInOrder(t *testing.T) {
	v := start(t, agent(echo), nil)
	conn, err := net.Dial("tcp", v.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var all strings.Builder
	for i := range 5 {
		fmt.Fprintf(&all, "POST /v1/process HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n%d", i)
	}
	if _, err := io.WriteString(conn, all.String()); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for i := range 5 {
		whole(readAnswer(t, r)).wants(t, http.StatusOK, strconv.Itoa(i))
	}
}

func TestAnAmbiguousRequestEndsItsConnection(t *testing.T) {
	var ran atomic.Int64
	v := start(t, agent(func(ctx context.Context, r Request) hostdoc.Exit {
		ran.Add(1)
		return echo(ctx, r)
	}), nil)
	const hidden = "POST /v1/process HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nhidden"
	for name, head := range map[string]string{
		"two lengths":         "Content-Length: 0\r\nContent-Length: 5\r\n",
		"a negative length":   "Content-Length: -1\r\n",
		"an unknown coding":   "Transfer-Encoding: gzip\r\n",
		"a folded line":       "X: a\r\n b: c\r\nTransfer-Encoding : chunked\r\n",
		"a line feed in name": "X\n: a\r\n",
	} {
		conn, err := net.Dial("tcp", v.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "POST /v1/process HTTP/1.1\r\nHost: localhost\r\n"+head+"\r\n"+hidden); err != nil {
			t.Fatal(err)
		}
		answers, err := io.ReadAll(conn)
		if err != nil && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
		if s := string(answers); strings.Contains(s, "hidden") || strings.Count(s, "HTTP/1.1 ") != 1 || !strings.Contains(s, " 400 ") && !strings.Contains(s, " 501 ") {
			t.Errorf("%s: %q", name, s)
		}
		conn.Close()
	}
	if ran.Load() != 0 {
		t.Error("something ran")
	}
}

func TestHTTP10GetsAShortOutputAndIsRefusedALongOne(t *testing.T) {
	v := start(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
		data, _ := io.ReadAll(r.Input)
		if err := r.Sink.Output([]byte(strings.Repeat("x", len(data)*limits.ServeHeld))); err != nil {
			return hostdoc.Exit{Status: 124, Reason: string(fault.Unavailable), Message: err.Error()}
		}
		return hostdoc.Exit{}
	}), nil)
	ask := func(body string) *incoming {
		conn, err := net.Dial("tcp", v.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST /v1/process HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		return readAnswer(t, bufio.NewReader(conn))
	}
	whole(ask("x")).wants(t, http.StatusOK, "xxx")
	whole(ask("xx")).wants(t, http.StatusHTTPVersionNotSupported, "use HTTP/1.1")
}

func TestAPanicOfTheHostEndsOneRunOnly(t *testing.T) {
	v := start(t, program(func(ctx context.Context, r Request) (hostdoc.Exit, error) {
		data, _ := io.ReadAll(r.Input)
		if string(data) == "panic" {
			panic("a flaw\nof ours")
		}
		return agent(echo).Run(ctx, Request{Input: strings.NewReader(string(data)), Sink: r.Sink, Freed: r.Freed})
	}), nil)
	v.post("panic").wants(t, http.StatusInternalServerError, `"reason":"internal"`)
	if got := v.logged(); !strings.Contains(got, "a flaw of ours") {
		t.Errorf("logged %q", got)
	}
	for range 5 {
		v.post("x").wants(t, http.StatusOK, "x")
	}
	eventually(t, "every place is free", func() bool { return len(v.admission.slots) == 0 })
}

func TestAnErrorWithoutAReasonIsNoSuccess(t *testing.T) {
	v := start(t, program(func(_ context.Context, r Request) (hostdoc.Exit, error) {
		r.Freed()
		return hostdoc.Exit{}, errors.New("no engine")
	}), nil)
	v.post("x").wants(t, http.StatusInternalServerError, "no engine")
}

func TestAGuestThatDoesNotComeBackHoldsItsPlace(t *testing.T) {
	var mu sync.Mutex
	var back []func()
	v := start(t, program(func(_ context.Context, r Request) (hostdoc.Exit, error) {
		mu.Lock()
		defer mu.Unlock()
		back = append(back, r.Freed)
		return hostdoc.Exit{Status: 121, Reason: string(fault.Deadline)}, nil
	}), func(d *hostdoc.Document) { d.Serve.Queue = 0 })
	v.post("x").wants(t, http.StatusGatewayTimeout, "")
	v.get(HealthPath).wants(t, http.StatusOK, "ok")
	v.post("x").wants(t, http.StatusGatewayTimeout, "")
	v.post("x").wants(t, http.StatusServiceUnavailable, "")
	v.get(HealthPath).wants(t, http.StatusServiceUnavailable, "does not come back")
	for _, free := range back {
		free()
		free() // once more changes nothing
	}
	eventually(t, "both places are free", func() bool { return len(v.admission.slots) == 0 })
	v.get(HealthPath).wants(t, http.StatusOK, "ok")
}

func TestNothingIsWrittenAfterTheAnswer(t *testing.T) {
	for _, accept := range []string{"*/*", "text/event-stream"} {
		kept := make(chan output.Sink, 1)
		v := start(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
			kept <- r.Sink
			return hostdoc.Exit{}
		}), nil)
		v.do(http.MethodPost, ProcessPath, nil, header("Accept", accept)).wants(t, http.StatusOK, "")
		left := <-kept
		if err := left.Output([]byte("late")); !errors.Is(err, output.ErrGone) {
			t.Errorf("%s: %v", accept, err)
		}
		v.post("x").wants(t, http.StatusOK, "")
	}
}

func TestHeadersAreBounded(t *testing.T) {
	v := start(t, agent(echo), nil)
	got := v.do(http.MethodPost, ProcessPath, nil, header("X-Large", strings.Repeat("x", 3*limits.ServeHeader)))
	if got.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%s", got.Status)
	}
}

func TestMetricsTellWhatHappened(t *testing.T) {
	v := start(t, agent(func(ctx context.Context, r Request) hostdoc.Exit {
		data, _ := io.ReadAll(r.Input)
		if string(data) == "trap" {
			return hostdoc.Exit{Status: 120, Reason: string(fault.Trap)}
		}
		return echo(ctx, Request{Input: strings.NewReader(string(data)), Sink: r.Sink})
	}), nil)
	v.post("x")
	v.post("x")
	v.post("trap")
	v.do(http.MethodGet, ProcessPath, nil, nil)
	got := v.get(MetricsPath).wants(t, http.StatusOK, "")
	if !strings.HasPrefix(got.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("header %v", got.Header)
	}
	for _, line := range []string{
		`mentatlab_http_requests_total{agent_id="org.example.served",code="200",reason=""} 2`,
		`mentatlab_http_requests_total{agent_id="org.example.served",code="502",reason="trap"} 1`,
		`mentatlab_http_requests_total{agent_id="org.example.served",code="405",reason="usage"} 1`,
		`mentatlab_wasm_execution_seconds_count{agent_id="org.example.served",operation="process"} 3`,
		`mentatlab_http_running{agent_id="org.example.served"} 0`,
		`mentatlab_http_concurrency{agent_id="org.example.served"} 2`,
	} {
		if !strings.Contains(got.body, line+"\n") {
			t.Errorf("no line %s in\n%s", line, got.body)
		}
	}
}

func TestWhatAnAgentMeasuresIsNobodyElses(t *testing.T) {
	doc := document()
	m, r := NewMetrics(doc), metrics.New()
	m.Guests(r)
	for _, one := range []metrics.Measurement{
		{Name: "requests", Kind: metrics.Counter, Value: 2},
		{Name: "requests", Kind: metrics.Counter, Value: 3, Attributes: map[string]string{"agent_id": "org.example.other", "page": "a\"\n} 1\nup 0"}},
		{Name: "load", Kind: metrics.Gauge, Value: -1.5, Attributes: map[string]string{"k": "v"}},
		{Name: "latency", Kind: metrics.Histogram, Value: 0.02},
		{Name: "latency", Kind: metrics.Histogram, Value: 1e9},
		{Name: "mentatlab_wasm_memory_bytes", Kind: metrics.Gauge, Value: 1},
	} {
		if refused := r.Record(one); refused != nil {
			t.Fatal(refused)
		}
	}
	m.Capability("network:https:a.example", true)
	m.Capability("network:https:b.example", false)
	m.Capability("whatever\n", false)
	m.Instance(time.Millisecond, 1<<20)
	m.Memory(func() int64 { return 5 })
	s, err := New(agent(echo), Options{Document: doc, Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.metrics.Tokens(backend.Usage{Run: "r", Provider: "p", Model: "m", Prompt: 7, Completion: 2})
	}
	w := httptest.NewRecorder()
	s.metrics.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, MetricsPath, nil))
	got := w.Body.String()
	for _, line := range []string{
		`mentatlab_agent_requests 2`,
		`mentatlab_agent_requests{agent_id="org.example.other",page="a\"\n} 1\nup 0"} 3`,
		`mentatlab_agent_load{k="v"} -1.5`,
		`mentatlab_agent_latency_bucket{le="0.01"} 0`,
		`mentatlab_agent_latency_bucket{le="0.025"} 1`,
		`mentatlab_agent_latency_bucket{le="+Inf"} 2`,
		`mentatlab_agent_latency_count 2`,
		`mentatlab_agent_mentatlab_wasm_memory_bytes 1`,
		`mentatlab_wasm_memory_bytes{agent_id="org.example.served",instance_id="c1"} 5`,
		`mentatlab_capability_requests_total{agent_id="org.example.served",capability_type="network",result="granted"} 1`,
		`mentatlab_capability_requests_total{agent_id="org.example.served",capability_type="network",result="denied"} 1`,
		`mentatlab_capability_requests_total{agent_id="org.example.served",capability_type="other",result="denied"} 1`,
		`mentatlab_wasm_instantiation_seconds_count{agent_id="org.example.served",engine="wasmtime",module_size_bucket="unknown"} 1`,
		`mentatlab_wasm_run_memory_bytes_sum{agent_id="org.example.served"} 1.048576e+06`,
		`mentatlab_llm_tokens_total{agent_id="org.example.served",kind="prompt",provider="p"} 14`,
		`mentatlab_llm_tokens_total{agent_id="org.example.served",kind="completion",provider="p"} 4`,
	} {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, got)
		}
	}
	if strings.Contains(got, "\nup 0") {
		t.Errorf("a forged line in\n%s", got)
	}
}

func TestAModulesSizeIsToldInFewWords(t *testing.T) {
	name := filepath.Join(t.TempDir(), "module")
	for size, want := range map[int64]string{0: "up to 1 MiB", 1 << 20: "up to 1 MiB", 1<<20 + 1: "up to 4 MiB", 64 << 20: "up to 64 MiB", 1 << 30: "over 64 MiB"} {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			t.Fatal(err)
		}
		if got := sizeBucket(name); got != want {
			t.Errorf("%d: %s", size, got)
		}
	}
}

func TestConnectionsThatRestMakeRoom(t *testing.T) {
	b := newBlocking()
	v := start(t, b, nil)
	most := limits.ServeConnections + v.doc.Serve.Concurrent + v.doc.Serve.Queue
	first := make(chan reply, 1)
	go func() { first <- v.post("busy") }()
	b.next(t)
	for range most + 20 {
		conn, err := net.Dial("tcp", v.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	v.get(HealthPath).wants(t, http.StatusOK, "ok")
	close(b.gate)
	(<-first).wants(t, http.StatusOK, "busy")
}

func TestAListenerThatIsClosedTwiceIsNoError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newConnections(l, 1)
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhereNoConnectionRestsOneMoreIsRefused(t *testing.T) {
	l := newPipes()
	c := newConnections(l, 2)
	open := func() net.Conn {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close() })
		go func() { l.conns <- server }()
		return client
	}
	open()
	a, _ := c.Accept()
	c.changed(a, http.StateActive)
	open()
	b, _ := c.Accept()
	c.changed(b, http.StateActive)
	refused := open()
	go func() {
		_, err := refused.Read(make([]byte, 1))
		if !errors.Is(err, io.EOF) {
			t.Errorf("the connection that is too much: %v", err)
		}
		c.changed(a, http.StateIdle)
		open()
	}()
	d, err := c.Accept()
	if err != nil || c.open[d] == nil || c.open[a] != nil || c.open[b] == nil {
		t.Errorf("%v, open are %v", err, c.open)
	}
	if _, err := a.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the one that rested: %v", err)
	}
}

func TestManyRequestsLeaveNothingBehind(t *testing.T) {
	v := start(t, agent(func(ctx context.Context, r Request) hostdoc.Exit {
		if err := r.Sink.StreamStart("s"); err != nil {
			return hostdoc.Exit{Status: 1}
		}
		return echo(ctx, r)
	}), func(d *hostdoc.Document) { d.Serve.Queue = 64 })
	round := func(n int) {
		var clients sync.WaitGroup
		for range 16 {
			clients.Go(func() {
				for i := range n {
					accept := "*/*"
					if i%2 == 0 {
						accept = "text/event-stream"
					}
					v.do(http.MethodPost, ProcessPath, strings.NewReader("x"), header("Accept", accept)).wants(t, http.StatusOK, "x")
				}
			})
		}
		clients.Wait()
		v.client.CloseIdleConnections()
	}
	round(2)
	eventually(t, "the server rests", func() bool { return len(v.admission.slots) == 0 })
	before := runtime.NumGoroutine()
	round(100)
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

func TestWhatCannotBeServedIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		p   Program
		doc *hostdoc.Document
	}{
		"no program":  {nil, document()},
		"no document": {agent(echo), nil},
		"not served":  {agent(echo), &hostdoc.Document{}},
	} {
		if _, err := New(c.p, Options{Document: c.doc}); fault.ReasonOf(err) != fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAListenerThatFailsEndsTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s, err := New(agent(echo), Options{Document: document()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), l); fault.ReasonOf(err) != fault.Internal {
		t.Errorf("%v", err)
	}
}
