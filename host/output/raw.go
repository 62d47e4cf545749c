package output

import "io"

// Raw writes the bytes of output and streams in the order in which they come,
// as a pipe expects them, and nothing else.
type Raw struct{ w io.Writer }

// NewRaw makes a sink that writes to w.
func NewRaw(w io.Writer) *Raw { return &Raw{w} }

// Output writes p.
func (r *Raw) Output(p []byte) error {
	_, err := r.w.Write(p)
	return err
}

// StreamStart writes nothing.
func (r *Raw) StreamStart(string) error { return nil }

// StreamChunk writes p.
func (r *Raw) StreamChunk(_ string, _ int64, p []byte) error { return r.Output(p) }

// StreamEnd writes nothing.
func (r *Raw) StreamEnd(string, int32) error { return nil }

// Error writes nothing: the host's log has the message.
func (r *Raw) Error(int32, string) error { return nil }
