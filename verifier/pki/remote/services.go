package remote

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier/pki"
)

// What RFC 3161 §3.4 and RFC 6960 appendix A.1 call their messages.
const (
	stampQuery   = "application/timestamp-query"
	stampReply   = "application/timestamp-reply"
	ocspRequest  = "application/ocsp-request"
	ocspResponse = "application/ocsp-response"
)

// signed serves what carries a signature of its own, and all else by next. It
// stands before next's own routing, which would clean the path of a request by
// GET: there it is base64.
func (s *server) signed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, rest, byGet := strings.Cut(r.URL.EscapedPath(), ocspPath+"/")
		switch {
		case !s.o.CA.Services():
			next.ServeHTTP(w, r)
		case r.URL.Path == stampPath && r.Method == http.MethodPost:
			s.query(w, r, stampQuery, s.stamp)
		case r.URL.Path == ocspPath && r.Method == http.MethodPost:
			s.query(w, r, ocspRequest, s.ocsp)
		case byGet && path == "" && r.Method == http.MethodGet:
			s.ocspByGet(w, r, rest)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// query bounds and reads a request of the type, and answers it.
func (s *server) query(w http.ResponseWriter, r *http.Request, wanted string, answer func(http.ResponseWriter, *http.Request, []byte)) {
	body, err := read(w, r, wanted, limits.PKIQueryBytes)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, r, body, answer)
}

// answer bounds how many are answered at once, and how often one address asks.
func (s *server) answer(w http.ResponseWriter, r *http.Request, body []byte, answer func(http.ResponseWriter, *http.Request, []byte)) {
	if !s.queries.allow(callerOf(r.RemoteAddr), s.o.Clock()) {
		s.refuse(w, r, tooMany("this address asks too often"))
		return
	}
	select {
	case s.answering <- struct{}{}:
		defer func() { <-s.answering }()
	default:
		s.refuse(w, r, fault.New(fault.Unavailable, "request", "too many are being served").WithHint("try again in a minute"))
		return
	}
	answer(w, r, body)
}

func (s *server) send(w http.ResponseWriter, kind string, der []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store") // a revocation counts at once
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := w.Write(der); err != nil { //nolint:gosec // DER that we signed, with its type said
		s.o.Log.Debug("an answer was not taken", "error", err)
	}
}

func (s *server) stamp(w http.ResponseWriter, r *http.Request, query []byte) {
	der, serial, err := s.o.CA.Stamp(query, s.steady.now)
	if der == nil {
		s.refuse(w, r, err)
		return
	}
	s.told(r, err, "stamped", "serial", serial)
	s.send(w, stampReply, der)
}

// told logs an answer, or the refusal that is one.
func (s *server) told(r *http.Request, err error, what string, more ...any) {
	s.metrics.count(r, fault.ReasonOf(err))
	switch {
	case err == nil:
		s.o.Log.Info(what, append([]any{"address", r.RemoteAddr}, more...)...)
	case fault.ReasonOf(err) == fault.Usage || fault.ReasonOf(err) == fault.NotFound:
		s.o.Log.Warn("refused", "address", r.RemoteAddr, "asked", what, "reason", fault.ReasonOf(err), "error", err)
	default:
		s.o.Log.Error("failed", "address", r.RemoteAddr, "asked", what, "error", err)
	}
}

// ocspByGet answers a request in the address, as RFC 6960 appendix A.1 has it.
func (s *server) ocspByGet(w http.ResponseWriter, r *http.Request, text string) {
	text, err := url.PathUnescape(text)
	if err == nil && len(text) > limits.PKIQueryBytes {
		err = limits.ErrExceeded
	}
	var query []byte
	if err == nil {
		query, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil {
		s.refuse(w, r, fault.New(fault.Usage, "request", "is no base64 of an OCSP request"))
		return
	}
	s.answer(w, r, query, s.ocsp)
}

func (s *server) ocsp(w http.ResponseWriter, r *http.Request, query []byte) {
	responder, err := s.ocspResponder()
	if err != nil {
		s.refuse(w, r, fault.Wrap(err, fault.Internal, "OCSP responder", "cannot be made"))
		return
	}
	a, err := s.o.CA.AnswerOCSP(responder, query, s.o.Clock())
	if fault.ReasonOf(err) == fault.Revoked {
		s.dropResponder(responder) // the next request makes another
	}
	s.told(r, err, "answered", "serial", a.Serial, "status", a.Status)
	s.send(w, ocspResponse, a.DER)
}

// ocspResponder is made anew before its certificate ends, and outlives a failure
// to.
func (s *server) ocspResponder() (*pki.Responder, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock()
	if r := s.responder; r != nil && now.Add(ownLeft).Before(r.Cert.NotAfter) && !now.Before(r.Cert.NotBefore) {
		return r, nil
	}
	made, err := s.o.CA.IssueResponder(now)
	switch {
	case err == nil:
		s.responder = made
	case s.responder == nil || now.After(s.responder.Cert.NotAfter):
		return nil, err
	default:
		s.o.Log.Error("the OCSP responder's certificate cannot be renewed", "until", s.responder.Cert.NotAfter, "error", err)
	}
	return s.responder, nil
}

func (s *server) dropResponder(old *pki.Responder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.responder == old {
		s.responder = nil
	}
}
