package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// dirty is a guest that first counts the bytes of its memory that are not zero,
// also after it has grown, and then leaves none zero. Its status says what it
// found: 0 is nothing, 9 that it could not grow.
func dirty(minimum, grow int) string {
	return fmt.Sprintf(`(module
  (memory (export "memory") %d 200)
  (func $found (result i32) (local $p i32) (local $end i32)
    (local.set $end (i32.mul (memory.size) (i32.const 65536)))
    (loop $again
      (if (i64.ne (i64.load (local.get $p)) (i64.const 0)) (then (return (i32.const 1))))
      (br_if $again (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 8))) (local.get $end))))
    (i32.const 0))
  (func (export "process") (result i32)
    (if (call $found) (then (return (i32.const 7))))
    (if (i32.eq (memory.grow (i32.const %d)) (i32.const -1)) (then (return (i32.const 9))))
    (if (call $found) (then (return (i32.const 8))))
    (memory.fill (i32.const 0) (i32.const 0xa5) (i32.mul (memory.size) (i32.const 65536)))
    (i32.const 0)))`, minimum, grow)
}

// A memory that another run has used holds nothing of it, whatever its size was.
func TestReusedMemoryIsZero(t *testing.T) {
	var programs []*Program
	for _, size := range [][2]int{{1, 0}, {1, 3}, {1, 60}, {17, 1}, {40, 0}, {64, 36}} {
		programs = append(programs, load1(t, document(t, dirty(size[0], size[1])), Options{}))
	}
	run := func(p *Program) {
		if exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != 0 || err != nil {
			t.Errorf("%+v, %v", exit, err)
		}
	}
	for range 20 {
		for _, p := range programs {
			run(p)
		}
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 20 {
				run(programs[(i+j)%len(programs)])
			}
		})
	}
	all.Wait()
}

// What a run before had of memory is out of reach for one that has less.
func TestReusedMemoryEndsWhereItEnds(t *testing.T) {
	large := load1(t, document(t, dirty(1, 99)), Options{})
	small := load1(t, document(t, agent(`
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 4)))
    (i32.load (i32.load (i32.const 0)))`)), Options{})
	for range 5 {
		if exit, _ := large.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != 0 {
			t.Fatalf("%+v", exit)
		}
		for _, at := range []uint32{65533, 65536, 70_000, 1 << 20, 100*65536 - 4, 1 << 30, 0xfffffffc} {
			in := []byte{byte(at), byte(at >> 8), byte(at >> 16), byte(at >> 24)}
			exit, _ := small.Run(t.Context(), IO{Input: bytes.NewReader(in), Sink: output.NewRaw(discard{})})
			if exit.Status != fault.ExitTrap || !strings.Contains(exit.Message, "memory access out of bounds") {
				t.Errorf("at %#x: %+v", at, exit)
			}
		}
		if exit, _ := small.Run(t.Context(), IO{Input: strings.NewReader("\xfc\xff\x00\x00"), Sink: output.NewRaw(discard{})}); exit.Status != 0 {
			t.Errorf("%+v", exit)
		}
	}
}

