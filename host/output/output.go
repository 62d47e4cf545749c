package output

import "errors"

// ErrGone says that nobody reads the output any more. A sink's error that is
// neither this nor EPIPE nor [io.ErrClosedPipe] is a failure to write.
var ErrGone = errors.New("nobody reads the output any more")

// Aborted is the status of a stream that the guest never ended. A guest's own
// statuses are not negative.
const Aborted = -1

// Sink receives what one run emits. Calls come from one goroutine at a time; an
// error means that nobody reads any more, and the run ends. What is passed is
// valid during the call only.
type Sink interface {
	// Output appends to the run's output.
	Output(p []byte) error
	// StreamStart opens a stream, StreamChunk appends to it, with numbers from 0,
	// StreamEnd ends it: status 0 is complete. Several may be open at once; an id
	// may come again after its end.
	StreamStart(id string) error
	StreamChunk(id string, seq int64, p []byte) error
	StreamEnd(id string, status int32) error
	// Error is the guest's own message (set_error).
	Error(code int32, message string) error
}

// Observer is a [Sink] that has a place for what else the guest says.
type Observer interface {
	// Log takes a line of the guest's; it reports whether the line need not go to
	// the host's log as well.
	Log(level, message string) (taken bool, err error)
	// Metric takes one measurement.
	Metric(m Metric) error
}

// Metric is one measurement.
type Metric struct {
	Name string
	// Kind is counter, gauge or histogram.
	Kind  string
	Value float64
	// Attributes are bounded in number and length.
	Attributes map[string]string
}

// Interrupter is a [Sink] whose calls can be ended early. One that is not holds
// its run up while its reader is slow, beyond the run's deadline too.
type Interrupter interface {
	// Interrupt makes a call in progress, and all that follow, return an error
	// soon. It comes from another goroutine.
	Interrupt()
}
