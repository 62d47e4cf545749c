package output

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"unicode/utf8"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// NDJSON writes one JSON object a line. Whatever the guest says lies in a value
// of a line that the host made, so that it can forge none.
//
//	{"event":"output","data":"…"}
//	{"event":"start","stream":"…"}
//	{"event":"chunk","stream":"…","seq":0,"data":"…"}
//	{"event":"end","stream":"…","status":0}
//	{"event":"log","level":"info","message":"…"}
//	{"event":"metric","name":"…","kind":"counter","value":1,"attributes":{…}}
//	{"event":"error","code":7,"message":"…"}
//	{"event":"exit","status":0}
//
// Data that is not UTF-8 is in base64, and the line says "encoding":"base64". A
// stream's end with "aborted":true was not the guest's.
type NDJSON struct {
	w   io.Writer
	buf bytes.Buffer
}

// NewNDJSON makes a sink that writes to w, each line with one Write.
func NewNDJSON(w io.Writer) *NDJSON { return &NDJSON{w: w} }

// Output writes output events.
func (n *NDJSON) Output(p []byte) error {
	for part := range Parts(p, limits.ChunkBytes) {
		line := outputLine{Event: "output"}
		line.set(part)
		if err := n.line(line); err != nil {
			return err
		}
	}
	return nil
}

type outputLine struct {
	Event string `json:"event"`
	payload
}

// payload is the guest's bytes.
type payload struct {
	Data     string `json:"data"`
	Encoding string `json:"encoding,omitempty"`
}

func (d *payload) set(p []byte) {
	if utf8.Valid(p) {
		d.Data = string(p)
		return
	}
	d.Data, d.Encoding = base64.StdEncoding.EncodeToString(p), "base64"
}

// StreamStart writes a start event.
func (n *NDJSON) StreamStart(id string) error {
	return n.line(struct {
		Event  string `json:"event"`
		Stream string `json:"stream"`
	}{"start", id})
}

type chunkLine struct {
	Event  string `json:"event"`
	Stream string `json:"stream"`
	Seq    int64  `json:"seq"`
	payload
}

// StreamChunk writes a chunk event. The host's chunks fit into a line.
func (n *NDJSON) StreamChunk(id string, seq int64, p []byte) error {
	line := chunkLine{Event: "chunk", Stream: id, Seq: seq}
	line.set(p)
	return n.line(line)
}

// StreamEnd writes an end event.
func (n *NDJSON) StreamEnd(id string, status int32) error {
	return n.line(struct {
		Event   string `json:"event"`
		Stream  string `json:"stream"`
		Status  int32  `json:"status"`
		Aborted bool   `json:"aborted,omitempty"`
	}{"end", id, status, status == Aborted})
}

// Log writes a log event, which the host's log then need not have.
func (n *NDJSON) Log(level, message string) (bool, error) {
	return true, n.line(struct {
		Event   string `json:"event"`
		Level   string `json:"level"`
		Message string `json:"message"`
	}{"log", level, message})
}

// Metric writes a metric event.
func (n *NDJSON) Metric(m Metric) error {
	return n.line(struct {
		Event      string            `json:"event"`
		Name       string            `json:"name"`
		Kind       string            `json:"kind"`
		Value      float64           `json:"value"`
		Attributes map[string]string `json:"attributes,omitempty"`
	}{"metric", m.Name, m.Kind, m.Value, m.Attributes})
}

// Error writes an error event.
func (n *NDJSON) Error(code int32, message string) error {
	return n.line(struct {
		Event   string `json:"event"`
		Code    int32  `json:"code"`
		Message string `json:"message"`
	}{"error", code, message})
}

// Exit writes the last event: how the run ended.
func (n *NDJSON) Exit(exit hostdoc.Exit) error {
	return n.line(struct {
		Event    string `json:"event"`
		Status   int    `json:"status"`
		Reason   string `json:"reason,omitempty"`
		Message  string `json:"message,omitempty"`
		Function string `json:"function,omitempty"`
	}{"exit", exit.Status, exit.Reason, exit.Message, exit.Function})
}

func (n *NDJSON) line(v any) error {
	n.buf.Reset()
	enc := json.NewEncoder(&n.buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := n.w.Write(n.buf.Bytes())
	return err
}