// A guest that reads in small steps is served without Go; it must get the same.
func TestReadingInSmallSteps(t *testing.T) {
	long := make([]byte, 200_000)
	for i := range long {
		long[i] = byte(i * 7 / 3)
	}
	steps := `
    (loop $again
      (local.set $n (call $read (i32.const 0) (i32.const 100) (local.get $h)))
      (if (i32.gt_s (local.get $n) (i32.const 0)) (then
        (call $write_output_void (i32.const 100) (local.get $n))
        (local.set $h (i32.add (i32.rem_u (i32.mul (local.get $h) (i32.const 5)) (i32.const 701)) (i32.const 1)))
        (br $again))))`
	begin := `(local.set $h (i32.const 3))`
	for name, code := range map[string]string{
		"read":  begin + steps + `(i32.const 0)`,
		"size":  begin + `(drop (call $read (i32.const 0) (i32.const 100) (i32.const 0))) (drop (call $size (i32.const 0)))` + steps + `(i32.const 0)`,
		"slurp": begin + `(drop (call $read_input))` + steps + `(i32.sub (i32.const 200000) (call $read_input))`,
	} {
		doc := document(t, agent(code))
		p := load1(t, doc, Options{})
		for source, in := range map[string]io.Reader{
			"memory": bytes.NewReader(long), "text": strings.NewReader(string(long)), "stream": io.MultiReader(bytes.NewReader(long)), "halves": iotest.HalfReader(bytes.NewReader(long)),
		} {
			var got bytes.Buffer
			exit, err := p.Run(t.Context(), IO{Input: in, Sink: output.NewRaw(&got)})
			if exit.Status != 0 || err != nil || !bytes.Equal(got.Bytes(), long) {
				t.Errorf("%s of %s: %+v, %v, %d bytes", name, source, exit, err, got.Len())
			}
		}
	}
}

func TestWhatAGuestReadsByItselfIsStillTheHosts(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	// A read has shown the rest; then it is closed, or read out of range.
	first := expect(1, `(call $read (i32.const 0) (i32.const 0) (i32.const 10))`, 10) + expect(2, `(call $read (i32.const 0) (i32.const 0) (i32.const 10))`, 10)
	for code, want := range map[string]int{
		first + expect(3, `(call $close (i32.const 0))`, 0) + `(i32.sub (i32.const 0) (call $read (i32.const 0) (i32.const 0) (i32.const 10)))`: -codeBadHandle,
		first + `(i32.sub (i32.const 0) (call $read (i32.const 1) (i32.const 0) (i32.const 10)))`:                                               -codeBadHandle,
		first + `(call $read (i32.const 0) (i32.const 65536) (i32.const 10))`:                                                                   fault.ExitTrap,
		first + `(call $read (i32.const 0) (i32.const 65530) (i32.const 7))`:                                                                    fault.ExitTrap,
		first + `(call $read (i32.const 0) (i32.const -1) (i32.const -1))`:                                                                      fault.ExitTrap,
		first + `(call $read (i32.const 0) (i32.const 0) (i32.const 0))`:                                                                        0,
		first + `(i32.ne (i32.wrap_i64 (call $size (i32.const 0))) (i32.const 10000))`:                                                          0,
		first + `(i32.ne (call $read (i32.const 0) (i32.const 0) (i32.const 65536)) (i32.const 9980))`:                                          0,
		first + `(loop $again (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1))) (br $again)) (i32.const 0)`:                         fault.ExitDeadline,
		`(loop $again (drop (call $abi_version)) (br $again)) (i32.const 0)`:                                                                    fault.ExitDeadline,
	} {
		doc := document(t, agent(code))
		if want == fault.ExitDeadline {
			brief(doc)
		}
		p := load1(t, doc, Options{})
		if exit, _ := p.Run(t.Context(), IO{Input: strings.NewReader(long), Sink: output.NewRaw(discard{})}); exit.Status != want {
			t.Errorf("%s: %+v, want %d", code, exit, want)
		}
	}
}

// pollGuest is a process that waits as WASI does; its status is the errno, or 100
// and the number of events.
func pollGuest(subscriptions, n string) string {
	return `(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (local $e i32)
` + subscriptions + `
    (local.set $e (call $poll (i32.const 1024) (i32.const 4096) (i32.const ` + n + `) (i32.const 8)))
    (if (local.get $e) (then (return (local.get $e))))
    (call $write (i32.const 4096) (i32.mul (i32.load (i32.const 8)) (i32.const 32)))
    (i32.add (i32.const 100) (i32.load (i32.const 8)))))`
}

