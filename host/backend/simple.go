package backend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Strict reads a head or arguments into v and refuses what v does not have.
func Strict(data json.RawMessage, v any) *Refusal {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &Refusal{Code: Invalid, Reason: "the head does not fit the operation: " + err.Error()}
	}
	return nil
}

// NoArgs refuses the arguments of a capability that has none.
func NoArgs(g Grant) *Refusal {
	if len(g.Args) == 0 || Strict(g.Args, &struct{}{}) == nil {
		return nil
	}
	return &Refusal{Code: Invalid, Reason: g.Capability.Kind + " capabilities take no arguments", Hint: "ask for a narrower capability instead"}
}

// NoOperation refuses an operation that is none of those there are.
func NoOperation(op string, there ...string) *Refusal {
	return &Refusal{Code: Invalid, Reason: fmt.Sprintf("unknown operation %q", op), Hint: "there are: " + strings.Join(there, ", ")}
}

// Ready is an answer that needs no work.
func Ready(head json.RawMessage, body string) Answer {
	return ready{head, strings.NewReader(body)}
}

type ready struct {
	head json.RawMessage
	io.Reader
}

func (r ready) Head() (json.RawMessage, *Refusal) { return r.head, nil }

func (ready) Close() error { return nil }
