package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/dialer"
	"github.com/mentatlab/mentat/host/queue"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/version"
)

// errIdle is the cause of a chat whose model went silent.
var errIdle = errors.New("the model says nothing")

// call is one chat ([backend.Answer]).
type call struct {
	*backend.Pending
	o      *opened
	p      *provider
	model  string
	ledger *ledger
	place  *queue.Place
	over   func() error // why the context ended
	cancel context.CancelCauseFunc
}

// start begins a chat in the background.
func start(parent context.Context, o *opened, p *provider, model string, body []byte, l *ledger, place *queue.Place) *call {
	ctx, cancel := context.WithCancelCause(parent)
	c := &call{o: o, p: p, model: model, ledger: l, place: place, cancel: cancel}
	c.Pending = backend.NewPending(c.failed, func() { cancel(context.Canceled) })
	c.over = func() error { return context.Cause(ctx) }
	context.AfterFunc(ctx, func() {
		place.Leave()
		// What was heard so far counts.
		c.settle(nil)
	})
	go c.run(ctx, body)
	return c
}

// settle ends the count of the chat and tells the meters, once.
func (c *call) settle(said *tokens) tokens {
	t, first := c.ledger.settle(said)
	if first && t != (tokens{}) {
		c.o.b.meters.Tell(backend.Usage{
			Run: c.o.run, Provider: c.p.name, Model: c.model,
			Prompt: t.prompt, Completion: t.completion, Estimated: said == nil,
		})
	}
	return t
}

func (c *call) run(ctx context.Context, body []byte) {
	if err := c.place.Wait(ctx); err != nil {
		c.unused(c.explain(err))
		return
	}
	idle := newIdle(ctx, c.o.b.idle, c.cancel)
	resp, err := c.p.transport.RoundTrip(c.request(ctx, body))
	if err != nil {
		c.unused(c.explain(err))
		return
	}
	// However the chat ends, the connection is free.
	context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	if refusal := c.judge(resp); refusal != nil {
		c.unused(refusal)
		return
	}
	t := &translator{c: c, events: newEvents(&idleReader{r: &bounded{resp.Body, limits.LLMAnswerBytes}, idle: idle})}
	if err := t.begin(); err != nil {
		c.Refuse(c.failed(err))
		return
	}
	head, err := json.Marshal(map[string]string{"model": c.o.b.mask.Text(t.model)})
	if err != nil {
		c.Refuse(&backend.Refusal{Code: backend.Internal, Reason: "the answer's head cannot be encoded"})
		return
	}
	c.Answer(head, c.o.b.mask.Reader(t))
}

func (c *call) request(ctx context.Context, body []byte) *http.Request {
	req := (&http.Request{
		Method: http.MethodPost, URL: c.p.chat, Host: c.p.chat.Host, ContentLength: int64(len(body)),
		Header: http.Header{
			"Content-Type": {"application/json"}, "Accept": {"text/event-stream"}, "Accept-Encoding": {"identity"},
			"User-Agent": {"mentat/" + version.Version},
		},
		Body:    io.NopCloser(bytes.NewReader(body)),
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}).WithContext(ctx)
	if c.p.secret != "" {
		req.Header.Set("Authorization", "Bearer "+c.p.secret)
	}
	return req
}

// unused ends a chat for which no tokens were used.
func (c *call) unused(refusal *backend.Refusal) {
	c.ledger.cancel()
	refusal.Reason = c.o.b.mask.Text(refusal.Reason)
	c.Refuse(refusal)
}

// failed explains what a chat failed with, without a secret.
func (c *call) failed(err error) *backend.Refusal {
	refusal := c.explain(err)
	refusal.Reason = c.o.b.mask.Text(refusal.Reason)
	return refusal
}

func (c *call) explain(err error) *backend.Refusal {
	var refusal *backend.Refusal
	switch cause := c.over(); {
	case errors.As(err, &refusal):
		return refusal
	case errors.Is(cause, errIdle):
		return &backend.Refusal{Code: backend.Unavailable, Reason: fmt.Sprintf("the provider %s said nothing for %v", c.p.name, c.o.b.idle)}
	case errors.Is(cause, context.DeadlineExceeded):
		return &backend.Refusal{Code: backend.Deadline, Reason: "the run's time is over"}
	case cause != nil:
		return &backend.Refusal{Code: backend.Canceled, Reason: "the call was ended"}
	case errors.Is(err, errEvent), errors.Is(err, limits.ErrExceeded):
		return &backend.Refusal{Code: backend.Limit, Rule: "answer size", Reason: fmt.Sprintf("the provider %s answers with more than may be", c.p.name)}
	}
	return dialer.Explain(err)
}

