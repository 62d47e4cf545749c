package host

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// events keeps what a run emits, one line each, and can fail or block.
type events struct {
	mu    sync.Mutex
	lines []string
	// chunk, if not nil, is called for every chunk.
	chunk func(seq int64) error
	// err is returned by everything else.
	err error
}

func (e *events) add(format string, args ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lines = append(e.lines, fmt.Sprintf(format, args...))
	return e.err
}

func (e *events) all() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.lines, "\n")
}

func (e *events) Output(p []byte) error       { return e.add("output %s", p) }
func (e *events) StreamStart(id string) error { return e.add("start %s", id) }
func (e *events) StreamChunk(id string, seq int64, p []byte) error {
	if err := e.add("chunk %s %d %s", id, seq, p); err != nil || e.chunk == nil {
		return err
	}
	return e.chunk(seq)
}
func (e *events) StreamEnd(id string, status int32) error { return e.add("end %s %d", id, status) }
func (e *events) Error(code int32, m string) error        { return e.add("error %d %s", code, m) }

// runIn runs a guest with a sink of its own.
func runIn(t testing.TB, text string, sink output.Sink, edits ...func(*hostdoc.Document)) outcome {
	t.Helper()
	doc := document(t, text)
	for _, edit := range edits {
		edit(doc)
	}
	var errs bytes.Buffer
	p := load1(t, doc, Options{Stderr: &errs})
	exit, err := p.Run(t.Context(), IO{ID: "r1", Sink: sink})
	return outcome{exit: exit, err: err, stderr: errs.String()}
}

// expect is code that ends the guest with a status unless expr, of type i32,
// has the value.
func expect(status int, expr string, value int) string {
	return fmt.Sprintf("(if (i32.ne %s (i32.const %d)) (then (return (i32.const %d))))\n", expr, value, status)
}

const streamData = `(data (i32.const 0) "abone two \ff")`

