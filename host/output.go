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
	left int64
}

// write passes p on whole or not at all, as far as the limit goes.
func (o *out) write(p []byte) error {
	if int64(len(p)) > o.left {
		return errOutputLimit
	}
	o.left -= int64(len(p))
	return o.sink.Output(p)
}

// readerGone tells a reader that went away from an output that failed.
func readerGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, output.ErrGone)
}
