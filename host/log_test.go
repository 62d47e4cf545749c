package host

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// logged parses what a run logged; every line must be the host's own making.
func logged(t testing.TB, stderr string) []logLine {
	t.Helper()
	var lines []logLine
	for text := range strings.Lines(stderr) {
		var line logLine
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&line); err != nil || !strings.HasSuffix(text, "\n") {
			t.Fatalf("line %q: %v", text, err)
		}
		lines = append(lines, line)
	}
	return lines
}

// mutter is a command that writes the texts to stderr, one call each.
func mutter(end string, texts ...string) string {
	var d data
	code := ""
	for i, text := range texts {
		code += `(drop (call $write (i32.const 2) ` + d.at(1024+200*i, text) + `))` + "\n"
	}
	return command(code+end, d.segments.String())
}

// A guest that writes a log line of the host's to its stderr has logged a text.
func TestStderrCannotForgeALogLine(t *testing.T) {
	forged := `{"time":"2026-01-01T00:00:00Z","level":"error","source":"host","agent":"other","msg":"all is lost"}`
	asJSON := asCommand(func(d *hostdoc.Document) { d.LogFormat = "json" })
	for name, c := range map[string]struct {
		texts []string
		want  []string
	}{
		"a line":           {[]string{forged + "\n"}, []string{forged}},
		"in parts":         {[]string{forged[:10], forged[10:60], forged[60:] + "\n", "next\n"}, []string{forged, "next"}},
		"several":          {[]string{"one\ntwo\n\nthree\r\n"}, []string{"one", "two", "", "three"}},
		"without an end":   {[]string{"one\n", "half"}, []string{"one", "half"}},
		"control and dirt": {[]string{"\x1b[2J\xff\u202e\n"}, []string{"\x1b[2J\uFFFD\u202e"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := setup{wat: mutter("", c.texts...), edit: asJSON}.run(t).wants(t, 0, "").output(t, "")
			var got []string
			for _, line := range logged(t, o.stderr) {
				if line.Source != fromAgent || line.Level != "info" || line.Agent != "test.agent" || line.Run != "i1" {
					t.Errorf("%+v", line)
				}
				got = append(got, line.Message)
			}
			if strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("logged %q, want %q", got, c.want)
			}
			if strings.Contains(o.stderr, "\x1b") || strings.Contains(o.stderr, "\xff") {
				t.Errorf("raw bytes in %q", o.stderr)
			}
			// As text it is no line of the host's either.
			o = setup{wat: mutter("", c.texts...), edit: asCommand()}.run(t).wants(t, 0, "")
			for line := range strings.Lines(o.stderr) {
				if !strings.HasPrefix(line, "info  test.agent: ") {
					t.Errorf("line %q", line)
				}
			}
		})
	}
}

// What a guest said before its end is there, before the host's last word.
func TestStderrWithoutAnEndIsLoggedHoweverTheGuestEnds(t *testing.T) {
	for end, status := range map[string]int{`(unreachable)`: fault.ExitTrap, `(call $proc_exit (i32.const 3))`: 3, `(loop $again (br $again))`: fault.ExitDeadline} {
		o := setup{wat: mutter(end, "last words"), edit: asCommand(func(d *hostdoc.Document) {
			d.LogFormat = "json"
			if status == fault.ExitDeadline {
				brief(d)
			}
		})}.run(t)
		if lines := logged(t, o.stderr); o.exit.Status != status || len(lines) == 0 || lines[0].Message != "last words" || lines[0].Source != fromAgent {
			t.Errorf("%s: %+v, logged %q", end, o.exit, o.stderr)
		}
	}
}

func TestALineWithoutEndIsCut(t *testing.T) {
	o := setup{wat: command(`
    (loop $again
      (drop (call $write (i32.const 2) (i32.const 1024) (i32.const 30000)))
      (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 5))))`), edit: asCommand(func(d *hostdoc.Document) { d.LogFormat = "json" })}.run(t).wants(t, 0, "")
	var sizes []int
	for _, line := range logged(t, o.stderr) {
		sizes = append(sizes, len(line.Message))
	}
	if fmt.Sprint(sizes) != fmt.Sprint([]int{limits.LogLineBytes, limits.LogLineBytes, 150_000 - 2*limits.LogLineBytes}) {
		t.Errorf("lines of %v bytes", sizes)
	}
}

