package serve

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// agent is a program of Go's: what it returns is how the run ended.
type agent func(ctx context.Context, r Request) hostdoc.Exit

func (f agent) Run(ctx context.Context, r Request) (hostdoc.Exit, error) {
	defer r.Freed()
	return f(ctx, r), nil
}

// program is one that says itself what is free.
type program func(ctx context.Context, r Request) (hostdoc.Exit, error)

func (f program) Run(ctx context.Context, r Request) (hostdoc.Exit, error) { return f(ctx, r) }

func document() *hostdoc.Document {
	return &hostdoc.Document{
		Agent: hostdoc.Agent{ID: "org.example.served", Version: "1.0.0"}, Instance: "c1",
		Serve:  &hostdoc.Serve{Listen: "127.0.0.1:0", Concurrent: 2, Queue: 2, BufferBytes: 1 << 20, DrainMillis: 10_000},
		Limits: hostdoc.Limits{MemoryBytes: 1 << 20, DeadlineMillis: 60_000, InputBytes: 256 << 10, OutputBytes: 1 << 30},
	}
}

// served is a server under test.
type served struct {
	*Server
	t      testing.TB
	addr   string
	client *http.Client
	stop   context.CancelCauseFunc
	// done is closed when Serve has returned, with result.
	done   chan struct{}
	result error

	mu   sync.Mutex
	logs []string
}

var errStop = errors.New("ended by the test")

// serve starts a server on this machine.
func start(t testing.TB, p Program, edit func(*hostdoc.Document)) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	return startOn(t, p, edit, l, transport)
}

func startOn(t testing.TB, p Program, edit func(*hostdoc.Document), l net.Listener, transport *http.Transport) *served {
	t.Helper()
	doc := document()
	if edit != nil {
		edit(doc)
	}
	v := &served{t: t, addr: l.Addr().String(), client: &http.Client{Transport: transport}, done: make(chan struct{})}
	var err error
	v.Server, err = New(p, Options{Document: doc, Log: v.log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(t.Context()))
	v.stop = stop
	go func() {
		v.result = v.Serve(ctx, l)
		close(v.done)
	}()
	t.Cleanup(func() {
		v.stop(errStop)
		transport.CloseIdleConnections()
		select {
		case <-v.done:
		case <-time.After(time.Minute):
			t.Error("the server does not end")
		}
	})
	return v
}

func (v *served) log(line string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.logs = append(v.logs, line)
}

func (v *served) logged() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return strings.Join(v.logs, "\n")
}

// ended waits for Serve and returns what it did.
func (v *served) ended() error {
	v.t.Helper()
	select {
	case <-v.done:
		return v.result
	case <-time.After(time.Minute):
		v.t.Fatal("the server does not end")
		return nil
	}
}

// reply is an answer, read whole.
type reply struct {
	*http.Response
	body string
	// err is how reading the body failed.
	err error
}

// incoming is an answer whose body arrives; it is closed at the test's end.
type incoming struct{ *http.Response }

func (v *served) request(method, path string, body io.Reader, edit func(*http.Request)) (*incoming, error) {
	r, err := http.NewRequestWithContext(v.t.Context(), method, "http://"+v.addr+path, body)
	if err != nil {
		v.t.Fatal(err)
	}
	if edit != nil {
		edit(r)
	}
	return v.send(r)
}

func (v *served) send(r *http.Request) (*incoming, error) {
	answer, err := v.client.Do(r)
	if err != nil {
		return nil, err
	}
	v.t.Cleanup(func() { answer.Body.Close() })
	return &incoming{answer}, nil
}

// readAnswer reads an answer from a connection of the test's own.
func readAnswer(t testing.TB, r *bufio.Reader) *incoming {
	t.Helper()
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return &incoming{answer}
}

func (v *served) do(method, path string, body io.Reader, edit func(*http.Request)) reply {
	v.t.Helper()
	answer, err := v.request(method, path, body, edit)
	if err != nil {
		v.t.Fatal(err)
	}
	return whole(answer)
}

func whole(answer *incoming) reply {
	data, err := io.ReadAll(answer.Body)
	return reply{answer.Response, string(data), err}
}

func (v *served) post(body string) reply {
	v.t.Helper()
	return v.do(http.MethodPost, ProcessPath, strings.NewReader(body), nil)
}

func (v *served) get(path string) reply {
	v.t.Helper()
	return v.do(http.MethodGet, path, nil, nil)
}

func header(key, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(key, value) }
}

// wants checks status and what the body contains.
func (r reply) wants(t testing.TB, code int, part string) reply {
	t.Helper()
	if r.StatusCode != code || !strings.Contains(r.body, part) || r.err != nil {
		t.Errorf("%s %v, body %q; want %d and %q", r.Status, r.err, r.body, code, part)
	}
	return r
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

// event is one server-sent event as a client parses it.
type event struct {
	id, name, data string
}

// readEvent parses the next event, comments left out, as the standard says.
func readEvent(r *bufio.Reader) (e event, err error) {
	seen := false
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			if seen {
				return e, nil
			}
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			e.id, seen = value, true
		case "event":
			e.name, seen = value, true
		case "data":
			if e.data != "" {
				e.data += "\n"
			}
			e.data, seen = e.data+value, true
		case "": // a comment
		default:
			return e, errors.New("an unknown field: " + line)
		}
	}
}

// pipes is a listener whose connections are in memory, for tests in which time
// is made.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	over  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), over: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.over) })
	return nil
}

func (p *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.over:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// startPiped starts a server within a bubble of testing/synctest.
func startPiped(t testing.TB, p Program, edit func(*hostdoc.Document)) (*served, *pipes) {
	l := newPipes()
	return startOn(t, p, edit, l, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
	}), l
}

// echo gives the input back.
func echo(_ context.Context, r Request) hostdoc.Exit {
	data, err := io.ReadAll(r.Input)
	if err == nil {
		err = r.Sink.Output(data)
	}
	if err != nil {
		return hostdoc.Exit{Status: 1, Message: err.Error()}
	}
	return hostdoc.Exit{}
}

// blocking runs until its gate is opened or its context ends, and tells when it
// begins.
type blocking struct {
	began chan string
	gate  chan struct{}
}

func newBlocking() *blocking {
	return &blocking{began: make(chan string, 1000), gate: make(chan struct{})}
}

func (b *blocking) Run(ctx context.Context, r Request) (hostdoc.Exit, error) {
	defer r.Freed()
	data, _ := io.ReadAll(r.Input)
	b.began <- string(data)
	select {
	case <-b.gate:
		return echo(ctx, Request{Input: bytes.NewReader(data), Sink: r.Sink}), nil
	case <-ctx.Done():
		return hostdoc.Exit{Status: 143, Reason: "canceled", Message: context.Cause(ctx).Error()}, nil
	}
}

func (b *blocking) next(t testing.TB) string {
	t.Helper()
	select {
	case s := <-b.began:
		return s
	case <-time.After(time.Minute):
		t.Fatal("no run began")
		return ""
	}
}
