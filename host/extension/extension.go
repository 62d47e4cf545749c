package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// Backend serves extension capabilities ([backend.Backend]).
type Backend struct {
	programs map[string]*program
}

// Start starts the programs and waits until each has said hello. log takes the
// lines that they write to their standard error, and may be nil. Errors are
// [fault.Unavailable]; nothing is left running then.
func Start(ctx context.Context, list []hostdoc.Extension, log func(name, line string)) (*Backend, error) {
	b := &Backend{programs: map[string]*program{}}
	for _, e := range list {
		if b.programs[e.Name] != nil {
			return nil, errors.Join(fault.New(fault.Internal, "extension "+e.Name, "is there twice"), b.Close())
		}
		p, err := begin(ctx, e, log)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.programs[e.Name] = p
	}
	return b, nil
}

// Done has nothing to drop: the calls of a run end with it.
func (b *Backend) Done(string) {}

// Close ends the programs: their input ends, and who does not end by that is
// killed.
func (b *Backend) Close() error {
	for _, p := range b.programs {
		p.end()
	}
	for _, p := range b.programs {
		p.await()
	}
	return nil
}

// Open judges a request for an extension.
func (b *Backend) Open(_ context.Context, _ string, g backend.Grant) (backend.Capability, *backend.Refusal) {
	if refusal := backend.NoArgs(g); refusal != nil {
		return nil, refusal
	}
	p := b.programs[g.Capability.Name]
	if g.Capability.Kind != manifest.KindExtension || p == nil {
		return nil, &backend.Refusal{Code: backend.Unsupported, Reason: "this node has no such extension"}
	}
	return opened{p}, nil
}

// opened is one opened extension ([backend.Capability]).
type opened struct{ p *program }

// Invoke passes a call on.
func (o opened) Invoke(ctx context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	if len(body) > limits.ExtensionRequestBytes {
		return nil, &backend.Refusal{Code: backend.Limit, Rule: "request size", Reason: fmt.Sprintf("the body of a call has at most %d bytes", limits.ExtensionRequestBytes)}
	}
	if len(head) == 0 {
		head = json.RawMessage("{}")
	}
	if !validHead(head) {
		return nil, &backend.Refusal{Code: backend.Invalid, Reason: "the head must be a JSON object with each key once"}
	}
	return o.p.call(ctx, op, slices.Clone(head), body)
}
