package host

import (
	"errors"
	"io"
	"syscall"

	"github.com/mentatlab/mentat/host/output"
)

var errOutputLimit = errors.New("the run's output limit is reached")

// out passes the run's output on and counts it.
type out struct {
	sink output.Sink
	// observer is the sink, if it has a place for log lines and metrics.
	observer output.Observer
	left     int64
	// overhead is what an event counts beside its bytes.
	overhead int64
}

// eventOverhead is about what a framing writes around an event's bytes. Without
// it many small events would be many times the limit.
const eventOverhead = 64

func newOut(sink output.Sink, limit int64) *out {
	o := &out{sink: sink, left: limit}
	if observer, ok := sink.(output.Observer); ok {
		o.observer, o.overhead = observer, eventOverhead
	}
	return o
}

// take counts an event of n bytes; false says that it is one too much.
func (o *out) take(n int) bool {
	if int64(n) > o.left-o.overhead {
		return false
	}
	o.left -= int64(n) + o.overhead
	return true
}

// write passes p on whole or not at all, as far as the limit goes.
func (o *out) write(p []byte) error {
	if !o.take(len(p)) {
		return errOutputLimit
	}
	return o.sink.Output(p)
}

// readerGone tells a reader that went away from an output that failed.
func readerGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, output.ErrGone)
}
