package manifest

import (
	"mime"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Serve are the settings of an agent that answers HTTP requests; 0 means that
// nothing was said.
type Serve struct {
	Port int `yaml:"port" json:"port,omitempty"`
	// Concurrency bounds the requests that run at once, Queue those that wait; of
	// Queue, 0 is a value.
	Concurrency int  `yaml:"concurrency" json:"concurrency,omitempty"`
	Queue       *int `yaml:"queue" json:"queue,omitempty"`
	// Body bounds a request's body.
	Body Size `yaml:"body" json:"body,omitzero"`
	// ContentType is what the agent's output is.
	ContentType string `yaml:"content_type" json:"content_type,omitempty"`
	// Drain is how long requests may go on when the server is told to end.
	Drain Duration `yaml:"drain" json:"drain,omitzero"`
}

const (
	// DefaultPort is where an agent is served when nothing is said.
	DefaultPort = 8080
	// minPort is the least that a process without privileges may listen on.
	minPort  = 1024
	maxDrain = time.Hour
)

// Serving reports whether the agent is to be served and not run once.
func (m *Manifest) Serving() bool { return m != nil && m.Mode == ModeServe }

// Served is how the agent is served on an address, with what was not said
// filled in. The manifest may be nil.
func (m *Manifest) Served(host string) *hostdoc.Serve {
	said := new(Serve)
	if m != nil && m.Serve != nil {
		said = m.Serve
	}
	served := &hostdoc.Serve{
		Listen:      net.JoinHostPort(host, strconv.Itoa(firstOf(said.Port, DefaultPort))),
		Concurrent:  firstOf(said.Concurrency, limits.DefaultServeConcurrent),
		Queue:       limits.DefaultServeQueue,
		ContentType: said.ContentType,
		DrainMillis: firstOf(time.Duration(said.Drain), limits.DefaultServeDrain).Milliseconds(),
	}
	if said.Queue != nil {
		served.Queue = *said.Queue
	}
	served.BufferBytes = max(m.BodyLimit(), limits.ServeBuffers)
	served.NoticeMillis = min(limits.ServeNotice.Milliseconds(), served.DrainMillis/4)
	return served
}

// BodyLimit bounds a served request's body. The manifest may be nil.
func (m *Manifest) BodyLimit() int64 {
	if m == nil || m.Serve == nil {
		return limits.DefaultServeBody
	}
	return firstOf(int64(m.Serve.Body), limits.DefaultServeBody)
}

func firstOf[T int | int64 | time.Duration](said, otherwise T) T {
	if said == 0 {
		return otherwise
	}
	return said
}

func (m *Manifest) validateServe(p *problems) {
	switch m.Mode {
	case "", ModeRun, ModeServe:
	default:
		p.add("mode", "mode %q, allowed are run and serve", clip(m.Mode))
	}
	s := m.Serve
	if s == nil {
		return
	}
	if m.Mode != ModeServe {
		p.hint("serve", "write mode: serve", "serve has no effect without mode serve")
	}
	if s.Port != 0 && s.Port < minPort || s.Port > 65535 || s.Port == 0 && p.source.said("serve.port") {
		p.add("serve.port", "serve.port is %d, allowed is %d to 65535: an agent has no privileges", s.Port, minPort)
	}
	p.count("serve.concurrency", s.Concurrency, limits.ServeConcurrent)
	if s.Queue != nil && (*s.Queue < 0 || *s.Queue > limits.ServeQueue) {
		p.add("serve.queue", "serve.queue is %d, allowed is 0 to %d", *s.Queue, limits.ServeQueue)
	}
	if s.Body > limits.InputBytes {
		p.add("serve.body", "serve.body is %s, allowed is up to %s", s.Body, Size(limits.InputBytes))
	}
	if s.Drain > Duration(maxDrain) {
		p.add("serve.drain", "serve.drain is %s, allowed is up to %s", s.Drain, Duration(maxDrain))
	}
	if s.ContentType != "" && !mediaType(s.ContentType) {
		p.add("serve.content_type", "serve.content_type %q, allowed is a media type like \"text/plain; charset=utf-8\"", clip(s.ContentType))
	}
}

// mediaType reports whether s is one as it stands in a header.
func mediaType(s string) bool {
	name, _, err := mime.ParseMediaType(s)
	return err == nil && len(s) <= maxIdentifier && strings.Count(name, "/") == 1 && strings.TrimSpace(s) == s &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
