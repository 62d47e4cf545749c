package host

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Log levels, numbered as the ABI numbers them.
const (
	levelTrace = iota
	levelDebug
	levelInfo
	levelWarn
	levelError
)

var levelNames = [...]string{"trace", "debug", "info", "warn", "error"}

// logger writes one line per message to stderr: text for people or JSON.
type logger struct {
	w                    io.Writer
	json                 bool
	agent, instance, run string

	now func() time.Time

	shared *sharedLog // of the logs of all runs
}

// sharedLog has one place to write to and one measure of what guests may log: so
// much at once, and in the long run so much a second. More is left out, and told.
type sharedLog struct {
	mu      sync.Mutex // guards w and all of this
	budget  float64
	counted time.Time // when budget was what it is
	dropped int
}

// Sources of log lines.
const (
	fromHost  = "host"
	fromAgent = "agent"
)

type logLine struct {
	Time     time.Time        `json:"time"`
	Level    string           `json:"level"`
	Source   string           `json:"source"`
	Agent    string           `json:"agent,omitempty"`
	Instance string           `json:"instance,omitempty"`
	Run      string           `json:"run,omitempty"`
	Message  string           `json:"msg"`
	Exports  map[string]int64 `json:"exports,omitempty"`
	Metric   *metricLine      `json:"metric,omitempty"`
}

type metricLine struct {
	Name       string            `json:"name"`
	Kind       string            `json:"kind"`
	Value      float64           `json:"value"`
	Count      uint64            `json:"count"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

func newLogger(w io.Writer, doc *hostdoc.Document) *logger {
	if w == nil {
		w = io.Discard
	}
	return &logger{
		w: w, json: doc.LogFormat != "text", agent: doc.Agent.ID, instance: doc.Instance,
		now: time.Now, shared: &sharedLog{budget: limits.LogBurstBytes},
	}
}

// Log writes lines of the host's own into a document's log, for who runs a
// [Program].
type Log struct{ l *logger }

// NewLog makes a log that writes to w, in the document's format.
func NewLog(w io.Writer, doc *hostdoc.Document) Log { return Log{newLogger(w, doc)} }

// Info writes a line that says how things go.
func (l Log) Info(line string) { l.l.log(levelInfo, fromHost, line) }

// Error writes a line that says what failed.
func (l Log) Error(line string) { l.l.log(levelError, fromHost, line) }

// of is the log of one run.
func (l *logger) of(run string) *logger {
	one := *l
	one.run = run
	return &one
}

// exit logs how a run ended, if it did not end well.
func (l *logger) exit(e *end) hostdoc.Exit {
	exit := hostdoc.Exit{
		Version:  hostdoc.Version,
		Status:   e.status,
		Reason:   string(e.reason),
		Message:  fault.OneLine(e.message),
		Function: fault.OneLine(e.function),
	}
	if exit.Status != 0 && exit.Message != "" {
		l.log(levelError, fromHost, exit.Message)
	}
	return exit
}

// admits says whether a guest may log a line of n bytes.
func (l *logger) admits(n int) bool {
	n = min(n, limits.LogLineBytes) + lineOverhead
	s := l.shared
	s.mu.Lock()
	now := l.now()
	if !s.counted.IsZero() {
		s.budget = min(s.budget+now.Sub(s.counted).Seconds()*limits.LogBytesPerSecond, limits.LogBurstBytes)
	}
	s.counted = now
	if s.budget < float64(n) {
		s.dropped++
		s.mu.Unlock()
		return false
	}
	s.budget -= float64(n)
	s.mu.Unlock()
	l.lull()
	return true
}

// lineOverhead is about what a line has beside its text.
const lineOverhead = 128

// lull tells of lines that were left out, once there is room or a run ends.
func (l *logger) lull() {
	l.shared.mu.Lock()
	n := l.shared.dropped
	l.shared.dropped = 0
	l.shared.mu.Unlock()
	if n > 0 {
		l.log(levelWarn, fromHost, fmt.Sprintf("%d log lines of the agent were left out: it logs faster than %d bytes a second", n, limits.LogBytesPerSecond))
	}
}

func (l *logger) log(level int, source, message string) {
	l.write(logLine{Level: levelNames[level], Source: source, Message: message})
}

// exports tells the module's metadata. People at a terminal did not ask for it.
func (l *logger) exports(globals map[string]int64) {
	if l.json && len(globals) > 0 {
		l.write(logLine{Level: levelNames[levelDebug], Source: fromHost, Message: "the module's metadata", Exports: globals})
	}
}

// metrics tells what a run measured, a line for each series. People at a terminal
// did not ask for it.
func (l *logger) metrics(families []metrics.Family) {
	if !l.json {
		return
	}
	for _, f := range families {
		for _, s := range f.Series {
			m := &metricLine{Name: f.Name, Kind: f.Kind.String(), Value: s.Value, Count: s.Count}
			for _, a := range s.Attributes {
				if m.Attributes == nil {
					m.Attributes = map[string]string{}
				}
				m.Attributes[a.Key] = a.Value
			}
			l.write(logLine{Level: levelNames[levelInfo], Source: fromAgent, Message: "a metric of the run", Metric: m})
		}
	}
}

func (l *logger) write(line logLine) {
	line.Message = capped(strings.ToValidUTF8(line.Message, "\uFFFD"))
	line.Time = l.now().UTC().Truncate(time.Millisecond)
	var b bytes.Buffer
	if l.json {
		line.Agent, line.Instance, line.Run = l.agent, l.instance, l.run
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		// The line holds nothing that JSON cannot say.
		_ = enc.Encode(line)
	} else {
		who := "mentat"
		if line.Source == fromAgent {
			who = l.agent
		}
		fmt.Fprintf(&b, "%-5s %s: %s\n", line.Level, escape(who), escape(line.Message))
	}
	l.raw(b.Bytes())
}

// raw writes bytes as they are.
func (l *logger) raw(p []byte) {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	// When stderr is gone there is nobody left to tell.
	_, _ = l.w.Write(p)
}

// capped cuts a line that is too long and says so.
func capped(s string) string {
	if len(s) <= limits.LogLineBytes {
		return s
	}
	cut := limits.LogLineBytes
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return fmt.Sprintf("%s … (%d bytes more)", s[:cut], len(s)-cut)
}

// escape makes control characters visible, so that a guest can neither forge a
// line nor drive a terminal.
func escape(s string) string {
	control := func(r rune) bool {
		return r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == '\u2028' || r == '\u2029' ||
			(r >= '\u202a' && r <= '\u202e') || (r >= '\u2066' && r <= '\u2069')
	}
	if strings.IndexFunc(s, control) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case control(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
