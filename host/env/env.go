package env

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/mentatlab/mentat/host/backend"
)

// Backend serves env:NAME.
type Backend struct{ values map[string]string }

// New makes a backend of variables as NAME=VALUE.
func New(env []string) *Backend {
	b := &Backend{map[string]string{}}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		b.values[name] = value
	}
	return b
}

// Open gives access to the variable that the grant names.
func (b *Backend) Open(_ context.Context, _ string, g backend.Grant) (backend.Capability, *backend.Refusal) {
	if refused := backend.NoArgs(g); refused != nil {
		return nil, refused
	}
	value, ok := b.values[g.Capability.Name]
	if !ok {
		return nil, &backend.Refusal{Code: backend.NotFound, Reason: "the variable is granted, but it has no value here", Hint: "whoever runs the agent sets it"}
	}
	return variable(value), nil
}

// Done drops nothing.
func (*Backend) Done(string) {}

// Close closes nothing.
func (*Backend) Close() error { return nil }

type variable string

// Invoke serves the operation get.
func (v variable) Invoke(_ context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	if op != "get" {
		return nil, backend.NoOperation(op, "get")
	}
	if refused := backend.Strict(head, &struct{}{}); refused != nil {
		return nil, refused
	}
	if len(body) > 0 {
		return nil, &backend.Refusal{Code: backend.Invalid, Reason: "the operation get takes no body"}
	}
	return backend.Ready(nil, string(v)), nil
}
