package serve

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// plain answers with the output's bytes. It holds back what fits into
// [limits.ServeHeld], so that the status can say how the run ended; a longer
// output, or one whose reader understands trailers, is passed on as it comes and
// the trailers say it.
type plain struct {
	gate
	run         string
	contentType string
	// trailers says that the client reads them, modern that it knows chunks.
	trailers, modern bool

	held    []byte
	started bool
	// failed is why the answer cannot be given in this form.
	failed *problem
}

func (s *plain) begin(run string) {
	s.run = run
	s.a.Header().Set(runHeader, run)
}

// Output implements [output.Sink].
func (s *plain) Output(p []byte) error { return s.do(func() error { return s.pass(p) }) }

// StreamChunk implements [output.Sink]: in bytes, a stream is output.
func (s *plain) StreamChunk(_ string, _ int64, p []byte) error { return s.Output(p) }

// StreamStart implements [output.Sink].
func (s *plain) StreamStart(string) error { return nil }

// StreamEnd implements [output.Sink].
func (s *plain) StreamEnd(string, int32) error { return nil }

// Error implements [output.Sink]: the exit carries the message.
func (s *plain) Error(int32, string) error { return nil }

func (s *plain) pass(p []byte) error {
	if !s.started {
		if !s.trailers && len(s.held)+len(p) <= limits.ServeHeld {
			s.held = append(s.held, p...)
			return nil
		}
		if err := s.start(); err != nil {
			return err
		}
	}
	if _, err := s.a.Write(p); err != nil {
		return err
	}
	if s.trailers {
		return s.a.flush()
	}
	return nil
}

// start commits to success before the run has ended.
func (s *plain) start() error {
	if !s.modern {
		err := fault.New(fault.Unsupported, "", "the output is over %d bytes, which HTTP/1.0 cannot carry safely: its end would look the same as a failure", limits.ServeHeld).
			WithHint("use HTTP/1.1")
		s.failed = newProblem(http.StatusHTTPVersionNotSupported, err)
		s.failed.Run = s.run
		return err
	}
	s.started = true
	h := s.a.Header()
	common(h, s.typeOf(nil))
	h.Set("Trailer", statusHeader+", "+reasonHeader)
	s.begun()
	s.a.WriteHeader(http.StatusOK)
	_, err := s.a.Write(s.held)
	s.held = nil
	return err
}

func (s *plain) finish(exit hostdoc.Exit) bool {
	s.shut()
	if s.started {
		h := s.a.Header()
		h.Set(statusHeader, strconv.Itoa(exit.Status))
		if exit.Reason != "" {
			h.Set(reasonHeader, exit.Reason)
		}
		return s.a.broken == nil && (succeeded(exit) || s.trailers)
	}
	s.begun()
	switch {
	case s.failed != nil:
		s.failed.write(s.a)
	case !succeeded(exit):
		s.a.Header().Set(statusHeader, strconv.Itoa(exit.Status))
		endProblem(exit, s.run).write(s.a)
	default:
		h := s.a.Header()
		common(h, s.typeOf(s.held))
		h.Set(statusHeader, "0")
		h.Set("Content-Length", strconv.Itoa(len(s.held)))
		s.a.WriteHeader(http.StatusOK)
		_, _ = s.a.Write(s.held) // whether it arrives is the client's to know
	}
	return s.a.broken == nil
}

// typeOf is the content type: the agent's own, else that of JSON if the whole
// output is a JSON object or array, else bytes.
func (s *plain) typeOf(whole []byte) string {
	switch first := bytes.TrimLeft(whole, " \t\r\n"); {
	case s.contentType != "":
		return s.contentType
	case len(first) > 0 && (first[0] == '{' || first[0] == '[') && json.Valid(first):
		return "application/json"
	}
	return "application/octet-stream"
}
