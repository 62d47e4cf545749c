package output

// Sink receives what one run emits. Calls come from one goroutine at a time; an
// error means that nobody reads any more, and the run ends.
type Sink interface {
	// Output appends to the run's output.
	Output(p []byte) error
	// StreamStart opens a stream, StreamChunk appends to it, with numbers from 0,
	// StreamEnd ends it: status 0 is complete. Several may be open at once.
	StreamStart(id string) error
	StreamChunk(id string, seq int64, p []byte) error
	StreamEnd(id string, status int32) error
	// Error is the guest's own message (set_error).
	Error(code int32, message string) error
}
