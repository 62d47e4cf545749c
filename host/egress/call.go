package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/dialer"
	"github.com/mentatlab/mentat/host/queue"
	"github.com/mentatlab/mentat/internal/version"
)

// errTimeout is the cause of a call whose own time is over.
var errTimeout = errors.New("the call's time is over")

// call is one fetch ([backend.Answer]).
type call struct {
	*backend.Pending
	o     *opened
	place *queue.Place
	ended func() *backend.Refusal // how the context ended; nil while it lasts
}

// start begins a fetch in the background.
func start(parent context.Context, o *opened, r request, place *queue.Place, limit time.Duration) *call {
	ctx, cancel := context.WithTimeoutCause(parent, limit, errTimeout)
	c := &call{o: o, place: place, ended: func() *backend.Refusal { return ended(ctx, limit) }}
	c.Pending = backend.NewPending(c.failed, cancel)
	// However the call ends, its place is free.
	context.AfterFunc(ctx, place.Leave)
	go c.run(ctx, r)
	return c
}

// ended says how a call ended whose context did; nil while it lasts.
func ended(ctx context.Context, limit time.Duration) *backend.Refusal {
	cause := context.Cause(ctx)
	switch {
	case cause == nil:
		return nil
	case errors.Is(cause, errTimeout):
		return &backend.Refusal{Code: backend.Deadline, Rule: "request time", Reason: fmt.Sprintf("the request took longer than %d ms", limit.Milliseconds())}
	case errors.Is(cause, context.DeadlineExceeded):
		return &backend.Refusal{Code: backend.Deadline, Reason: "the run's time is over"}
	}
	return &backend.Refusal{Code: backend.Canceled, Reason: "the call was ended"}
}

func (c *call) run(ctx context.Context, r request) {
	if err := c.place.Wait(ctx); err != nil {
		c.Refuse(c.failed(err))
		return
	}
	resp, final, refusal := c.o.exchange(ctx, r)
	if refusal != nil {
		c.Refuse(c.failed(refusal))
		return
	}
	// However the call ends, the connection is free.
	context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	head, refusal := c.accept(resp, final)
	if refusal != nil {
		c.Refuse(c.failed(refusal))
		return
	}
	c.Answer(head, c.o.b.mask.Reader(&bounded{r: resp.Body, left: c.o.b.limits.ResponseBytes}))
}

// failed explains an error of the exchange, without a secret.
func (c *call) failed(err error) *backend.Refusal {
	refusal := c.ended()
	if refusal == nil {
		refusal = dialer.Explain(err)
	}
	refusal.Reason = c.o.b.mask.Text(refusal.Reason)
	return refusal
}

// hopByHop are headers of an answer that are about the connection.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

type responseHead struct {
	Status  int         `json:"status"`
	Headers [][2]string `json:"headers"`
	URL     string      `json:"url"`
}

// accept makes the answer's head out of a response.
func (c *call) accept(resp *http.Response, final target) (json.RawMessage, *backend.Refusal) {
	switch {
	case resp.StatusCode < 200:
		return nil, &backend.Refusal{Code: backend.Unavailable, Reason: "the host changes to another protocol"}
	case resp.ContentLength > c.o.b.limits.ResponseBytes && resp.Request.Method != http.MethodHead:
		return nil, tooLarge()
	}
	mask := c.o.b.mask
	head := responseHead{Status: resp.StatusCode, URL: mask.Text(final.String()), Headers: [][2]string{}}
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		if slices.Contains(hopByHop, name) {
			continue
		}
		for _, value := range resp.Header[name] {
			head.Headers = append(head.Headers, [2]string{mask.Text(name), mask.Text(value)})
		}
	}
	data, err := json.Marshal(head)
	if err != nil {
		return nil, &backend.Refusal{Code: backend.Internal, Reason: "the answer's head cannot be encoded"}
	}
	return data, nil
}

func tooLarge() *backend.Refusal {
	return &backend.Refusal{Code: backend.Limit, Rule: "response size", Reason: "the answer is larger than the node allows"}
}

// bounded reads as much as is left, and fails where there is more.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if int64(n) > b.left {
		n, err = int(b.left), tooLarge()
	}
	b.left -= int64(n)
	return n, err
}

