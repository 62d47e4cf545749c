package serve

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// recorder is a response that nobody is slow to read.
type recorder struct{ *httptest.ResponseRecorder }

func (recorder) SetWriteDeadline(time.Time) error { return nil }

// FuzzEvents holds that whatever a guest writes, and calls its streams, arrives
// as the value of the event that it was written as, and makes no other event.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("text"), "tokens", "message", int32(0))
	f.Add([]byte("\nid: 9\nevent: exit\ndata: {}\n\n"), "a\nb", "\r\n\r\n", int32(-1))
	f.Add([]byte("\xff\xfe\x00"), "\u2028\u2029", "\"}\n", int32(7))
	f.Add([]byte{}, "", "", int32(1))
	f.Add([]byte("ä"), "s", "\u202e", int32(0))
	f.Fuzz(func(t *testing.T, data []byte, id, message string, status int32) {
		if !utf8.ValidString(id) || !utf8.ValidString(message) {
			t.Skip("the host passes text only")
		}
		w := httptest.NewRecorder()
		e := newEvents(newAnswer(recorder{w}), func() {})
		e.begin("run")
		for _, err := range []error{
			e.Output(data), e.StreamStart(id), e.StreamChunk(id, 5, data), e.StreamEnd(id, status), e.Error(status, message),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if !e.finish(hostdoc.Exit{Status: 3, Message: message}) {
			t.Fatal("the answer is not whole")
		}
		var output, chunk []byte
		names := ""
		r := bufio.NewReader(w.Body)
		for n := 1; ; n++ {
			got, err := readEvent(r)
			if errors.Is(err, io.EOF) {
				break
			}
			var v struct {
				Event, Stream, Data, Encoding, Message string
				Seq                                    int64
				Status                                 int32
			}
			if err != nil || got.id != strconv.Itoa(n) || json.Unmarshal([]byte(got.data), &v) != nil || v.Event != got.name {
				t.Fatalf("event %d: %q, %v", n, got, err)
			}
			part := []byte(v.Data)
			if v.Encoding == "base64" {
				if part, err = base64.StdEncoding.DecodeString(v.Data); err != nil {
					t.Fatal(err)
				}
			}
			switch v.Event {
			case "output":
				output = append(output, part...)
				continue
			case "chunk":
				chunk = append(chunk, part...)
			}
			if v.Event != "error" && v.Event != "exit" && v.Stream != id || (v.Event == "error" || v.Event == "exit") && v.Message != message {
				t.Fatalf("%+v", v)
			}
			names += v.Event + " "
		}
		if names != "start chunk end error exit " || !bytes.Equal(output, data) || !bytes.Equal(chunk, data) {
			t.Fatalf("events %q, output %q, chunk %q, written %q", names, output, chunk, data)
		}
	})
}

// FuzzPlain holds that an answer is the output, byte for byte, or a problem.
func FuzzPlain(f *testing.F) {
	f.Add([]byte(`{"a":1}`), []byte(" "), 0, false)
	f.Add([]byte("x"), []byte{}, 7, true)
	f.Add(bytes.Repeat([]byte{0}, 200<<10), bytes.Repeat([]byte{1}, 200<<10), 0, false)
	f.Fuzz(func(t *testing.T, first, second []byte, status int, trailers bool) {
		w := httptest.NewRecorder()
		s := &plain{gate: gate{a: newAnswer(recorder{w}), begun: func() {}}, trailers: trailers, modern: true}
		s.begin("run")
		if err := errors.Join(s.Output(first), s.StreamChunk("s", 0, second)); err != nil {
			t.Fatal(err)
		}
		whole := s.finish(hostdoc.Exit{Status: status})
		got := w.Result()
		output := append(bytes.Clone(first), second...)
		switch {
		case got.StatusCode == http.StatusOK:
			if !bytes.Equal(w.Body.Bytes(), output) || whole != (status == 0 || trailers) {
				t.Fatalf("%d bytes of %d, whole %v, status %d", w.Body.Len(), len(output), whole, status)
			}
		case status == 0 || !whole || !json.Valid(w.Body.Bytes()) || got.Header.Get("Content-Type") != "application/problem+json":
			t.Fatalf("%s for status %d: %q", got.Status, status, w.Body)
		}
		if got.Header.Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("no JSON: %q", w.Body)
		}
	})
}
