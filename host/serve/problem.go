package serve

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// problemTypes is what a problem's type begins with; the reason follows.
const problemTypes = "https://mentatlab.dev/problems/"

// problem is an error's answer (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Reason is one of [fault.Table]'s, or "agent-failed".
	Reason string `json:"reason"`
	Run    string `json:"run,omitempty"`
	// ExitStatus and Function are set when an agent ran.
	ExitStatus int    `json:"exit_status,omitempty"`
	Function   string `json:"function,omitempty"`

	retry time.Duration
	allow string
	close bool
}

// agentFailed is the reason of an agent that ended by itself, but not well.
const agentFailed = "agent-failed"

func newProblem(code int, err error) *problem {
	reason := fault.ReasonOf(err)
	return &problem{
		Type: problemTypes + string(reason), Title: http.StatusText(code), Status: code,
		Detail: fault.OneLine(err.Error()), Reason: string(reason),
	}
}

// endProblem tells how a run ended.
func endProblem(exit hostdoc.Exit, run string) *problem {
	reason, title := exit.Reason, ""
	if reason == "" {
		reason, title = agentFailed, "the agent failed"
	} else {
		title = fault.RowOf(fault.Reason(reason)).Meaning
	}
	return &problem{
		Type: problemTypes + reason, Title: title, Status: codeOf(exit),
		Detail: fault.OneLine(exit.Message), Reason: reason, Run: run,
		ExitStatus: exit.Status, Function: fault.OneLine(exit.Function),
	}
}

// write sends the problem; what cannot be sent is nobody's to read.
func (p *problem) write(a *answer) {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers
	}
	h := a.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(data)+1))
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int(p.retry.Seconds())))
	}
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	if p.close {
		h.Set("Connection", "close")
	}
	a.WriteHeader(p.Status)
	_, _ = a.Write(append(data, '\n'))
}
