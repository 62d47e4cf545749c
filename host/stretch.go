package host

// stretch is bytes that are there to be read.
type stretch struct {
	buf []byte // buf[pos:] is still to be read
	pos int
}

// rest is how much there is.
func (b *stretch) rest() int { return len(b.buf) - b.pos }

// take copies what fits into p.
func (b *stretch) take(p []byte) int {
	n := copy(p, b.buf[b.pos:])
	b.pos += n
	return n
}

// worthShowing is how much there must be to let the guest read it by itself.
const worthShowing = 256

// show lets the guest read what is left of b by the handle without the host.
func (s *session) show(handle int32, b *stretch) {
	if b.rest() < worthShowing {
		return
	}
	s.run.Window.Show(handle, b.buf[b.pos:])
	s.shown = b
}

// sync learns how much the guest has read by itself. It comes before whatever
// looks at a stretch.
func (s *session) sync() {
	if s.shown == nil {
		return
	}
	s.shown.pos += s.run.Window.Taken()
	s.run.Window.Hide()
	s.shown = nil
}
