package serve

import (
	"net/http"
	"sync"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// sink is where a run's output becomes an answer.
type sink interface {
	output.Sink
	output.Interrupter
	// begin names the run.
	begin(run string)
	// finish completes the answer after the run. No call comes after it, and one
	// that does is refused: a guest that was left behind may still try. False is
	// an answer that must not look complete.
	finish(exit hostdoc.Exit) bool
}

// gate lets one goroutine at a time write, until it is closed.
type gate struct {
	mu     sync.Mutex
	closed bool
	a      *answer
	// begun is told when the first of the run's own goes out.
	begun func()
}

// do writes, as long as the answer is open.
func (g *gate) do(write func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.a.isCut() {
		return output.ErrGone
	}
	return write()
}

// shut waits for a write on its way and lets no other begin.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.a.resume()
}

// Interrupt implements [output.Interrupter].
func (g *gate) Interrupt() { g.a.interrupt() }

// Headers and trailers of our own.
const (
	runHeader    = "Mentat-Run-Id"
	statusHeader = "Mentat-Exit-Status"
	reasonHeader = "Mentat-Reason"
)

// common are the headers of every answer that carries a guest's bytes.
func common(h http.Header, contentType string) {
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	// A browser must neither guess another type nor run what a guest wrote.
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
}