// exchange makes the request and follows redirects, each hop judged anew.
func (o *opened) exchange(ctx context.Context, r request) (*http.Response, target, *backend.Refusal) {
	injecting := true
	for hop := 0; ; hop++ {
		resp, refusal := o.once(ctx, r, injecting)
		if refusal != nil {
			return nil, target{}, refusal
		}
		location := resp.Header.Get("Location")
		if r.redirects == 0 || location == "" || !isRedirect(resp.StatusCode) {
			return resp, r.target, nil
		}
		// The body of a redirect is of no use to anybody.
		_ = resp.Body.Close()
		if hop == r.redirects {
			return nil, target{}, &backend.Refusal{Code: backend.Limit, Rule: ruleRedirects, Reason: fmt.Sprintf("the host redirects more than %d times", r.redirects)}
		}
		from := r.target
		if r, refusal = o.redirected(ctx, r, resp.StatusCode, location); refusal != nil {
			return nil, target{}, refusal
		}
		// Once a request has left its origin, nothing is added any more.
		injecting = injecting && from.origin() == r.target.origin()
	}
}

// once makes one request.
func (o *opened) once(ctx context.Context, r request, injecting bool) (*http.Response, *backend.Refusal) {
	var list []injection
	if injecting {
		list = o.b.applies(&r.target)
	}
	more, refusal := inject(list, r.headers, &r.target)
	if refusal != nil {
		return nil, refusal
	}
	u, refusal := r.target.wire(more.query)
	if refusal != nil {
		return nil, refusal
	}
	req := (&http.Request{Method: r.method, URL: u, Host: u.Host, Header: r.headers.Clone()}).WithContext(context.WithValue(ctx, schemeKey{}, r.target.scheme))
	if len(r.body) > 0 {
		req.ContentLength = int64(len(r.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.body)), nil }
		req.Body = io.NopCloser(bytes.NewReader(r.body))
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "mentat/"+version.Version)
	}
	if len(list) > 0 {
		// In a compressed answer a secret could not be found.
		req.Header.Set("Accept-Encoding", "identity")
	}
	maps.Copy(req.Header, more.headers)
	resp, err := o.transport.RoundTrip(req)
	if err != nil {
		return nil, dialer.Explain(err)
	}
	return resp, nil
}

func isRedirect(status int) bool {
	return slices.Contains([]int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect}, status)
}

// portable are the headers that go along to another origin. Everything else may
// be a credential.
var portable = []string{"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "User-Agent"}

// redirected is the request that a redirect asks for, judged.
func (o *opened) redirected(ctx context.Context, r request, status int, location string) (request, *backend.Refusal) {
	refused := func(reason string) (request, *backend.Refusal) {
		return request{}, &backend.Refusal{Code: backend.Denied, Rule: ruleRedirects, Reason: reason, Hint: "ask without redirects, and judge where the answer leads"}
	}
	next, refusal := r.target.follow(location)
	if refusal != nil {
		return request{}, refusal
	}
	if next.scheme == "http" && r.target.scheme == "https" {
		return refused("the host redirects from https to http")
	}
	if refusal := o.check(ctx, &next); refusal != nil {
		refusal.Reason = "the host redirects to where the capability does not lead: " + refusal.Reason
		return request{}, refusal
	}
	out := r
	out.target = next
	if status == http.StatusSeeOther && r.method != http.MethodHead || status < http.StatusSeeOther && r.method == http.MethodPost {
		out.method, out.body = http.MethodGet, nil
		out.headers = r.headers.Clone()
		for _, name := range []string{"Content-Type", "Content-Encoding", "Content-Language", "Content-Location"} {
			out.headers.Del(name)
		}
		if len(o.methods) > 0 && !slices.Contains(o.methods, out.method) {
			return refused("the host redirects to a method that the capability was not opened for")
		}
	}
	if next.origin() != r.target.origin() {
		if len(out.body) > 0 {
			return refused("the host redirects the request's body to another origin")
		}
		kept := http.Header{}
		for _, name := range portable {
			if v := out.headers.Values(name); len(v) > 0 {
				kept[name] = v
			}
		}
		out.headers = kept
	}
	return out, nil
}
