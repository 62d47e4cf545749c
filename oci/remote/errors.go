package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"regexp"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/mentatlab/mentat/internal/fault"
)

// maxServerText bounds what a server's own words add to an error.
const maxServerText = 300

// fail gives what oras-go, net/http or our own readers said a reason and the
// subject it is about.
func (ep *endpoint) fail(err error, on, doing string) error {
	var (
		own      *fault.Error
		response *errcode.ErrorResponse
		record   tls.RecordHeaderError
		cert     *tls.CertificateVerificationError
		unknown  x509.UnknownAuthorityError
	)
	wrap := func(r fault.Reason) *fault.Error { return fault.Wrap(discreet{err}, r, on, "%s", doing) }
	switch {
	case errors.As(err, &own):
		return fault.Wrap(own, own.Reason, on, "%s", doing)
	case errors.Is(err, context.Canceled):
		return wrap(fault.Canceled)
	case errors.As(err, &response):
		return ep.failStatus(response, on, doing)
	case errors.Is(err, errdef.ErrNotFound):
		return fault.New(fault.NotFound, on, "%s: %s does not have it", doing, ep.server)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return fault.New(fault.AccessDenied, on, "%s: %s wants credentials and there are none", doing, ep.server).WithHint("log in to %s", ep.server)
	case errors.As(err, &unknown):
		e := fault.New(fault.Unavailable, on, "%s: the certificate of %s is signed by an unknown authority%s", doing, ep.server, ep.note)
		return e.WithHint("name the authority's certificate with --ca-file")
	case errors.As(err, &cert):
		return fault.Wrap(cert.Err, fault.Unavailable, on, "%s: the certificate of %s is not valid%s", doing, ep.server, ep.note)
	case errors.As(err, &record):
		return fault.New(fault.Unavailable, on, "%s: %s does not speak TLS", doing, ep.server)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Unavailable, on, "%s: the answer of %s broke off", doing, ep.server)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Unavailable, on, "%s: %s did not answer in time", doing, ep.server)
	}
	return wrap(fault.Unavailable)
}

func (ep *endpoint) failStatus(resp *errcode.ErrorResponse, on, doing string) error {
	text := http.StatusText(resp.StatusCode)
	if len(resp.Errors) != 0 {
		text = resp.Errors.Error()
	}
	if len(text) > maxServerText {
		text = text[:maxServerText] + "…"
	}
	// A token server may have said it; its name is the one to report.
	server := ep.server
	if resp.URL != nil && resp.URL.Host != "" {
		server = resp.URL.Host
	}
	e := fault.New(fault.Unavailable, on, "%s: %s answered %d: %s", doing, server, resp.StatusCode, text)
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Reason = fault.AccessDenied
		return e.WithHint("check the credentials for %s and what they may do", ep.server)
	case http.StatusNotFound:
		e.Reason = fault.NotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		// How registries refuse to move a tag that they hold immutable.
		e.Reason = fault.Exists
	}
	return e
}

// discreet is an error whose text shows no query of a URL: where a registry
// redirects to, the query may hold a signature that is as good as a credential.
type discreet struct{ err error }

var query = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`)

func (d discreet) Error() string { return query.ReplaceAllString(d.err.Error(), "$1") }
func (d discreet) Unwrap() error { return d.err }