// subscribe writes subscription i: to a clock, if tag is 0.
func subscribe(i, tag, clock int, timeout string, flags int) string {
	at := 1024 + 48*i
	return fmt.Sprintf(`
    (i64.store (i32.const %d) (i64.const %d))
    (i32.store8 (i32.const %d) (i32.const %d))
    (i32.store (i32.const %d) (i32.const %d))
    (i64.store (i32.const %d) %s)
    (i32.store16 (i32.const %d) (i32.const %d))`, at, 1000+i, at+8, tag, at+16, clock, at+24, timeout, at+40, flags)
}

func TestWaitingForClocksInAProcessThatGoesOn(t *testing.T) {
	later := func(clock int, ns string) string {
		return fmt.Sprintf(`(i64.add (block (result i64) (drop (call $now (i32.const %d) (i64.const 1) (i32.const 512))) (i64.load (i32.const 512))) (i64.const %s))`, clock, ns)
	}
	const ms20, hour = "20000000", "3600000000000"
	event := func(i, errno, tag int) string {
		b := make([]byte, 32)
		b[0], b[1], b[8], b[10] = byte((1000+i)&0xff), byte((1000+i)>>8), byte(errno), byte(tag)
		if tag != 0 {
			b[16] = 1 // a byte at least
		}
		return string(b)
	}
	for name, c := range map[string]struct {
		subscriptions, n string
		status           int
		events           string
		atLeast          time.Duration
	}{
		"none":             {"", "0", int(wasi.Inval), "", 0},
		"relative":         {subscribe(0, 0, 1, "(i64.const "+ms20+")", 0), "1", 101, event(0, 0, 0), 20 * time.Millisecond},
		"realtime":         {subscribe(0, 0, 0, "(i64.const "+ms20+")", 0), "1", 101, event(0, 0, 0), 20 * time.Millisecond},
		"absolute":         {subscribe(0, 0, 1, later(1, ms20), 1), "1", 101, event(0, 0, 0), 20 * time.Millisecond},
		"absolute, real":   {subscribe(0, 0, 0, later(0, ms20), 1), "1", 101, event(0, 0, 0), 20 * time.Millisecond},
		"passed":           {subscribe(0, 0, 1, "(i64.const 1)", 1), "1", 101, event(0, 0, 0), 0},
		"the first of two": {subscribe(0, 0, 1, "(i64.const "+hour+")", 0) + subscribe(1, 0, 1, "(i64.const "+ms20+")", 0), "2", 101, event(1, 0, 0), 20 * time.Millisecond},
		"the first, later": {subscribe(0, 0, 1, later(1, ms20), 1) + subscribe(1, 0, 1, later(1, hour), 1), "2", 101, event(0, 0, 0), 20 * time.Millisecond},
		"two at once":      {subscribe(0, 0, 1, "(i64.const "+ms20+")", 0) + subscribe(1, 0, 0, "(i64.const "+ms20+")", 0), "2", 102, event(0, 0, 0) + event(1, 0, 0), 20 * time.Millisecond},
		"another clock":    {subscribe(0, 0, 2, "(i64.const "+hour+")", 0), "1", 101, event(0, int(wasi.NotSup), 0), 0},
		"a file":           {subscribe(0, 0, 1, "(i64.const "+hour+")", 0) + subscribe(1, 1, 0, "(i64.const 0)", 0) + subscribe(2, 2, 1, "(i64.const 0)", 0), "3", 102, event(1, 0, 1) + event(2, 0, 2), 0},
		"another kind":     {subscribe(0, 9, 1, "(i64.const 0)", 0), "1", int(wasi.Inval), "", 0},
		"too many":         {"", "4097", int(wasi.NoMem), "", 0},
		"out of range":     {"", "2000", fault.ExitTrap, "", 0},
		"far out of range": {"", "-1", int(wasi.NoMem), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := load1(t, document(t, pollGuest(c.subscriptions, c.n)), Options{})
			var got bytes.Buffer
			began := time.Now()
			exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(&got)})
			if exit.Status != c.status || (err != nil) != (c.status == fault.ExitTrap) || got.String() != c.events {
				t.Errorf("%+v, %v, events %q, want %q", exit, err, got.String(), c.events)
			}
			if waited := time.Since(began); waited < c.atLeast {
				t.Errorf("waited %v", waited)
			}
		})
	}
}

