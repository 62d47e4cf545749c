package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// authority is what the document grants and denies, parsed once.
type authority struct {
	set *capability.Set
	// kinds are those of which something is granted.
	kinds []string
}

// newAuthority reads the document's strings, which are the shim's or the
// operator's.
func newAuthority(doc *hostdoc.Document) (*authority, error) {
	set, err := capability.NewSet(doc)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, doc.Instance, "the host document's grants and denials")
	}
	a := &authority{set: set}
	for _, g := range doc.Grants {
		if kind, _, _ := strings.Cut(g.Capability, ":"); !slices.Contains(a.kinds, kind) {
			a.kinds = append(a.kinds, kind)
		}
	}
	return a, nil
}

// judge says whether the grants cover c and by which rule, and which rules in dry
// run would deny it; if they do not, why and what would help.
func (a *authority) judge(c manifest.Capability) (rule string, dryRun []string, refused *backend.Refusal) {
	said := a.set.Request(c)
	if said.Allowed {
		return said.Rule, said.DryRun, nil
	}
	hint := said.Hint
	if hint == "" {
		hint = fmt.Sprintf("the rule %q decided: `mentatctl policy explain` tells more", said.Rule)
	}
	return "", nil, &backend.Refusal{Code: backend.Denied, Reason: said.Reason, Rule: said.Rule, Hint: hint}
}

// opened is a capability that the guest has opened.
type opened struct {
	noRead
	name, rule string
	serve      backend.Capability
}

func (*opened) close(*session) {}

func requestCapability(c *call) bool {
	name, ok := c.bytes(0)
	if !ok {
		return false
	}
	args, ok := c.bytes(2)
	if !ok {
		return false
	}
	s := c.s
	// What is longer is no capability; the parser says so, and need not see it all.
	want, err := manifest.ParseCapability(string(name[:min(len(name), limits.CapabilityArgsBytes)]))
	if err != nil {
		return c.fails(codeInvalid, detail{Reason: err.Error()})
	}
	text := want.String()
	switch {
	case len(args) > limits.CapabilityArgsBytes:
		return c.fails(codeLimit, detail{Capability: text, Reason: fmt.Sprintf("the arguments are over %d bytes", limits.CapabilityArgsBytes)})
	case len(args) > 0 && !isObject(args):
		return c.fails(codeInvalid, detail{Capability: text, Reason: "the arguments are not a JSON object in UTF-8"})
	}
	rule, dryRun, refused := s.p.authority.judge(want)
	if refused != nil {
		s.decided(text, "", false, refused.Rule, refused.Reason)
		return c.refuses(text, refused)
	}
	s.counted(text, "", dryRun)
	serve := s.backends[want.Kind]
	if serve == nil {
		s.decided(text, "", true, rule, "")
		return c.fails(codeUnsupported, detail{Capability: text, Reason: "granted, but this host does not serve " + want.Kind + " capabilities", Hint: unservedHint(want.Kind)})
	}
	capability, refused := serve.Open(s.ctx, s.id, backend.Grant{Capability: want, Rule: rule, Args: bytes.Clone(args)})
	s.served[want.Kind] = serve
	if refused != nil {
		s.decided(text, "", false, refused.Rule, refused.Reason)
		return c.refuses(text, refused)
	}
	s.decided(text, "", true, rule, "")
	return c.returns(s.open(&opened{name: text, rule: rule, serve: capability}))
}

func unservedHint(kind string) string {
	if kind == manifest.KindMedia {
		return "media are reached through download_media and upload_media"
	}
	return ""
}

func invokeCapability(c *call) bool {
	op, ok := c.bytes(1)
	if !ok {
		return false
	}
	request, ok := c.bytes(3)
	if !ok {
		return false
	}
	s := c.s
	o, _ := s.handles[c.values[0].I32()].(*opened)
	if o == nil {
		return c.fails(codeBadHandle, detail{Reason: "not an open capability", Hint: "call request_capability first and check its result"})
	}
	if problem := operationProblem(op); problem != "" {
		return c.fails(codeInvalid, detail{Capability: o.name, Reason: problem})
	}
	head, body, problem := unframe(request)
	if problem != "" {
		return c.fails(codeInvalid, detail{Capability: o.name, Reason: problem})
	}
	if problem := s.tooBusy(body); problem != "" {
		return c.fails(codeLimit, detail{Capability: o.name, Reason: problem, Hint: "read or close the answers that are open"})
	}
	return c.returns(s.invoke(o, string(op), bytes.Clone(head), bytes.Clone(body)))
}

// tooBusy says why another call may not begin yet.
func (s *session) tooBusy(body []byte) string {
	switch {
	case len(s.handles) >= limits.Handles:
		return "too many handles are open"
	case s.calls.Load() >= limits.Calls:
		return fmt.Sprintf("%d calls are going on at once", limits.Calls)
	case s.sending.Load()+int64(len(body)) > limits.RequestBytes:
		return fmt.Sprintf("the requests that are going on are over %d bytes together", limits.RequestBytes)
	}
	return ""
}

// invoke starts a call and opens a handle to its answer.
func (s *session) invoke(o *opened, op string, head json.RawMessage, body []byte) int32 {
	ctx, cancel := context.WithCancel(s.ctx)
	got, refused := o.serve.Invoke(ctx, op, head, body)
	if refused != nil {
		cancel()
		s.decided(o.name, op, refused.Code != backend.Denied, refused.Rule, refused.Reason)
		return s.refuse(o.name, refused)
	}
	s.decided(o.name, op, true, o.rule, "")
	n := int64(len(body))
	s.sending.Add(n)
	return s.answer(ctx, cancel, o.name, -1, source{
		first: func() ([]byte, *backend.Refusal) {
			// Who has the head has sent the request.
			defer s.sending.Add(-n)
			head, refused := got.Head()
			if refused != nil {
				if refused.Code == backend.Denied {
					// What was asked for led elsewhere than it said.
					s.decided(o.name, op, false, refused.Rule, refused.Reason)
				}
				return nil, refused
			}
			return frame(head)
		},
		ReadCloser: got,
	})
}

func operationProblem(op []byte) string {
	switch {
	case len(op) == 0 || len(op) > limits.OperationBytes:
		return fmt.Sprintf("an operation's name has 1 to %d bytes", limits.OperationBytes)
	case !utf8.Valid(op) || bytes.ContainsFunc(op, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' }):
		return "an operation's name is printable text without spaces"
	}
	return ""
}

func isObject(data []byte) bool {
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	return len(trimmed) > 0 && trimmed[0] == '{' && utf8.Valid(data) && json.Valid(data)
}

// refuse leaves the detail of a backend's refusal and returns its code.
func (s *session) refuse(capability string, r *backend.Refusal) int32 {
	code := r.Code
	if code >= 0 {
		code = backend.Internal
	}
	return s.fail(int32(code), detail{Capability: capability, Reason: fault.OneLine(r.Reason), Rule: r.Rule, Hint: r.Hint, RetryAfterMS: r.RetryAfter.Milliseconds()})
}

func (c *call) refuses(capability string, r *backend.Refusal) bool {
	return c.returns(c.s.refuse(capability, r))
}
