package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// event is one line of a run's output.
type event map[string]any

func (e event) kind() string {
	kind, _ := e["event"].(string)
	return kind
}

// result is what a guest says of a call: a log line of the lowest level, '#' and
// the result in hexadecimal, if there is one.
func (e event) result() (string, bool) {
	text, _ := e["message"].(string)
	if e.kind() != "log" || e["level"] != "trace" || !strings.HasPrefix(text, "#") {
		return "", false
	}
	return text[1:], true
}

// check holds the output of a run against the case.
func (c *Case) check(out []byte, status int) error {
	var results []string
	var events []event
	dec := json.NewDecoder(bytes.NewReader(out))
	dec.UseNumber()
	for {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("the output is not events: %w", err)
		}
		if r, ok := e.result(); ok {
			results = append(results, r)
			continue
		}
		events = append(events, e)
	}
	if len(events) == 0 || events[len(events)-1].kind() != "exit" {
		return errors.New("the last event is not the exit")
	}
	last := events[len(events)-1]
	// What the guest was told comes first: the rest follows from it.
	if err := c.checkResults(results); err != nil {
		return fmt.Errorf("%w (exit %v)", err, last)
	}
	if err := c.checkEvents(events[:len(events)-1]); err != nil {
		return fmt.Errorf("%w (exit %v)", err, last)
	}
	return c.checkExit(last, status)
}

func (c *Case) checkResults(results []string) error {
	var calls []step
	for _, s := range c.steps {
		if s.event == nil {
			calls = append(calls, s)
		}
	}
	for i, s := range calls {
		switch {
		case s.want.kind == wantTrap && i == len(results) && i == len(calls)-1:
			return nil
		case i >= len(results):
			return fmt.Errorf("line %d: %s never returned", s.line, Functions[s.call])
		}
		if err := s.judge(results[i]); err != nil {
			return fmt.Errorf("line %d: %s: %w", s.line, Functions[s.call], err)
		}
	}
	if len(results) > len(calls) {
		return fmt.Errorf("%d results of %d calls", len(results), len(calls))
	}
	return nil
}

// judge judges the result of a call.
func (s *step) judge(result string) error {
	if Functions[s.call].Result == "" {
		if result != "" {
			return fmt.Errorf("a result %q of a function that has none", result)
		}
		return nil
	}
	bits, err := strconv.ParseUint(result, 16, 64)
	if err != nil || len(result) != 16 {
		return fmt.Errorf("the guest says %q, not 16 hexadecimal digits", result)
	}
	switch got := int64(bits); {
	case s.want.kind == wantTrap:
		return fmt.Errorf("returned %d and did not trap", got)
	case s.want.kind == wantHandle && got < 0:
		return fmt.Errorf("returned %s and no handle", nameOf(got))
	case s.want.kind == wantValue && got != s.want.value:
		return fmt.Errorf("returned %s, not %s", nameOf(got), nameOf(s.want.value))
	}
	return nil
}

func nameOf(n int64) string {
	for name, code := range Codes {
		if n == code {
			return name
		}
	}
	return strconv.FormatInt(n, 10)
}

// expectation is an event that must come, and the line that says so.
type expectation struct {
	line int
	event
	// part is text that the output must hold, in place of an event.
	part string
}

func (x *expectation) met(got event) bool {
	if x.event != nil {
		return reflect.DeepEqual(map[string]any(got), map[string]any(x.event))
	}
	data, _ := got["data"].(string)
	return got.kind() == "output" && strings.Contains(data, x.part)
}

func (x *expectation) String() string {
	if x.event != nil {
		return fmt.Sprint(map[string]any(x.event))
	}
	return fmt.Sprintf("an output with %q", x.part)
}

// checkEvents compares what was emitted with what the case says, in its order.
func (c *Case) checkEvents(events []event) error {
	var expected []expectation
	for _, s := range c.steps {
		switch {
		case s.event != nil:
			expected = append(expected, expectation{line: s.line, event: s.event})
		case s.want.part:
			expected = append(expected, expectation{line: s.line, part: s.want.data})
		case s.want.hasData && s.want.data != "":
			expected = append(expected, expectation{line: s.line, event: outputOf(s.want.data)})
		}
	}
	for i, x := range expected {
		switch {
		case i >= len(events):
			return fmt.Errorf("line %d: nothing more was emitted, expected %v", x.line, &x)
		case !x.met(events[i]):
			return fmt.Errorf("line %d: emitted %v, expected %v", x.line, events[i], &x)
		}
	}
	if len(events) > len(expected) {
		return fmt.Errorf("emitted what nobody expected: %v", events[len(expected)])
	}
	return nil
}

// outputOf is the event of bytes that the guest shows.
func outputOf(data string) event {
	if utf8.ValidString(data) {
		return event{"event": "output", "data": data}
	}
	return event{"event": "output", "data": base64.StdEncoding.EncodeToString([]byte(data)), "encoding": "base64"}
}

func (c *Case) checkExit(last event, status int) error {
	reason, _ := last["reason"].(string)
	message, _ := last["message"].(string)
	if status != c.exit.status || reason != c.exit.reason || !strings.Contains(message, c.exit.message) {
		return fmt.Errorf("ended with status %d, reason %q, message %q; expected %d, %q, %q", status, reason, message, c.exit.status, c.exit.reason, c.exit.message)
	}
	if said, _ := last["status"].(json.Number); string(said) != strconv.Itoa(status) {
		return fmt.Errorf("the exit event says %v, the process %d", last["status"], status)
	}
	return nil
}
