package serve

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// bodies bounds what requests' bodies take: each one, and all that are held.
type bodies struct {
	each, all int64
	held      atomic.Int64
}

// body is one request's body, read whole: a client that sends slowly holds no
// instance, and one that leaves is noticed only after its last byte.
type body struct {
	data  []byte
	of    *bodies
	taken int64
}

// firstPiece is what is made room for before anything was sent: what a client
// announces costs it nothing.
const firstPiece = 64 * limits.KiB

// read reads a request's body, whose time runs already. The caller drops it.
func (b *bodies) read(a *answer, r *http.Request) (*body, error) {
	in := &body{of: b}
	if r.ContentLength == 0 {
		return in, nil
	}
	if r.ContentLength > b.each {
		return in, b.tooLarge()
	}
	if err := in.fill(r); err != nil {
		return in, err
	}
	// Else its time would end the connection while the agent runs.
	if err := a.control.SetReadDeadline(time.Time{}); err != nil {
		return in, fault.Wrap(err, fault.Internal, "", "cannot go on with the connection")
	}
	return in, nil
}

func (in *body) fill(r *http.Request) error {
	size := int64(firstPiece)
	if r.ContentLength > 0 {
		size = min(size, r.ContentLength+1) // one more, so that the end is seen
	}
	for {
		if len(in.data) == cap(in.data) {
			if err := in.grow(min(size, in.of.each+1)); err != nil {
				return err
			}
			size *= 2
		}
		n, err := r.Body.Read(in.data[len(in.data):cap(in.data)])
		in.data = in.data[:len(in.data)+n]
		switch {
		case int64(len(in.data)) > in.of.each:
			return in.of.tooLarge()
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fault.New(fault.Deadline, "", "the request's body did not arrive within %v", limits.ServeBodyTime)
		case err != nil:
			return fault.Wrap(err, fault.Usage, "", "cannot read the request's body")
		}
	}
}

func (in *body) grow(size int64) error {
	if in.of.held.Add(size-in.taken) > in.of.all {
		in.of.held.Add(in.taken - size)
		return fault.New(fault.Unavailable, "", "the bodies of other requests fill the memory that is set aside for them").WithHint("try again later")
	}
	in.taken = size
	in.data = append(make([]byte, 0, size), in.data...)
	return nil
}

// drop gives the memory back.
func (in *body) drop() {
	in.of.held.Add(-in.taken)
	in.taken, in.data = 0, nil
}

func (b *bodies) tooLarge() error {
	return fault.New(fault.ResourceLimit, "", "the request's body is over %d bytes", b.each)
}
