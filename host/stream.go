package host

import (
	"unicode/utf8"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/limits"
)

// stream is an output stream that the guest has open.
type stream struct {
	noRead
	id  string
	seq int64
}

// noRead is for handles that are not for reading.
type noRead struct{}

func (noRead) read(s *session, _ []byte) int32 {
	return s.fail(codeBadHandle, detail{Reason: "the handle is not one to read from"})
}

func (noRead) size(s *session) int64 {
	return int64(s.fail(codeBadHandle, detail{Reason: "the handle is not one to read from"}))
}

// close ends a stream that the guest did not end.
func (st *stream) close(s *session) {
	// A reader that left needs no end.
	_ = s.endStream(st, output.Aborted)
}

func startStream(c *call) bool {
	id, ok := c.bytes(0)
	if !ok {
		return false
	}
	s := c.s
	switch {
	case len(id) == 0 || !utf8.Valid(id):
		return c.fails(codeInvalid, detail{Reason: "a stream's id is UTF-8 text and not empty"})
	case len(id) > limits.StreamIDBytes:
		return c.fails(codeLimit, detail{Reason: "the stream's id is too long"})
	case s.streams[string(id)]:
		return c.fails(codeConflict, detail{Reason: "a stream with that id is open", Hint: "end it first, or choose another id"})
	}
	st := &stream{id: string(id)}
	h := s.open(st)
	switch {
	case h < 0:
		return c.returns(h)
	case s.out.overhead > 0 && !s.out.take(len(id)):
		delete(s.handles, h)
		return c.fails(codeLimit, detail{Reason: errOutputLimit.Error()})
	}
	if err := s.out.sink.StreamStart(st.id); err != nil {
		delete(s.handles, h)
		return c.lostReader(err)
	}
	if s.streams == nil {
		s.streams = map[string]bool{}
	}
	s.streams[st.id] = true
	return c.returns(h)
}

func writeStream(c *call) bool {
	data, ok := c.bytes(1)
	if !ok {
		return false
	}
	st := c.stream()
	if st == nil {
		return c.returns(codeBadHandle)
	}
	o := c.s.out
	// A count must fit into the result.
	data = data[:min(len(data), maxCount)]
	if int64(len(data)) > o.left {
		return c.fails(codeLimit, detail{Reason: errOutputLimit.Error()})
	}
	taken := 0
	for part := range output.Parts(data, limits.ChunkBytes) {
		if !o.take(len(part)) {
			if taken > 0 {
				break
			}
			return c.fails(codeLimit, detail{Reason: errOutputLimit.Error()})
		}
		if err := o.sink.StreamChunk(st.id, st.seq, part); err != nil {
			return c.lostReader(err)
		}
		st.seq++
		taken += len(part)
	}
	return c.returns(int32(taken))
}

func endStream(c *call) bool {
	st := c.stream()
	if st == nil {
		return c.returns(codeBadHandle)
	}
	status := c.values[1].I32()
	if status < 0 {
		return c.fails(codeInvalid, detail{Reason: "a stream's status is 0 or more"})
	}
	delete(c.s.handles, c.values[0].I32())
	if err := c.s.endStream(st, status); err != nil {
		return c.lostReader(err)
	}
	return c.returns(0)
}

func (s *session) endStream(st *stream, status int32) error {
	delete(s.streams, st.id)
	if s.lost {
		return nil
	}
	return s.out.sink.StreamEnd(st.id, status)
}

// stream finds the open stream in parameter 0; nil has left its code.
func (c *call) stream() *stream {
	r := c.s.handle(c.values[0].I32())
	if r == nil {
		return nil
	}
	st, ok := r.(*stream)
	if !ok {
		c.s.fail(codeBadHandle, detail{Reason: "the handle is not a stream"})
	}
	return st
}

// lostReader tells a guest that its reader left; what cannot be written for
// another reason ends the run.
func (c *call) lostReader(err error) bool {
	if !readerGone(err) {
		return c.s.trap(outputEnd(err))
	}
	c.s.lost = true
	return c.fails(codeCanceled, detail{Reason: "nobody reads the run's output any more"})
}
