package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/retry"
)

// apiRoot is where the distribution API begins, unless hosts.toml says otherwise.
const apiRoot = "/v2"

// transport is what lies below oras-go's client: it addresses the endpoint as
// hosts.toml says and gives up on servers that fall silent.
type transport struct {
	base   http.RoundTripper
	ep     *endpoint
	header http.Header
	stall  time.Duration
}

func newTransport(base http.RoundTripper, ep *endpoint, header http.Header, stall time.Duration) http.RoundTripper {
	policy := &retry.GenericPolicy{
		Retryable: retryable,
		Backoff:   retry.DefaultBackoff,
		MinWait:   100 * time.Millisecond,
		MaxWait:   2 * time.Second,
		MaxRetry:  2,
	}
	return &retry.Transport{
		Base:   &transport{base: base, ep: ep, header: header, stall: stall},
		Policy: func() retry.Policy { return policy },
	}
}

// retryable is the library's rule without time-outs: who waited a minute in
// vain is told so, and does not wait another two.
func retryable(resp *http.Response, err error) (bool, error) {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return false, err
	}
	return retry.DefaultPredicate(resp, err)
}

type stalledError time.Duration

func (e stalledError) Error() string {
	return fmt.Sprintf("nothing was received or sent for %s", time.Duration(e))
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{ctx: ctx, cancel: cancel, stall: t.stall}
	w.timer = time.AfterFunc(t.stall, func() { cancel(stalledError(t.stall)) })
	req = req.Clone(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedBody{ReadCloser: req.Body, watch: w}
	}
	if req.URL.Host == t.ep.server {
		t.address(req)
	}
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		w.stop()
		return nil, w.cause(err)
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: w, last: true}
	return resp, nil
}

// address applies hosts.toml: another API root, the mirrored registry's name,
// additional headers.
func (t *transport) address(req *http.Request) {
	for k, v := range t.header {
		req.Header[k] = v
	}
	api := strings.HasPrefix(req.URL.Path, apiRoot+"/")
	// Where a server sends us to upload or to look elsewhere has its root already.
	rooted := t.ep.path != "" && strings.HasPrefix(req.URL.Path, t.ep.path+"/")
	if api && !rooted {
		req.URL.Path = t.ep.path + strings.TrimPrefix(req.URL.Path, apiRoot)
		req.URL.RawPath = ""
	}
	if api && t.ep.namespace != "" {
		q := req.URL.Query()
		q.Set("ns", t.ep.namespace)
		req.URL.RawQuery = q.Encode()
	}
}

// watch ends an exchange in which nothing moves.
type watch struct {
	ctx    context.Context //nolint:containedctx // it is the exchange's own
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// cause tells what really ended the exchange.
func (w *watch) cause(err error) error {
	var stalled stalledError
	if errors.As(context.Cause(w.ctx), &stalled) {
		return stalled
	}
	return err
}

type watchedBody struct {
	io.ReadCloser
	watch *watch
	// last: closing this body ends the exchange.
	last bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.watch.timer.Reset(b.watch.stall)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.watch.cause(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	if b.last {
		b.watch.stop()
	}
	return err
}
