package display

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/mentatlab/mentat/internal/fault"
)

// Progress shows what a command is busy with, on stderr. Its zero value shows
// nothing. It may be used from several goroutines.
type Progress struct {
	w    io.Writer
	live bool

	mu    sync.Mutex
	dirty bool      // a live line is on the screen; guarded by mu
	drawn time.Time // when it was last drawn; guarded by mu
	open  map[string]transfer
	order []string
}

type transfer struct{ done, total int64 }

// redraw bounds how often the live line changes.
const redraw = 80 * time.Millisecond

// IsTerminal tells whether a stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// NewProgress returns progress in a mode: on a terminal one line that is
// redrawn, in plain mode one line for each thing that was finished.
func NewProgress(w io.Writer, mode ProgressMode) *Progress {
	switch {
	case mode == ProgressPlain:
		return &Progress{w: w}
	case mode == ProgressAuto && IsTerminal(w):
		return &Progress{w: w, live: true}
	}
	return &Progress{}
}

// Step says what is being done; the returned function says that it is done.
func (p *Progress) Step(format string, args ...any) (done func()) {
	if p.w == nil {
		return func() {}
	}
	what := fault.OneLine(fmt.Sprintf(format, args...))
	begin := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		p.draw(what + " …")
	} else {
		fmt.Fprintln(p.w, what)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.live {
			p.erase()
		} else if d := time.Since(begin); d >= time.Second {
			fmt.Fprintf(p.w, "%s: %s\n", what, Took(d))
		}
	}
}

// Transfer says how much of a blob was moved; total is 0 when it is unknown.
func (p *Progress) Transfer(op, name string, done, total int64) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.live {
		if total > 0 && done >= total {
			fmt.Fprintf(p.w, "%s %s, %s\n", op, fault.OneLine(name), Size(total))
		}
		return
	}
	if p.open == nil {
		p.open = make(map[string]transfer)
	}
	if _, known := p.open[name]; !known {
		p.order = append(p.order, name)
	}
	p.open[name] = transfer{done, total}
	if now := time.Now(); now.Sub(p.drawn) >= redraw {
		p.drawn = now
		var sum transfer
		for _, t := range p.open {
			sum.done += t.done
			sum.total += t.total
		}
		p.draw(fmt.Sprintf("%s %s of %s (%s)", op, Size(sum.done), Size(sum.total), Count(len(p.order), "blob", "blobs")))
	}
}

// Close takes the live line off the screen.
func (p *Progress) Close() {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.open, p.order = nil, nil
}

// draw and erase are called with mu held.
func (p *Progress) draw(line string) {
	fmt.Fprintf(p.w, "\r\x1b[K%s", line)
	p.dirty = true
}

func (p *Progress) erase() {
	if p.dirty {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.dirty = false
	}
}
