package host

import (
	"errors"
	"io"
	"syscall"
)

var errOutputLimit = errors.New("the run's output limit is reached")

// output is where the run's output goes: straight to stdout, counted.
type output struct {
	w    io.Writer
	left int64
}

// write passes p on whole or not at all, as far as the limit goes.
func (o *output) write(p []byte) error {
	if int64(len(p)) > o.left {
		return errOutputLimit
	}
	n, err := o.w.Write(p)
	o.left -= int64(n)
	return err
}

// readerGone tells a reader that went away from an output that failed.
func readerGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}