// resources is what a process holds.
type resources struct{ goroutines, descriptors, mappings, memory int }

func measure1(t testing.TB) resources {
	t.Helper()
	runtime.GC()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var rss int
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if _, err := fmt.Sscan(rest, &rss); err != nil {
				t.Fatal(err)
			}
		}
	}
	return resources{runtime.NumGoroutine(), len(fds), bytes.Count(maps, []byte("\n")), rss << 10}
}

// leavesNothing runs f and waits until the process holds no more than before. How
// much memory the Go runtime and the C library keep depends on how many runs came
// to overlap. So f is run again where there is more; what is left behind is there
// every time.
func leavesNothing(t *testing.T, f func()) {
	t.Helper()
	const rounds = 5
	for round := range rounds {
		before := measure1(t)
		f()
		var now resources
		eventually(t, "the process holds no more goroutines and descriptors than before", func() bool {
			now = measure1(t)
			return now.goroutines <= before.goroutines && now.descriptors <= before.descriptors
		})
		if now.mappings <= before.mappings+200 && now.memory <= before.memory+32*limits.MiB {
			return
		}
		t.Logf("round %d: before %+v, now %+v", round, before, now)
	}
	t.Errorf("the process holds more than before after each of %d rounds", rounds)
}

// worker is a guest that ends as its input says, in the midst of all it can have
// open: a stream, a call, media.
func worker(t testing.TB) (doc *hostdoc.Document, o Options) {
	t.Helper()
	var d data
	name, op, body := d.at(0, granted), d.at(200, "fetch"), d.at(300, "a medium")
	text := strings.Replace(agent(`
    (drop (call $read (i32.const 0) (i32.const 2000) (i32.const 1)))
    (drop (call $write_stream (call $start_stream (i32.const 200) (i32.const 5)) (i32.const 200) (i32.const 5)))
    (local.set $h (call $request_capability `+name+` (i32.const 0) (i32.const 0)))
    (local.set $h (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))
    (drop (memory.grow (i32.const 20)))
    (memory.fill (i32.const 4096) (i32.const 1) (i32.const 1000000))
    (local.set $n (i32.load8_u (i32.const 2000)))
    (if (i32.eq (local.get $n) (i32.const 111)) (then (drop (call $upload_media (i32.const 0) (i32.const 0) `+body+`)))) ;; o
    (if (i32.eq (local.get $n) (i32.const 116)) (then unreachable)) ;; t
    (if (i32.eq (local.get $n) (i32.const 98)) (then (drop (call $read (i32.const 0) (i32.const -1) (i32.const -1))))) ;; b
    (if (i32.eq (local.get $n) (i32.const 108)) (then (loop $again (br $again)))) ;; l
    (if (i32.eq (local.get $n) (i32.const 114)) (then (loop $again (drop (call $read (local.get $h) (i32.const 2000) (i32.const 100))) (br $again)))) ;; r
    (if (i32.eq (local.get $n) (i32.const 115)) (then ;; s
      (i32.store8 (i32.const 1032) (i32.const 0))
      (i32.store (i32.const 1040) (i32.const 1))
      (i64.store (i32.const 1048) (i64.const 3600000000000))
      (drop (call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))))
    (if (i32.eq (local.get $n) (i32.const 120)) (then (call $exit (i32.const 5)))) ;; x
    (i32.const 5)`, d.segments.String()), "(module", `(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))`, 1)
	doc = document(t, text)
	f := &fake{}
	f.invoke = func(ctx context.Context, _ string, _ json.RawMessage, _ []byte) (backend.Answer, *backend.Refusal) {
		return &fakeAnswer{f: f, ctx: ctx, wait: make(chan struct{})}, nil
	}
	o, edit := with(f)
	edit(doc)
	withMedia(t.TempDir(), "media:read", "media:write")(doc)
	return doc, o
}

