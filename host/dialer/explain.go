package dialer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/mentatlab/mentat/host/backend"
)

// Explain turns the failure of an exchange into what a guest may know of it. The
// text of err is not used: it may hold the request, with what the host added.
func Explain(err error) *backend.Refusal {
	var refusal *backend.Refusal
	if errors.As(err, &refusal) {
		return refusal
	}
	code, reason := explain(err)
	return &backend.Refusal{Code: code, Reason: reason}
}

func explain(err error) (backend.Code, string) {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return backend.Canceled, "the call was ended"
	case errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*net.OpError)):
		return backend.Deadline, "the time for the call is over"
	case errors.As(err, &dns) && dns.IsNotFound:
		return backend.NotFound, "the host's name does not exist"
	case errors.As(err, &dns):
		return backend.Unavailable, "the host's name cannot be resolved"
	}
	if reason := explainTLS(err); reason != "" {
		return backend.Unavailable, reason
	}
	for _, e := range errnos {
		if errors.Is(err, e.errno) {
			return backend.Unavailable, e.reason
		}
	}
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded):
		return backend.Unavailable, "the host does not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return backend.Unavailable, "the host closed the connection before its answer was complete"
	}
	return backend.Unavailable, fmt.Sprintf("the exchange with the host failed (%T)", root(err))
}

var errnos = []struct {
	errno  syscall.Errno
	reason string
}{
	{syscall.ECONNREFUSED, "the host refuses the connection"},
	{syscall.ECONNRESET, "the host reset the connection"},
	{syscall.EPIPE, "the host closed the connection"},
	{syscall.EHOSTUNREACH, "the host cannot be reached"},
	{syscall.ENETUNREACH, "the host's network cannot be reached"},
}

// explainTLS says what is wrong with the peer's identity; "" if nothing is.
func explainTLS(err error) string {
	var verification *tls.CertificateVerificationError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var op *net.OpError
	switch {
	case errors.As(err, &name):
		return "the host's certificate is for another name"
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return "the host's certificate comes from no authority that this node trusts"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the host's certificate has expired or is not yet valid"
	case errors.As(err, &verification):
		return "the host's certificate is not valid"
	case errors.As(err, new(tls.RecordHeaderError)), errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"):
		// An alert of either side is known by its operation alone.
		return "the TLS handshake with the host failed"
	}
	return ""
}

// root is the innermost error.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
