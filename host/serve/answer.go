package serve

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/limits"
)

// answer is a response whose reader must not stall: each piece has its time.
type answer struct {
	http.ResponseWriter
	control *http.ResponseController
	code    int
	// broken is a failure to write: the connection is of no use any more.
	broken error

	mu sync.Mutex
	// writing is set while a piece is on its way, cut while none may be.
	writing, cut bool
}

func newAnswer(w http.ResponseWriter) *answer {
	return &answer{ResponseWriter: w, control: http.NewResponseController(w)}
}

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(code int) {
	if a.code != 0 {
		return
	}
	a.code = code
	a.ResponseWriter.WriteHeader(code)
}

// Write implements [http.ResponseWriter]: it blocks while the reader is slow.
func (a *answer) Write(p []byte) (int, error) {
	const piece = 64 * limits.KiB
	if a.code == 0 {
		a.WriteHeader(http.StatusOK)
	}
	written := 0
	for len(p) > 0 {
		n := 0
		err := a.timed(func() (err error) {
			n, err = a.ResponseWriter.Write(p[:min(len(p), piece)])
			return err
		})
		written, p = written+n, p[n:]
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// flush sends what was written.
func (a *answer) flush() error { return a.timed(a.control.Flush) }

// timed gives one operation its time.
func (a *answer) timed(operation func() error) error {
	a.mu.Lock()
	switch {
	case a.broken != nil:
		a.mu.Unlock()
		return a.broken
	case a.cut:
		a.mu.Unlock()
		return output.ErrGone
	}
	err := a.control.SetWriteDeadline(time.Now().Add(limits.ServeStall))
	a.writing = err == nil
	a.mu.Unlock()
	if err == nil {
		err = operation()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writing = false
	if err != nil {
		a.broken = fmt.Errorf("%w: %w", output.ErrGone, err)
	}
	return a.broken
}

// interrupt ends a piece on its way, which breaks the connection, and lets no
// other pass until resume.
func (a *answer) interrupt() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut = true
	if a.writing {
		_ = a.control.SetWriteDeadline(time.Unix(1, 0)) // without it the piece has its own time
	}
}

func (a *answer) isCut() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cut
}

func (a *answer) resume() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut = false
}