var workerEnds = []struct {
	in     string
	status int
	slow   bool // ends by its deadline
}{
	{"", 5, false}, {"o", 5, false}, {"x", 5, false}, {"t", fault.ExitTrap, false}, {"b", fault.ExitTrap, false},
	{"l", fault.ExitDeadline, true}, {"r", fault.ExitDeadline, true}, {"s", fault.ExitDeadline, true},
}

func TestThousandsOfRunsLeaveNothingBehind(t *testing.T) {
	runs := 10_000
	if testing.Short() {
		runs = 500
	}
	doc, o := worker(t)
	p := load1(t, doc, o)
	one := func(i int) {
		c := workerEnds[i%5]
		exit, _ := p.Run(t.Context(), IO{ID: fmt.Sprint(i), Input: strings.NewReader(c.in), Sink: output.NewRaw(discard{})})
		if exit.Status != c.status {
			t.Fatalf("run %d, %q: %+v", i, c.in, exit)
		}
	}
	for i := range 100 {
		one(i)
	}
	leavesNothing(t, func() {
		for i := range runs {
			one(i)
		}
	})
}

func TestAThousandRunsAtOnceLeaveNothingBehind(t *testing.T) {
	runs := 1000
	if testing.Short() {
		runs = 100
	}
	doc, o := worker(t)
	p := load1(t, doc, o)
	// All are there at once: none goes on before every one has begun.
	all := func() {
		var begun, done sync.WaitGroup
		begun.Add(runs)
		release := make(chan struct{})
		for i := range runs {
			done.Go(func() {
				c := workerEnds[i%5]
				var once sync.Once
				in := readerFunc(func(b []byte) (int, error) {
					once.Do(begun.Done)
					<-release
					return copy(b, c.in), io.EOF
				})
				exit, _ := p.Run(t.Context(), IO{ID: fmt.Sprint(i), Input: in, Sink: output.NewRaw(discard{})})
				if exit.Status != c.status {
					t.Errorf("run %d, %q: %+v", i, c.in, exit)
				}
			})
		}
		begun.Wait()
		close(release)
		done.Wait()
	}
	all() // as many threads as it takes stay
	leavesNothing(t, all)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A guest that would go on for ever is ended, and nothing stays of it: not its
// thread, not its memory, not what it had open.
func TestGuestsThatHangLeaveNothingBehind(t *testing.T) {
	doc, o := worker(t)
	doc.Limits.DeadlineMillis = 200
	p := load1(t, doc, o)
	all := func() {
		var done sync.WaitGroup
		for i := range 40 {
			done.Go(func() {
				c := workerEnds[5+i%3]
				if exit, _ := p.Run(t.Context(), IO{ID: fmt.Sprint(i), Input: strings.NewReader(c.in), Sink: output.NewRaw(discard{})}); exit.Status != c.status {
					t.Errorf("run %d, %q: %+v", i, c.in, exit)
				}
			})
		}
		done.Wait()
	}
	all()
	leavesNothing(t, all)
}

func TestRunsThatAreCancelledLeaveNothingBehind(t *testing.T) {
	if testing.Short() {
		t.Skip("the drain time is seconds")
	}
	doc, o := worker(t)
	p := load1(t, doc, o)
	all := func() {
		ctx, cancel := context.WithCancelCause(t.Context())
		var done sync.WaitGroup
		for i := range 40 {
			done.Go(func() {
				c := workerEnds[5+i%3]
				exit, err := p.Run(ctx, IO{ID: fmt.Sprint(i), Input: strings.NewReader(c.in), Sink: output.NewRaw(discard{})})
				// What waits for an answer is told so again and again, and may go on
				// until it is interrupted.
				if exit.Status != 143 || fault.ReasonOf(err) != fault.Canceled {
					t.Errorf("run %d, %q: %+v", i, c.in, exit)
				}
			})
		}
		cancel(errors.New("enough"))
		done.Wait()
	}
	all()
	leavesNothing(t, all)
}
