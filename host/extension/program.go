package extension

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/queue"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// program is a running extension.
type program struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	queue *queue.Queue
	// idle is how long a call waits for a message.
	idle time.Duration
	// send takes messages to the program.
	send chan []byte
	// over is closed when it answers no more; gone when it has ended.
	over, gone chan struct{}

	mu    sync.Mutex
	last  int64           // guarded by mu
	calls map[int64]*call // guarded by mu
	why   string          // why it is over; guarded by mu
}

// begin starts a program and waits for its hello.
func begin(ctx context.Context, e hostdoc.Extension, log func(name, line string)) (*program, error) {
	on := "extension " + e.Name
	if len(e.Command) == 0 {
		return nil, fault.New(fault.Internal, on, "has no command")
	}
	p := &program{
		name:  e.Name,
		cmd:   exec.Command(e.Command[0], e.Command[1:]...),
		queue: queue.New(limits.ExtensionConcurrent, limits.QueuedCalls, 4*limits.ExtensionRequestBytes),
		idle:  limits.ExtensionIdleTime,
		send:  make(chan []byte),
		over:  make(chan struct{}),
		gone:  make(chan struct{}),
		calls: map[int64]*call{},
	}
	// Nothing of the host's environment is the program's.
	p.cmd.Env, p.cmd.Dir = []string{}, "/"
	// A group of its own. It goes with the host's pid namespace, or by the end of
	// its input; a signal at the parent's death would come with the death of any
	// thread that happened to start it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = limits.ExtensionStopTime
	stdout, err := p.pipes(log)
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, on, "cannot be started")
	}
	read := newLines(stdout)
	said := make(chan error, 1)
	go func() {
		var h hello
		err := read.next(&h)
		if err == nil && (h.Mentat != Protocol || h.Name != e.Name) {
			err = fmt.Errorf("%w: it says %q and %q", errProtocol, h.Mentat, h.Name)
		}
		said <- err
		if err == nil {
			p.listen(read)
		}
		// What it still writes is not waited for.
		_, _ = io.Copy(io.Discard, stdout)
		_ = p.cmd.Wait()
		close(p.gone)
	}()
	select {
	case err = <-said:
	case <-time.After(limits.ExtensionStartTime):
		err = fmt.Errorf("it said nothing for %v", limits.ExtensionStartTime)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		p.kill()
		<-p.gone
		return nil, fault.Wrap(err, fault.Unavailable, on, "does not start").
			WithHint(`its first line must be {"mentat":%q,"name":%q}`, Protocol, e.Name)
	}
	go p.write()
	return p, nil
}

// pipes connects the program's streams.
func (p *program) pipes(log func(name, line string)) (stdout io.Reader, err error) {
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.cmd.Stderr = &lineWriter{func(line string) {
		if log != nil {
			log(p.name, line)
		}
	}, nil}
	return p.cmd.StdoutPipe()
}

// lineWriter passes on lines, and what is too long for one in pieces.
type lineWriter struct {
	log  func(string)
	rest []byte
}

func (w *lineWriter) Write(data []byte) (int, error) {
	w.rest = append(w.rest, data...)
	for {
		line, more, ok := bytes.Cut(w.rest, []byte("\n"))
		switch {
		case ok:
			w.log(fault.OneLine(string(line)))
			w.rest = more
		case len(w.rest) > limits.LogLineBytes:
			w.log(fault.OneLine(string(w.rest)))
			w.rest = nil
		default:
			return len(data), nil
		}
	}
}

// write passes messages to the program.
func (p *program) write() {
	w := bufio.NewWriter(p.stdin)
	for {
		select {
		case message := <-p.send:
			_, err := w.Write(message)
			if err = errors.Join(err, w.Flush()); err != nil {
				p.fail("takes no more calls")
				return
			}
		case <-p.over:
			return
		}
	}
}

// listen takes the program's messages until it ends or breaks the protocol.
func (p *program) listen(read *lines) {
	for {
		var r reply
		err := read.next(&r)
		if err == nil {
			err = r.check()
		}
		switch {
		case errors.Is(err, io.EOF):
			p.fail("has ended")
			return
		case err != nil:
			p.fail("is out of order: " + err.Error())
			p.kill()
			return
		}
		p.mu.Lock()
		c := p.calls[r.Call]
		p.mu.Unlock()
		if c != nil { // else the call was ended meanwhile
			c.take(&r)
		}
	}
}

// fail ends every call: the program will not answer any more.
func (p *program) fail(why string) {
	p.mu.Lock()
	first := p.why == ""
	if first {
		p.why = why
		close(p.over)
	}
	owed := make([]*call, 0, len(p.calls))
	for _, c := range p.calls {
		owed = append(owed, c)
	}
	p.mu.Unlock()
	for _, c := range owed {
		c.finish(p.unavailable())
	}
}

func (p *program) unavailable() *backend.Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &backend.Refusal{Code: backend.Unavailable, Rule: "extension " + p.name, Reason: "the extension " + p.name + " " + p.why}
}

// end asks the program to end.
func (p *program) end() {
	p.fail("was ended")
	_ = p.stdin.Close() // that is the message
}

// await waits for the program's end, and makes sure of it.
func (p *program) await() {
	select {
	case <-p.gone:
	case <-time.After(limits.ExtensionStopTime):
	}
	// What it started itself goes with it.
	p.kill()
	select {
	case <-p.gone:
	case <-time.After(limits.ExtensionStopTime):
		// Not even the kernel can end it now.
	}
}

func (p *program) kill() {
	if err := unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		// A locked host may not be allowed to signal a group.
		_ = p.cmd.Process.Signal(os.Kill)
	}
}

// call starts a call.
func (p *program) call(parent context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	select {
	case <-p.over:
		return nil, p.unavailable()
	default:
	}
	place, refusal := p.queue.Enter(int64(len(head) + len(body)))
	if refusal != nil {
		return nil, refusal
	}
	ctx, cancel := context.WithCancelCause(parent)
	p.mu.Lock()
	p.last++
	c := &call{p: p, id: p.last, cancel: cancel, wake: make(chan struct{}, 1)}
	p.calls[c.id] = c
	p.mu.Unlock()
	context.AfterFunc(ctx, func() {
		place.Leave()
		c.ended(context.Cause(ctx))
	})
	go c.start(ctx, place, request{Call: c.id, Op: op, Head: []byte(head), Body: body})
	return c, nil
}
