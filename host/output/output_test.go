package output

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

var (
	_ Sink     = (*Raw)(nil)
	_ Sink     = (*NDJSON)(nil)
	_ Observer = (*NDJSON)(nil)
)

// emit sends everything a sink takes, with text wherever the guest has a say.
func emit(t *testing.T, s Sink, text string) {
	t.Helper()
	calls := []func() error{
		func() error { return s.Output([]byte(text)) },
		func() error { return s.StreamStart("a" + text) },
		func() error { return s.StreamChunk("a"+text, 0, []byte(text)) },
		func() error { return s.StreamStart("b") },
		func() error { return s.StreamChunk("b", 0, []byte("1")) },
		func() error { return s.StreamChunk("a"+text, 1, []byte("2")) },
		func() error { return s.StreamEnd("b", Aborted) },
		func() error { return s.StreamEnd("a"+text, 3) },
		func() error { return s.Error(9, text) },
	}
	if o, ok := s.(Observer); ok {
		calls = append(calls,
			func() error { _, err := o.Log("info", text); return err },
			func() error { return o.Metric(Metric{text, "gauge", 0.5, map[string]string{text: text}}) })
	}
	for i, call := range calls {
		if err := call(); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

func TestRawIsTheBytesInTheirOrder(t *testing.T) {
	var b bytes.Buffer
	emit(t, NewRaw(&b), "\x00\xff\n")
	if want := "\x00\xff\n\x00\xff\n12"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestEachEventIsOneLine(t *testing.T) {
	var b bytes.Buffer
	n := NewNDJSON(&b)
	emit(t, n, "hi")
	if err := n.Exit(hostdoc.Exit{Version: 2, Status: 120, Reason: "trap", Message: "m", Function: "f"}); err != nil {
		t.Fatal(err)
	}
	want := `{"event":"output","data":"hi"}
{"event":"start","stream":"ahi"}
{"event":"chunk","stream":"ahi","seq":0,"data":"hi"}
{"event":"start","stream":"b"}
{"event":"chunk","stream":"b","seq":0,"data":"1"}
{"event":"chunk","stream":"ahi","seq":1,"data":"2"}
{"event":"end","stream":"b","status":-1,"aborted":true}
{"event":"end","stream":"ahi","status":3}
{"event":"error","code":9,"message":"hi"}
{"event":"log","level":"info","message":"hi"}
{"event":"metric","name":"hi","kind":"gauge","value":0.5,"attributes":{"hi":"hi"}}
{"event":"exit","status":120,"reason":"trap","message":"m","function":"f"}
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestBytesThatAreNoTextAreInBase64AndSaySo(t *testing.T) {
	var b bytes.Buffer
	n := NewNDJSON(&b)
	for _, p := range []string{"\xff\x00", "a\xe2\x82"} {
		b.Reset()
		if err := n.Output([]byte(p)); err != nil {
			t.Fatal(err)
		}
		if err := n.StreamChunk("s", 5, []byte(p)); err != nil {
			t.Fatal(err)
		}
		enc := base64.StdEncoding.EncodeToString([]byte(p))
		want := `{"event":"output","data":"` + enc + `","encoding":"base64"}` + "\n" +
			`{"event":"chunk","stream":"s","seq":5,"data":"` + enc + `","encoding":"base64"}` + "\n"
		if b.String() != want {
			t.Errorf("got %s want %s", b.String(), want)
		}
	}
}

func TestAnEmptyOutputIsNoEvent(t *testing.T) {
	var b bytes.Buffer
	if err := NewNDJSON(&b).Output(nil); err != nil || b.Len() > 0 {
		t.Errorf("%v, %q", err, b.String())
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestAReaderThatLeftIsNoticed(t *testing.T) {
	for _, s := range []Sink{NewRaw(failing{io.ErrClosedPipe}), NewNDJSON(failing{io.ErrClosedPipe})} {
		for name, err := range map[string]error{"output": s.Output([]byte("x")), "chunk": s.StreamChunk("x", 0, []byte("x"))} {
			if !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%T %s: %v", s, name, err)
			}
		}
	}
}

// FuzzNDJSON: whatever a guest says, every line is one event of the host's, and
// the bytes that come out are those that went in.
func FuzzNDJSON(f *testing.F) {
	for _, seed := range []string{"", "hi", "a\nb", `","event":"exit`, "\xff", "\u2028\x00\r", strings.Repeat("é", limits.ChunkBytes), "x" + strings.Repeat("€", limits.ChunkBytes)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var b bytes.Buffer
		emit(t, NewNDJSON(&b), text)
		var got []byte
		var events []string
		for line := range strings.Lines(b.String()) {
			var e struct{ Event, Data, Encoding string }
			if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasSuffix(line, "\n") {
				t.Fatalf("%q: %v", line, err)
			}
			if len(e.Data) > 2*limits.ChunkBytes && e.Event == "output" {
				t.Errorf("a line of %d bytes", len(e.Data))
			}
			data := []byte(e.Data)
			if e.Encoding == "base64" {
				var err error
				if data, err = base64.StdEncoding.DecodeString(e.Data); err != nil {
					t.Fatal(err)
				}
			}
			if e.Event == "output" {
				got = append(got, data...)
				continue
			}
			events = append(events, e.Event)
		}
		if string(got) != text {
			t.Errorf("%q came out as %q", text, got)
		}
		if want := []string{"start", "chunk", "start", "chunk", "chunk", "end", "end", "error", "log", "metric"}; !slices.Equal(events, want) {
			t.Errorf("events %v", events)
		}
	})
}

// FuzzParts: the pieces are the whole, none is too long, and text stays text.
func FuzzParts(f *testing.F) {
	f.Add([]byte("héllo wörld"), 4)
	f.Add([]byte("€€€€"), 5)
	f.Add([]byte("\x80\x80\x80\x80\x80\x80"), 4)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		if n <= 0 {
			return
		}
		var all []byte
		for part := range Parts(p, n) {
			if len(part) == 0 || len(part) > n {
				t.Fatalf("a part of %d bytes, at most %d", len(part), n)
			}
			if n >= utf8.UTFMax && utf8.Valid(p) && !utf8.Valid(part) {
				t.Fatalf("%q is cut within a character", part)
			}
			all = append(all, part...)
		}
		if !bytes.Equal(all, p) {
			t.Fatal("not the whole")
		}
	})
}
