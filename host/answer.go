package host

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// answerChunk is how much of an answer is fetched before the guest reads it.
const answerChunk = 32 << 10

// answer is what a capability or a medium gives, as it arrives. A goroutine of
// its own fetches it, so that the guest can be ended while it waits and several
// arrive side by side.
type answer struct {
	capability string
	cancel     context.CancelFunc
	pieces     chan piece
	// spare are pieces that the guest has read.
	spare chan []byte

	known int64 // the total size, -1 if it is not known
	stretch
	total int64
	// ended says that nothing more comes, refused why, if that is no proper end.
	ended   bool
	refused *backend.Refusal
}

// piece is some of an answer or, last of all, why there is no more.
type piece struct {
	data    []byte
	refused *backend.Refusal
	end     bool
}

// source fetches an answer: first and then what read returns.
type source struct {
	first func() ([]byte, *backend.Refusal)
	io.ReadCloser
}

// answer starts fetching and opens a handle to what arrives.
func (s *session) answer(ctx context.Context, cancel context.CancelFunc, capability string, known int64, src source) int32 {
	a := &answer{capability: capability, cancel: cancel, known: known, pieces: make(chan piece), spare: make(chan []byte, 2)}
	h := s.open(a)
	if h < 0 {
		cancel()
		_ = src.Close() // nothing was asked of it
		return h
	}
	s.calls.Add(1)
	s.work.Go(func() {
		defer s.calls.Add(-1)
		// The answer is over: what closing says changes nothing.
		defer func() { _ = src.Close() }()
		a.fetch(ctx, src)
	})
	return h
}

func (a *answer) fetch(ctx context.Context, src source) {
	send := func(p piece) bool {
		select {
		case a.pieces <- p:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if src.first != nil {
		data, refused := src.first()
		if !send(piece{data: data, refused: refused, end: refused != nil}) || refused != nil {
			return
		}
	}
	for {
		var buf []byte
		select {
		case buf = <-a.spare:
		default:
			buf = make([]byte, answerChunk)
		}
		n, err := src.Read(buf)
		if n > 0 && !send(piece{data: buf[:n]}) {
			return
		}
		if err != nil {
			send(piece{refused: refusalOf(err), end: true})
			return
		}
	}
}

// refusalOf turns a failed read into what the guest learns; nil is a proper end.
func refusalOf(err error) *backend.Refusal {
	var refused *backend.Refusal
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &refused):
		return refused
	}
	code := backend.Unavailable
	switch fault.ReasonOf(err) {
	case fault.NotFound:
		code = backend.NotFound
	case fault.ResourceLimit:
		code = backend.Limit
	case fault.Canceled:
		code = backend.Canceled
	case fault.Deadline:
		code = backend.Deadline
	case fault.Usage:
		code = backend.Invalid
	}
	return &backend.Refusal{Code: code, Reason: err.Error()}
}

// more waits for the next piece, or returns a code.
func (a *answer) more(s *session) int32 {
	if a.ended {
		return 0
	}
	if a.buf != nil {
		select {
		case a.spare <- a.buf[:cap(a.buf)]:
		default:
		}
		a.buf = nil
	}
	select {
	case p := <-a.pieces:
		a.receive(p)
		return 0
	default:
	}
	select {
	case p := <-a.pieces:
		a.receive(p)
		return 0
	case <-s.draining:
		return s.fail(codeCanceled, detail{Capability: a.capability, Reason: "the run is being ended"})
	case <-s.over: // the guest does not see the code
		return s.fail(codeDeadline, detail{Reason: "the run's time is over"})
	}
}

func (a *answer) receive(p piece) {
	a.buf, a.pos = p.data, 0
	a.total += int64(len(p.data))
	a.ended, a.refused = p.end, p.refused
}

func (a *answer) read(s *session, p []byte) int32 {
	if len(p) == 0 {
		return 0
	}
	for a.rest() == 0 {
		if a.ended {
			return a.over(s)
		}
		if code := a.more(s); code != 0 {
			return code
		}
	}
	return int32(a.take(p))
}

// over is 0 at a proper end, else the code of the failure, however often it is
// asked for.
func (a *answer) over(s *session) int32 {
	if a.refused == nil {
		return 0
	}
	return s.refuse(a.capability, a.refused)
}

func (a *answer) size(s *session) int64 {
	switch {
	case a.known >= 0:
		return a.known
	case a.ended && a.refused == nil:
		return a.total
	}
	return int64(s.fail(codeUnsupported, detail{Capability: a.capability, Reason: "the size of an answer is known at its end only"}))
}

func (a *answer) left() *stretch { return &a.stretch }

func (a *answer) close(*session) { a.cancel() }

// frame is the ABI's frame around a head; the body follows it.
func frame(head json.RawMessage) ([]byte, *backend.Refusal) {
	if len(head) == 0 {
		head = json.RawMessage("{}")
	}
	if len(head) > limits.ResponseHeadBytes {
		return nil, &backend.Refusal{Code: backend.Limit, Reason: "the head of the answer is too long"}
	}
	out := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(head)), uint32(len(head)))
	return append(out, head...), nil
}

// unframe takes a request apart. Without a frame it is one with an empty head.
func unframe(request []byte) (head json.RawMessage, body []byte, problem string) {
	if len(request) == 0 {
		return json.RawMessage("{}"), nil, ""
	}
	if len(request) < 4 {
		return nil, nil, "the request is shorter than the length of its head"
	}
	n := binary.LittleEndian.Uint32(request)
	if rest := uint64(len(request) - 4); uint64(n) > rest {
		return nil, nil, "the request's head is longer than the request"
	}
	if n > limits.RequestHeadBytes {
		return nil, nil, "the request's head is too long"
	}
	head, body = request[4:4+n], request[4+n:]
	if n == 0 {
		return json.RawMessage("{}"), body, ""
	}
	if !isObject(head) {
		return nil, nil, "the request's head is not a JSON object in UTF-8"
	}
	return head, body, ""
}

// maxCount is the most that one call reads or writes, so that the count is a
// positive result.
const maxCount = math.MaxInt32 / 2