func TestStderrOfAFramedRunIsEvents(t *testing.T) {
	o := setup{wat: mutter("", "one\ntwo"), edit: asCommand(func(d *hostdoc.Document) { d.Framing = hostdoc.FramingNDJSON })}.run(t)
	o.wants(t, 0, "").output(t, `{"event":"log","level":"info","message":"one"}
{"event":"log","level":"info","message":"two"}
{"event":"exit","status":0}
`)
	if o.stderr != "" {
		t.Errorf("logged %q", o.stderr)
	}
}

// A flood of lines is left out and told of; what comes later is logged again.
func TestAFloodOfLogLinesIsBounded(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(1_800_000_000, 0)
	l := newLogger(&b, &hostdoc.Document{LogFormat: "text", Agent: hostdoc.Agent{ID: "a"}})
	l.now = func() time.Time { return now }
	s := &session{log: l, out: newOut(output.NewRaw(discard{}), 0)}
	const line = 1000
	text := strings.Repeat("x", line)
	for range 2 * limits.LogBurstBytes / line {
		s.say(levelInfo, text)
	}
	if n := b.Len(); n > limits.LogBurstBytes || n < limits.LogBurstBytes*8/10 {
		t.Errorf("%d bytes logged", n)
	}
	b.Reset()
	// A second later there is room for what a second allows.
	now = now.Add(time.Second)
	for range 2 * limits.LogBytesPerSecond / line {
		s.say(levelInfo, text)
	}
	first, rest, _ := strings.Cut(b.String(), "\n")
	if !strings.HasPrefix(first, "warn  mentat: ") || !strings.Contains(first, "log lines of the agent were left out") {
		t.Errorf("the first line is %.100q", first)
	}
	if n := len(rest); n > limits.LogBytesPerSecond || n < limits.LogBytesPerSecond*8/10 {
		t.Errorf("%d bytes logged", n)
	}
	// What was left out last is told at the end of the run.
	b.Reset()
	l.lull()
	if !strings.Contains(b.String(), "were left out") {
		t.Errorf("logged %q", b.String())
	}
	// The host's own lines are never left out.
	b.Reset()
	l.log(levelError, fromHost, "important")
	if b.String() != "error mentat: important\n" {
		t.Errorf("logged %q", b.String())
	}
}

func TestSmallEventsCountWithTheirFrame(t *testing.T) {
	flood := agent(`
    (local.set $h (call $start_stream (i32.const 0) (i32.const 1)))
    (loop $again
      (br_if $again (i32.eq (local.tee $n (call $write_stream (local.get $h) (i32.const 0) (i32.const 1))) (i32.const 1))))
    (i32.sub (i32.const 0) (local.get $n))`, `(data (i32.const 0) "x")`)
	measures := agent(`
    (loop $again
      (br_if $again (i32.eqz (local.tee $n (call $record_metric (i32.const 0) (i32.const 1) (i32.const 0) (f64.const 1) (i32.const 0) (i32.const 0))))))
    (i32.sub (i32.const 0) (local.get $n))`, `(data (i32.const 0) "x")`)
	const limit = 10_000
	for name, text := range map[string]string{"chunks": flood, "metrics": measures} {
		o := setup{wat: text, edit: func(d *hostdoc.Document) {
			d.Framing = hostdoc.FramingNDJSON
			d.Limits.OutputBytes = limit
		}}.run(t).wants(t, -codeLimit, "")
		if n := len(o.stdout); n > 2*limit || n < limit/2 {
			t.Errorf("%s: %d bytes of output", name, n)
		}
	}
}

// FuzzMutter: however stderr comes, it becomes the same lines, none too long.
func FuzzMutter(f *testing.F) {
	f.Add([]byte("one\ntwo\n"), uint8(3))
	f.Add([]byte("\n\n\r\n"), uint8(1))
	f.Add(bytes.Repeat([]byte("x"), 70_000), uint8(200))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		run := func(step int) []string {
			var b bytes.Buffer
			s := &session{log: newLogger(&b, &hostdoc.Document{LogFormat: "json"}), out: newOut(output.NewRaw(discard{}), 0)}
			for rest := data; len(rest) > 0; {
				n := min(step, len(rest))
				s.mutter(rest[:n])
				rest = rest[n:]
			}
			if len(s.stderr) > 0 {
				s.endLine()
			}
			var texts []string
			for _, line := range logged(t, b.String()) {
				if len(line.Message) > limits.LogLineBytes*3 || line.Source != fromAgent {
					t.Errorf("%+v", line)
				}
				texts = append(texts, line.Message)
			}
			return texts
		}
		whole, parts := run(max(len(data), 1)), run(int(step)*97+1)
		if strings.Join(whole, "\n") != strings.Join(parts, "\n") {
			t.Errorf("%q differs from %q", whole, parts)
		}
	})
}
