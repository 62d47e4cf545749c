package agenttest

import (
	"encoding/json"
	"sync"
	"testing"

	"github.com/mentatlab/sdk-go/agent"
	"github.com/mentatlab/sdk-go/internal/mentat"
)

// Option changes how [Run] runs.
type Option func(*host)

// WithConfig gives the agent a setting, as `config:` in the manifest does.
func WithConfig(key, value string) Option {
	return func(h *host) { h.config[key] = value }
}

// Line is one line that the agent logged.
type Line struct {
	Level   agent.Level
	Message string
}

// Result is how a run ended.
type Result struct {
	// Raw is the output as it would be written.
	Raw []byte
	// Err is what Process returned, or why its output could not be written.
	Err error
	// Logs are the lines logged.
	Logs []Line
	t    testing.TB
}

// one keeps runs apart: the host is the process's.
var one sync.Mutex

// Run runs a on one input.
func Run(t testing.TB, a agent.Agent, input string, options ...Option) Result {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	h := &host{config: map[string]string{}}
	for _, option := range options {
		option(h)
	}
	before := mentat.Use(h)
	defer mentat.Use(before)

	out, err := a.Process(agent.NewInput([]byte(input)))
	r := Result{Err: err, t: t}
	if err == nil && out != nil {
		r.Raw, r.Err = out.Encode()
	}
	r.Logs = h.logs
	return r
}

// Decode reads the output into v; the test fails if it does not fit.
func (r Result) Decode(v any) {
	r.t.Helper()
	if r.Err != nil {
		r.t.Fatalf("the agent failed: %v", r.Err)
	}
	if err := json.Unmarshal(r.Raw, v); err != nil {
		r.t.Fatalf("the output does not fit: %v: %s", err, r.Raw)
	}
}

// String is a string field of the output; the test fails if there is none.
func (r Result) String(name string) string {
	r.t.Helper()
	return field[string](r, name)
}

// Number is a number field of the output; the test fails if there is none.
func (r Result) Number(name string) float64 {
	r.t.Helper()
	return field[float64](r, name)
}

func field[T any](r Result, name string) T {
	r.t.Helper()
	var fields map[string]any
	r.Decode(&fields)
	v, ok := fields[name].(T)
	if !ok {
		r.t.Fatalf("output field %q is %T (%v), not %T", name, fields[name], fields[name], v)
	}
	return v
}

type host struct {
	config map[string]string
	logs   []Line
}

func (h *host) ReadInput() ([]byte, error) { return nil, nil }
func (h *host) WriteOutput([]byte) error   { return nil }
func (h *host) SetError(int32, string)     {}

func (h *host) Log(level int32, message string) {
	h.logs = append(h.logs, Line{agent.Level(level), message})
}

func (h *host) Config(key string) (string, error) {
	if v, ok := h.config[key]; ok {
		return v, nil
	}
	return "", &mentat.Failure{Code: mentat.NotFound}
}
