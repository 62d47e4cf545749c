package extension

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Protocol is what an extension says in its first message.
const Protocol = "extension/1"

// hello is an extension's first message.
type hello struct {
	Mentat string `json:"mentat"`
	Name   string `json:"name"`
}

// request is a message to an extension: a call, the end of one, or how many
// bytes more of an answer were read.
type request struct {
	Call   int64          `json:"call,omitzero"`
	Op     string         `json:"op,omitzero"`
	Head   jsontext.Value `json:"head,omitzero"`
	Body   []byte         `json:"body,omitempty"`
	Cancel int64          `json:"cancel,omitzero"`
	Read   int64          `json:"read,omitzero"`
	Bytes  int64          `json:"bytes,omitzero"`
}

// reply is a message of an extension: exactly one of its parts.
type reply struct {
	Call  int64          `json:"call"`
	Head  jsontext.Value `json:"head,omitzero"`
	Body  []byte         `json:"body,omitzero"`
	End   bool           `json:"end,omitzero"`
	Error *failure       `json:"error,omitzero"`
}

// failure is why a call failed.
type failure struct {
	Code         string `json:"code"`
	Reason       string `json:"reason"`
	RetryAfterMS int64  `json:"retry_after_ms,omitzero"`
}

// codes are the failures that an extension may tell of.
var codes = map[string]backend.Code{
	"INVALID": backend.Invalid, "DENIED": backend.Denied, "NOT_FOUND": backend.NotFound, "LIMIT": backend.Limit,
	"DEADLINE": backend.Deadline, "UNAVAILABLE": backend.Unavailable, "UNSUPPORTED": backend.Unsupported, "CONFLICT": backend.Conflict,
}

func (f *failure) refusal(name string) *backend.Refusal {
	const most = 500
	reason := []rune(fault.OneLine(f.Reason))
	return &backend.Refusal{
		Code: codes[f.Code], Rule: "extension " + name, Reason: string(reason[:min(len(reason), most)]),
		RetryAfter: time.Duration(min(max(f.RetryAfterMS, 0), int64(time.Hour/time.Millisecond))) * time.Millisecond,
	}
}

// errProtocol is what breaks the protocol.
var errProtocol = errors.New("it does not speak the protocol")

// lines reads messages, one a line.
type lines struct{ s *bufio.Scanner }

func newLines(r io.Reader) *lines {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4<<10), limits.ExtensionLineBytes)
	return &lines{s}
}

// next reads a message strictly. The error is [io.EOF] at the end.
func (l *lines) next(to any) error {
	if !l.s.Scan() {
		if err := l.s.Err(); errors.Is(err, bufio.ErrTooLong) {
			return fmt.Errorf("%w: a message is over %d bytes", errProtocol, limits.ExtensionLineBytes)
		}
		return io.EOF
	}
	if err := jsonv2.Unmarshal(l.s.Bytes(), to, jsonv2.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("%w: a message is not as it must be", errProtocol)
	}
	return nil
}

// check judges a reply's form.
func (r *reply) check() error {
	parts := 0
	for _, has := range []bool{len(r.Head) > 0, r.Body != nil, r.End, r.Error != nil} {
		if has {
			parts++
		}
	}
	switch {
	case r.Call <= 0 || parts != 1:
		return fmt.Errorf("%w: a message must name its call and hold one of head, body, end and error", errProtocol)
	case len(r.Head) > 0 && (r.Head.Kind() != '{' || len(r.Head) > limits.ResponseHeadBytes):
		return fmt.Errorf("%w: a head must be an object of at most %d bytes", errProtocol, limits.ResponseHeadBytes)
	case r.Error != nil && codes[r.Error.Code] == 0:
		return fmt.Errorf("%w: an error's code is unknown", errProtocol)
	}
	return nil
}

// encode writes a message as a line.
func encode(v any) ([]byte, error) {
	data, err := jsonv2.Marshal(v)
	return append(data, '\n'), err
}

// validHead tells whether a guest's head can be passed on: an object in which no
// key is repeated.
func validHead(head json.RawMessage) bool {
	v := jsontext.Value(head)
	return v.IsValid() && v.Kind() == '{'
}