// judge turns an answer that is no stream into a refusal.
func (c *call) judge(resp *http.Response) *backend.Refusal {
	refusal := &backend.Refusal{Code: backend.Unavailable, Rule: "provider " + c.p.name, RetryAfter: retryAfter(resp.Header)}
	switch status := resp.StatusCode; {
	case status == http.StatusOK:
		kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if err == nil && kind == "text/event-stream" {
			return nil
		}
		refusal.Reason = "the provider does not answer with a stream of events"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		// The provider's text may show a part of the key.
		refusal.Reason = refusesKey
	case status == http.StatusNotFound:
		refusal.Code, refusal.Reason = backend.NotFound, "the provider has no model "+c.model
	case status == http.StatusTooManyRequests:
		refusal.Code, refusal.Reason = backend.Limit, tooOften
	case status == http.StatusBadRequest, status == http.StatusRequestEntityTooLarge, status == http.StatusUnprocessableEntity:
		refusal.Code, refusal.Reason = backend.Invalid, "the provider does not accept the request"
		if text := problem(resp.Body); text != "" {
			refusal.Reason += ": " + text
		}
	default:
		refusal.Reason = fmt.Sprintf("the provider answers with status %d", status)
	}
	return refusal
}

// problem is what a provider says is wrong with a request.
func problem(body io.Reader) string {
	data, err := limits.Read(body, limits.HTTPHeaderBytes)
	var said struct {
		Error jsontext.Value `json:"error"`
	}
	if err != nil || jsonv2.Unmarshal(data, &said) != nil {
		return ""
	}
	return problemText(said.Error)
}

// problemText is the message of an error, an object or a text.
func problemText(e jsontext.Value) string {
	text, _ := problemOf(e)
	return text
}

// problemOf is the message of an error and what kind it is, by type and code.
func problemOf(e jsontext.Value) (text, kind string) {
	var detail struct {
		Message string         `json:"message"`
		Type    jsontext.Value `json:"type"`
		Code    jsontext.Value `json:"code"`
	}
	if len(e) == 0 || jsonv2.Unmarshal(e, &detail) != nil && jsonv2.Unmarshal(e, &detail.Message) != nil {
		return "", ""
	}
	const most = 400
	runes := []rune(fault.OneLine(detail.Message))
	return string(runes[:min(len(runes), most)]), string(detail.Type) + " " + string(detail.Code)
}

const (
	refusesKey = "the provider refuses the node's credentials"
	tooOften   = "the provider takes no more requests for now"
)

// brokenOff is an error that came within the stream.
func (c *call) brokenOff(e jsontext.Value) *backend.Refusal {
	text, kind := problemOf(e)
	refusal := &backend.Refusal{Code: backend.Unavailable, Rule: "provider " + c.p.name, Reason: "the provider broke the answer off: " + text}
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(kind+" "+text), w) })
	}
	switch {
	case has("api key", "api_key", "authentication", "unauthorized", "permission"):
		// The text may show a part of the key.
		refusal.Reason = refusesKey
	case has("rate_limit", "rate limit", "too many requests"):
		refusal.Code, refusal.Reason = backend.Limit, tooOften
	}
	return refusal
}

// maxRetryAfter bounds what is believed of a provider's wish to be left alone.
const maxRetryAfter = time.Hour

func retryAfter(h http.Header) time.Duration {
	var d time.Duration
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		d = time.Duration(min(max(seconds, 0), maxRetryAfter.Seconds()) * float64(time.Second))
	} else if at, err := http.ParseTime(text); err == nil {
		d = time.Until(at)
	}
	return min(max(d, 0), maxRetryAfter)
}

// idle ends a chat that says nothing for too long.
type idle struct {
	t     *time.Timer
	after time.Duration
}

func newIdle(ctx context.Context, after time.Duration, cancel context.CancelCauseFunc) *idle {
	i := &idle{time.AfterFunc(after, func() { cancel(errIdle) }), after}
	context.AfterFunc(ctx, func() { i.t.Stop() })
	return i
}

type idleReader struct {
	r    io.Reader
	idle *idle
}

func (i *idleReader) Read(p []byte) (int, error) {
	// Time counts only while the provider is waited for: a guest may be slow.
	i.idle.t.Reset(i.idle.after)
	n, err := i.r.Read(p)
	i.idle.t.Stop()
	return n, err
}

// bounded fails where there is more than left.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, limits.ErrExceeded
	}
	return n, err
}
