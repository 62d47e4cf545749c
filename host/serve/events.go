package serve

import (
	"bytes"
	"net/http"
	"strconv"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// eventStream is the media type of server-sent events.
const eventStream = "text/event-stream"

// events answers with server-sent events, each sent when it arises: its data is
// the line that the same event has in the ndjson framing, its id its number.
// Comments show that the connection lives while the agent is silent.
type events struct {
	gate
	lines *output.NDJSON
	// last is when something was sent; over ends the comments.
	last time.Time
	over chan struct{}

	// name is what the next line is, id how many there were.
	name string
	id   int64
	buf  bytes.Buffer
}

func newEvents(a *answer, begun func()) *events {
	e := &events{gate: gate{a: a, begun: begun}, over: make(chan struct{})}
	e.lines = output.NewNDJSON(writer(e.send))
	return e
}

// begin tells the client that its run has begun.
func (e *events) begin(run string) {
	h := e.a.Header()
	h.Set(runHeader, run)
	common(h, eventStream)
	h.Set("X-Accel-Buffering", "no") // a proxy would hold events back
	// A client that is gone shows with the next event.
	_ = e.do(func() error {
		e.last = time.Now()
		e.a.WriteHeader(http.StatusOK)
		return e.a.flush()
	})
	go e.keepAlive()
}

// keepAlive sends a comment, which no client sees, after each silence, and so
// notices a client that is gone: the failed write ends the request.
func (e *events) keepAlive() {
	t := time.NewTimer(limits.ServeHeartbeat)
	defer t.Stop()
	for {
		select {
		case <-e.over:
			return
		case <-t.C:
			t.Reset(e.heartbeat())
		}
	}
}

// heartbeat breaks a silence and returns how long the next one may be.
func (e *events) heartbeat() time.Duration {
	if !e.mu.TryLock() {
		return limits.ServeHeartbeat // something is on its way
	}
	defer e.mu.Unlock()
	if left := limits.ServeHeartbeat - time.Since(e.last); e.closed || left > 0 {
		return max(left, time.Second)
	}
	e.last = time.Now()
	if _, err := e.a.Write([]byte(":\n\n")); err == nil {
		_ = e.a.flush() // what fails here fails the next event as well
	}
	return limits.ServeHeartbeat
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// send makes an event of one line of JSON, which has no line break within.
func (e *events) send(line []byte) (int, error) {
	if e.id++; e.id == 1 {
		e.begun()
	}
	e.buf.Reset()
	e.buf.WriteString("id: ")
	e.buf.WriteString(strconv.FormatInt(e.id, 10))
	e.buf.WriteString("\nevent: ")
	e.buf.WriteString(e.name)
	e.buf.WriteString("\ndata: ")
	e.buf.Write(line)
	e.buf.WriteByte('\n')
	if _, err := e.a.Write(e.buf.Bytes()); err != nil {
		return 0, err
	}
	if err := e.a.flush(); err != nil {
		return 0, err
	}
	e.last = time.Now()
	return len(line), nil
}

func (e *events) event(name string, write func() error) error {
	return e.do(func() error {
		e.name = name
		return write()
	})
}

// Output implements [output.Sink].
func (e *events) Output(p []byte) error {
	return e.event("output", func() error { return e.lines.Output(p) })
}

// StreamStart implements [output.Sink].
func (e *events) StreamStart(id string) error {
	return e.event("start", func() error { return e.lines.StreamStart(id) })
}

// StreamChunk implements [output.Sink].
func (e *events) StreamChunk(id string, seq int64, p []byte) error {
	return e.event("chunk", func() error { return e.lines.StreamChunk(id, seq, p) })
}

// StreamEnd implements [output.Sink].
func (e *events) StreamEnd(id string, status int32) error {
	return e.event("end", func() error { return e.lines.StreamEnd(id, status) })
}

// Error implements [output.Sink].
func (e *events) Error(code int32, message string) error {
	return e.event("error", func() error { return e.lines.Error(code, message) })
}

func (e *events) finish(exit hostdoc.Exit) bool {
	e.a.resume()
	_ = e.event("exit", func() error { return e.lines.Exit(exit) })
	e.shut()
	close(e.over)
	return e.a.broken == nil
}