func TestSeveralStreamsAtOnceKeepTheirOrder(t *testing.T) {
	var e events
	runIn(t, agent(`
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))
    (local.set $n (call $start_stream (i32.const 1) (i32.const 1)))`+
		expect(1, `(call $write_stream (local.get $h) (i32.const 2) (i32.const 3))`, 3)+
		expect(2, `(call $write_stream (local.get $n) (i32.const 6) (i32.const 3))`, 3)+
		expect(3, `(call $write_stream (local.get $h) (i32.const 2) (i32.const 0))`, 0)+
		`(call $write_output_void (i32.const 2) (i32.const 1))`+
		expect(4, `(call $write_stream (local.get $h) (i32.const 3) (i32.const 2))`, 2)+
		expect(5, `(call $end_stream (local.get $n) (i32.const 7))`, 0)+
		expect(6, `(call $end_stream (local.get $h) (i32.const 0))`, 0)+
		// The id is free again.
		expect(7, `(i32.lt_s (call $start_stream (i32.const 0) (i32.const 1)) (i32.const 0))`, 0)+
		`(i32.const 0)`, streamData), &e).wants(t, 0, "")
	want := "start a\nstart b\nchunk a 0 one\nchunk b 0 two\noutput o\nchunk a 1 ne\nend b 7\nend a 0\nstart a\nend a -1"
	if got := e.all(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestStreamsByTheWrongArguments(t *testing.T) {
	var e events
	runIn(t, agent(`
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))`+
		expect(1, `(call $start_stream (i32.const 0) (i32.const 0))`, codeInvalid)+ // no id
		expect(2, `(call $start_stream (i32.const 10) (i32.const 1))`, codeInvalid)+ // not text
		expect(3, fmt.Sprintf(`(call $start_stream (i32.const 100) (i32.const %d))`, limits.StreamIDBytes+1), codeLimit)+
		expect(4, `(call $start_stream (i32.const 0) (i32.const 1))`, codeConflict)+
		expect(5, `(call $write_stream (i32.const 99) (i32.const 0) (i32.const 1))`, codeBadHandle)+
		expect(6, `(call $write_stream (i32.const -1) (i32.const 0) (i32.const 1))`, codeBadHandle)+
		expect(7, `(call $write_stream (i32.const 0) (i32.const 0) (i32.const 1))`, codeBadHandle)+ // the input
		expect(8, `(call $end_stream (i32.const 0) (i32.const 0))`, codeBadHandle)+
		expect(9, `(call $end_stream (local.get $h) (i32.const -1))`, codeInvalid)+
		expect(10, `(call $read (local.get $h) (i32.const 100) (i32.const 1))`, codeBadHandle)+
		expect(11, `(i32.wrap_i64 (call $size (local.get $h)))`, codeBadHandle)+
		expect(12, `(call $end_stream (local.get $h) (i32.const 0))`, 0)+
		expect(13, `(call $end_stream (local.get $h) (i32.const 0))`, codeBadHandle)+
		expect(14, `(call $write_stream (local.get $h) (i32.const 0) (i32.const 1))`, codeBadHandle)+
		expect(15, `(call $close (local.get $h))`, 0)+
		`(i32.const 0)`, streamData), &e).wants(t, 0, "")
	if got := e.all(); got != "start a\nend a 0" {
		t.Errorf("got\n%s", got)
	}
}

// However a guest ends, what it left open was not complete.
func TestAStreamThatIsNeverEndedIsAborted(t *testing.T) {
	start := `
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))
    (drop (call $start_stream (i32.const 1) (i32.const 1)))
    (drop (call $write_stream (local.get $h) (i32.const 2) (i32.const 3)))`
	for name, c := range map[string]struct {
		code   string
		status int
		reason fault.Reason
	}{
		"returns": {`(i32.const 0)`, 0, ""},
		"closes":  {`(call $close (local.get $h))`, 0, ""},
		"fails":   {`(call $set_error (i32.const 1) (i32.const 0) (i32.const 1))`, 1, ""},
		"traps":   {`(unreachable)`, fault.ExitTrap, fault.Trap},
		"hangs":   {`(loop $again (br $again)) (i32.const 0)`, fault.ExitDeadline, fault.Deadline},
		"waits":   {`(call $read_input)`, fault.ExitDeadline, fault.Deadline},
	} {
		t.Run(name, func(t *testing.T) {
			var e events
			doc := document(t, agent(start+c.code, streamData))
			doc.Limits.DeadlineMillis = 100
			if name != "hangs" && name != "waits" {
				doc.Limits.DeadlineMillis = 0
			}
			p := load1(t, doc, Options{})
			exit, err := p.Run(t.Context(), IO{Sink: &e, Input: blocked(t)})
			outcome{exit: exit, err: err}.wants(t, c.status, c.reason)
			want := "start a\nstart b\nchunk a 0 one\nend a -1\nend b -1"
			if name == "fails" {
				want += "\nerror 1 a"
			}
			if got := e.all(); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestAGuestWaitsWhileItsReaderIsSlow(t *testing.T) {
	const chunks = 50
	read, began := make(chan struct{}), make(chan int64, chunks)
	e := events{chunk: func(seq int64) error {
		began <- seq
		<-read
		return nil
	}}
	done := make(chan outcome)
	text := agent(fmt.Sprintf(`
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))
    (local.set $n (i32.const %d))
    (loop $again
      (drop (call $write_stream (local.get $h) (i32.const 2) (i32.const 3)))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (call $end_stream (local.get $h) (i32.const 0))`, chunks), streamData)
	go func() { done <- runIn(t, text, &e) }()
	for i := range int64(chunks) {
		if seq := <-began; seq != i {
			t.Errorf("chunk %d came as %d", i, seq)
		}
		select {
		case seq := <-began:
			t.Errorf("chunk %d came before %d was read", seq, i)
		case <-time.After(time.Millisecond):
		}
		read <- struct{}{}
	}
	(<-done).wants(t, 0, "")
}

func TestAReaderThatLeftCancelsWritesToStreams(t *testing.T) {
	for _, gone := range []error{output.ErrGone, io.ErrClosedPipe} {
		e := events{chunk: func(seq int64) error {
			if seq == 1 {
				return gone
			}
			return nil
		}}
		start := `(local.set $h (call $start_stream (i32.const 0) (i32.const 1)))` +
			expect(1, `(call $write_stream (local.get $h) (i32.const 2) (i32.const 3))`, 3) +
			expect(2, `(call $write_stream (local.get $h) (i32.const 2) (i32.const 3))`, codeCanceled)
		// A guest may end as it likes, but not as if all were well.
		runIn(t, agent(start+`(i32.const 0)`, streamData), &e).wants(t, 141, fault.Canceled)
		e.lines = nil
		runIn(t, agent(start+`(i32.const 9)`, streamData), &e).wants(t, 9, "")
	}
	// What fails for another reason is not taken for it.
	e := events{chunk: func(int64) error { return errBroken }}
	runIn(t, agent(`
    (drop (call $write_stream (call $start_stream (i32.const 0) (i32.const 1)) (i32.const 2) (i32.const 3))) (i32.const 0)`, streamData), &e).
		wants(t, fault.ExitHostFailure, fault.Unavailable).says(t, "broken")
	e = events{err: output.ErrGone}
	runIn(t, agent(expect(1, `(call $start_stream (i32.const 0) (i32.const 1))`, codeCanceled)+`(i32.const 0)`, streamData), &e).wants(t, 141, fault.Canceled)
}

func TestStreamsCountAsOutput(t *testing.T) {
	var e events
	runIn(t, agent(`
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))
    (call $write_output_void (i32.const 2) (i32.const 3))`+
		expect(1, `(call $write_stream (local.get $h) (i32.const 2) (i32.const 3))`, codeLimit)+
		expect(2, `(call $write_stream (local.get $h) (i32.const 2) (i32.const 2))`, 2)+
		expect(3, `(call $end_stream (local.get $h) (i32.const 0))`, 0)+
		`(i32.const 0)`, streamData), &e, func(d *hostdoc.Document) { d.Limits.OutputBytes = 5 }).wants(t, 0, "")
	if got := e.all(); got != "start a\noutput one\nchunk a 0 on\nend a 0" {
		t.Errorf("got\n%s", got)
	}
}

func TestLongChunksAreCutBetweenCharacters(t *testing.T) {
	var e events
	runIn(t, agent(`
    (drop (memory.grow (i32.const 3)))
    (loop $again
      (i32.store16 (local.get $n) (i32.const 0xa9c3)) ;; é
      (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 2))) (i32.const 150000))))
    (i32.store8 (i32.const 160000) (i32.const 120))
    (drop (call $write_stream (call $start_stream (i32.const 160000) (i32.const 1)) (i32.const 1) (i32.const 149999))) (i32.const 0)`), &e).wants(t, 0, "")
	var sizes []int
	for _, line := range e.lines {
		if _, data, ok := strings.Cut(line, fmt.Sprintf("chunk x %d ", len(sizes))); ok {
			sizes = append(sizes, len(data))
		}
	}
	// The first byte is the end of a character, so that the cuts fall within one.
	if want := []int{limits.ChunkBytes - 1, limits.ChunkBytes, 149999 - 2*limits.ChunkBytes + 1}; !slices.Equal(sizes, want) {
		t.Errorf("chunks of %v, want %v", sizes, want)
	}
}

// interrupted blocks until it is interrupted.
type interrupted struct {
	events
	stop chan struct{}
	once sync.Once
}

func (i *interrupted) Output([]byte) error {
	<-i.stop
	return output.ErrGone
}

func (i *interrupted) StreamChunk(string, int64, []byte) error { return i.Output(nil) }

func (i *interrupted) Interrupt() { i.once.Do(func() { close(i.stop) }) }

func TestAWriteThatWaitsEndsWithTheRun(t *testing.T) {
	before := runtime.NumGoroutine()
	for name, code := range map[string]string{
		"output": `(call $write_output_void (i32.const 0) (i32.const 1)) (i32.const 0)`,
		"stream": `(drop (call $write_stream (call $start_stream (i32.const 0) (i32.const 1)) (i32.const 2) (i32.const 3))) (i32.const 0)`,
	} {
		t.Run(name, func(t *testing.T) {
			sink := &interrupted{stop: make(chan struct{})}
			runIn(t, agent(code, streamData), sink, brief).wants(t, fault.ExitDeadline, fault.Deadline)
		})
	}
	eventually(t, "the guest's goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

// counted counts what happens to it after it was given back.
type counted struct {
	events
	back, late atomic.Bool
}

func (c *counted) Interrupt() {
	if c.back.Load() {
		c.late.Store(true)
	}
}

// A deadline that passes in the moment in which the guest ends must not reach
// what is the caller's again.
func TestASinkIsLeftAloneOnceItsRunIsOver(t *testing.T) {
	doc := document(t, agent(`
    (loop $again (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 600000))))
    (i32.const 0)`))
	doc.Limits.DeadlineMillis = 1
	p := load1(t, doc, Options{})
	ends := map[int]int{}
	for range 500 {
		c := new(counted)
		exit, _ := p.Run(t.Context(), IO{Sink: c})
		c.back.Store(true)
		ends[exit.Status]++
		if exit.Status != 0 && exit.Status != fault.ExitDeadline {
			t.Fatalf("%+v", exit)
		}
		runtime.Gosched()
		if c.late.Load() {
			t.Fatal("interrupted after its run")
		}
	}
	t.Logf("ends %v", ends)
}

// eventually waits for a condition on a slow machine.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func TestStreamsOnAPipeAreTheirBytes(t *testing.T) {
	text := agent(`
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))
    (call $write_output_void (i32.const 6) (i32.const 4))
    (drop (call $write_stream (local.get $h) (i32.const 2) (i32.const 3)))
    (call $write_output_void (i32.const 9) (i32.const 2))
    (call $end_stream (local.get $h) (i32.const 0))`, streamData)
	runWAT(t, text).wants(t, 0, "").output(t, "two one \xff")
	setup{wat: text, edit: func(d *hostdoc.Document) { d.Framing = hostdoc.FramingNDJSON }}.run(t).wants(t, 0, "").output(t, `{"event":"start","stream":"a"}
{"event":"output","data":"two "}
{"event":"chunk","stream":"a","seq":0,"data":"one"}
{"event":"output","data":"IP8=","encoding":"base64"}
{"event":"end","stream":"a","status":0}
{"event":"exit","status":0}
`)
}
