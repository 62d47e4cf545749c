package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier/pki"
)

const (
	// refreshEvery is how often the server looks whether a list is due.
	refreshEvery = time.Minute
	// drainTime bounds how long requests may finish once the server is to end.
	drainTime = 15 * time.Second
	// ownLeft is how much of its certificate's life a server has left when it makes
	// a new one.
	ownLeft = 3 * 24 * time.Hour
	// rootLeft is how long before its end the root's list is warned of, once a day.
	rootLeft = 30 * 24 * time.Hour
)

// ServerOptions say what a server is. CA, Listen, Clock and Log are required.
type ServerOptions struct {
	CA *pki.CA
	// Listen is the address of the server, HOST:PORT.
	Listen string
	// ListsListen is an address where the revocation lists are served over plain
	// HTTP, as is usual for them, with time stamps and OCSP answers if the CA has
	// these services: what is signed needs no TLS. Empty for none.
	ListsListen string
	// MetricsListen is an address where metrics are served over plain HTTP. They
	// name no client. Empty for none.
	MetricsListen string
	// Names are the host names and addresses of the certificate that the server
	// makes for itself.
	Names []string
	// Certificate is used instead.
	Certificate *tls.Certificate
	Clock       func() time.Time
	// Elapsed is how long it is since a moment that stays the same, by a clock that
	// nobody sets; nil is the system's. Stamps are made while Clock agrees with it.
	Elapsed func() time.Duration
	Log     *slog.Logger
	// Ready is told the addresses once the server answers.
	Ready func(Addresses)
}

// Addresses are where a server answers, HOST:PORT; those that it does not serve are
// empty.
type Addresses struct {
	Server, Lists, Metrics string
}

type server struct {
	o         ServerOptions
	addresses *callers
	renewals  *callers
	slots     chan struct{}
	healthy   atomic.Bool
	warned    time.Time // of the root's list
	timeSaid  string    // of the time stamp authority, the last warning
	timeWarn  time.Time // and when it was
	steady    steady
	queries   *callers
	answering chan struct{}
	metrics   *metrics

	mu        sync.Mutex       // of own and responder
	own       *tls.Certificate // guarded by mu
	responder *pki.Responder   // guarded by mu
}

// Serve runs a server until ctx ends, which lets requests finish. Reasons:
// [fault.Usage], [fault.AccessDenied] for a key that cannot be read,
// [fault.Unavailable] for an address that cannot be listened on.
func Serve(ctx context.Context, o ServerOptions) error {
	s, err := newServer(o)
	if err != nil {
		return err
	}
	var at Addresses
	var listeners []net.Listener
	var servers []*http.Server
	var serve []func() error
	for _, part := range []struct {
		address string
		handler http.Handler
		secure  bool
		told    *string
	}{
		{o.Listen, s.metrics.timed(s.signed(s.routes())), true, &at.Server},
		{o.ListsListen, s.metrics.timed(s.signed(http.HandlerFunc(s.list))), false, &at.Lists},
		{o.MetricsListen, s.metrics.handler(), false, &at.Metrics},
	} {
		if part.address == "" && !part.secure {
			continue
		}
		l, err := listen(ctx, part.address)
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return err
		}
		*part.told = l.Addr().String()
		hs, bounded := s.httpServer(part.handler), newBounded(l, limits.PKIConnections, limits.PKIAddressConnections)
		listeners, servers = append(listeners, l), append(servers, hs)
		if part.secure {
			serve = append(serve, func() error { return hs.ServeTLS(bounded, "", "") })
		} else {
			serve = append(serve, func() error { return hs.Serve(bounded) })
		}
	}
	ended := make(chan error, len(serve))
	for _, run := range serve {
		go func() { ended <- run() }()
	}
	if o.Ready != nil {
		o.Ready(at)
	}
	err = s.wait(ctx, ended)
	return errors.Join(err, s.drain(ctx, servers))
}

func newServer(o ServerOptions) (*server, error) {
	if !o.CA.Lists() {
		return nil, fault.New(fault.Usage, o.CA.Dir(), "its certificates would not name the list that revokes them").
			WithHint(`say where crl/ is published: "crl_url" in ca.json, or mentatctl pki init --crl-url`)
	}
	if err := o.CA.Unlock(); err != nil {
		return nil, err
	}
	s := &server{
		o:         o,
		steady:    newSteady(o),
		addresses: newCallers(limits.PKIAddressBurst, time.Minute, limits.PKIAddressPerMinute),
		renewals:  newCallers(limits.PKIRenewals, 24*time.Hour, limits.PKIRenewals),
		slots:     make(chan struct{}, limits.PKIIssuing),
		queries:   newCallers(limits.PKIQueryBurst, time.Minute, limits.PKIQueriesPerMinute),
		answering: make(chan struct{}, limits.PKIAnswering),
		metrics:   newMetrics(),
	}
	if _, err := s.certificate(nil); err != nil {
		return nil, err
	}
	if o.CA.Services() {
		if _, err := s.ocspResponder(); err != nil {
			return nil, err
		}
	}
	return s, s.refresh()
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, address, "cannot listen there")
	}
	return l, nil
}

func (s *server) httpServer(h http.Handler) *http.Server {
	hs := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: limits.PKIHeaderTime, ReadTimeout: limits.PKIRequestTime, WriteTimeout: 2 * limits.PKIRequestTime, IdleTimeout: limits.PKIHeaderTime,
		MaxHeaderBytes: 16 * limits.KiB,
		ErrorLog:       slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug), // what clients do wrong
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, GetCertificate: s.certificate,
			// Certificates of developers are not for TLS clients: whose they are is
			// judged by the CA, not by the handshake, which proves that the key is held.
			ClientAuth:             tls.RequestClientCert,
			SessionTicketsDisabled: true,
		},
		Protocols: new(http.Protocols),
	}
	hs.Protocols.SetHTTP1(true) // one request at a time on a connection: what is bounded is what there is
	return hs
}

// wait runs until ctx ends or a listener fails.
func (s *server) wait(ctx context.Context, ended <-chan error) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fault.Wrap(err, fault.Unavailable, s.o.Listen, "the server ended")
		case <-tick.C:
			if err := s.refresh(); err != nil {
				s.o.Log.Error("the revocation lists cannot be kept current", "error", err)
			}
		}
	}
}

func (s *server) refresh() error {
	until, err := s.o.CA.Refresh(s.o.Clock())
	s.healthy.Store(err == nil && s.o.Clock().Before(until))
	s.measure(until)
	if err != nil {
		return err
	}
	return errors.Join(s.watchRootList(s.o.Clock()), s.watchTime(s.o.Clock()))
}

// measure tells the metrics how long lists, of which that of the agent CA ends at
// until, and certificates count.
func (s *server) measure(until time.Time) {
	m, ca := s.metrics, s.o.CA
	m.current.Set(0)
	if s.healthy.Load() {
		m.current.Set(1)
	}
	roots, err := ca.RootListEnd()
	if err != nil {
		roots = time.Time{}
	}
	set(m.lists, "agent", until)
	set(m.lists, "roots", roots)
	set(m.certs, "root", ca.Root().NotAfter)
	set(m.certs, "agent", ca.Agent().NotAfter)
	if c := ca.Time(); c != nil {
		set(m.certs, "timestamp", c.NotAfter)
	}
	if c := s.o.Certificate; c != nil && c.Leaf != nil {
		set(m.certs, "server", c.Leaf.NotAfter)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own != nil {
		set(m.certs, "server", s.own.Leaf.NotAfter)
	}
	if s.responder != nil {
		set(m.certs, "ocsp", s.responder.Cert.NotAfter)
	}
}

// watchTime warns of a time stamp authority that stamps no more, or soon, once a day,
// and of one that was renewed.
func (s *server) watchTime(now time.Time) error {
	warnings, err := s.o.CA.TimeWarnings(now)
	said := strings.Join(warnings, "\n")
	if err != nil || said == "" || said == s.timeSaid && now.Before(s.timeWarn.Add(24*time.Hour)) {
		return err
	}
	s.timeSaid, s.timeWarn = said, now
	for _, w := range warnings {
		s.o.Log.Warn(w)
	}
	return nil
}

// watchRootList warns of a list that the server has no key to renew.
func (s *server) watchRootList(now time.Time) error {
	end, err := s.o.CA.RootListEnd()
	if err != nil || now.Add(rootLeft).Before(end) || now.Before(s.warned.Add(24*time.Hour)) {
		return err
	}
	s.warned = now
	s.o.Log.Warn("the root's revocation list ends: renew it with mentatctl pki crl --root", "until", end)
	return nil
}

func (s *server) drain(ctx context.Context, servers []*http.Server) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	var errs []error
	for _, hs := range servers {
		if err := hs.Shutdown(ctx); err != nil {
			errs = append(errs, hs.Close())
		}
	}
	return errors.Join(errs...)
}

// certificate is the server's own, made anew before it ends.
func (s *server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if s.o.Certificate != nil {
		return s.o.Certificate, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock()
	if s.own != nil && now.Add(ownLeft).Before(s.own.Leaf.NotAfter) && !now.Before(s.own.Leaf.NotBefore) {
		return s.own, nil
	}
	c, err := s.o.CA.IssueServer(s.o.Names, now)
	switch {
	case err == nil:
		s.own = c
	case s.own == nil:
		return nil, err
	default:
		s.o.Log.Error("the server's certificate cannot be renewed", "until", s.own.Leaf.NotAfter, "error", err)
	}
	return s.own, nil
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+enrolPath, s.issuing(s.enrol))
	mux.HandleFunc("POST "+renewPath, s.issuing(s.renew))
	mux.HandleFunc("GET "+listsPath, s.list)
	mux.HandleFunc("GET "+healthPath, s.health)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = read(w, r, "", limits.PKIRequestBytes) // whatever it is
		s.refuse(w, r, fault.New(fault.NotFound, "request", "there is nothing by this name and method"))
	})
	return mux
}

func (s *server) health(w http.ResponseWriter, r *http.Request) {
	if !s.healthy.Load() {
		s.refuse(w, r, fault.New(fault.Unavailable, "revocation list", "is not current"))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	s.metrics.count(r, "")
	_, _ = w.Write([]byte("ok\n")) // the client has gone if this fails
}

// list serves a revocation list as it lies on disk: a revocation is there before
// it is reported to whoever made it.
func (s *server) list(w http.ResponseWriter, r *http.Request) {
	name := ""
	for _, file := range s.o.CA.ListFiles() {
		if r.URL.Path == listsPath+path.Base(file) {
			name = file
		}
	}
	if name == "" || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		s.refuse(w, r, fault.New(fault.NotFound, "request", "there is no such list"))
		return
	}
	f, err := os.Open(filepath.Join(s.o.CA.Dir(), filepath.FromSlash(name)))
	if err != nil {
		s.refuse(w, r, fault.Wrap(err, fault.Internal, name, "cannot be read"))
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		s.refuse(w, r, fault.Wrap(err, fault.Internal, name, "cannot be read"))
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Cache-Control", "no-cache")
	// No modification time: it has a second's grain, and there may be two lists in
	// one.
	w.Header().Set("ETag", `"`+strconv.FormatInt(info.ModTime().UnixNano(), 36)+"-"+strconv.FormatInt(info.Size(), 36)+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
	s.metrics.count(r, "")
}

// issuing bounds what may end in a certificate, and reads the request.
func (s *server) issuing(do func(*http.Request, *request, *x509.CertificateRequest) ([]*x509.Certificate, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		chain, err := s.issue(w, r, do)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		s.metrics.count(r, "")
		s.o.Log.Info("issued", "address", r.RemoteAddr, "path", r.URL.Path, "email", chain[0].EmailAddresses, "serial", chain[0].SerialNumber.Text(16))
		s.reply(w, http.StatusOK, answer{Chain: encodeChain(chain)})
	}
}

func (s *server) issue(w http.ResponseWriter, r *http.Request, do func(*http.Request, *request, *x509.CertificateRequest) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	allowed := s.addresses.allow(callerOf(r.RemoteAddr), s.o.Clock()) // what is malformed counts, too
	body, err := read(w, r, jsonType, limits.PKIRequestBytes)
	if !allowed {
		return nil, tooMany("this address asks too often")
	}
	if err != nil {
		return nil, err
	}
	// Only now, so that who sends slowly takes nobody's place.
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return nil, fault.New(fault.Unavailable, "request", "too many are being served").WithHint("try again in a minute")
	}
	parsed, csr, err := parseRequest(body)
	if err != nil {
		return nil, err
	}
	return do(r, parsed, csr)
}

// read reads the body of a request, which must be of the type. What is refused
// anyway is read, too: a connection that is closed with bytes unread is reset, and
// the answer may be lost with it.
func read(w http.ResponseWriter, r *http.Request, wanted string, limit int64) ([]byte, error) {
	body, err := limits.Read(http.MaxBytesReader(w, r.Body, limit+1), limit)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, "request", "cannot be read")
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != wanted {
		return nil, fault.New(fault.Usage, "request", "is not of type %s", wanted)
	}
	return body, nil
}

func tooMany(format string, args ...any) error {
	return fault.New(fault.ResourceLimit, "request", format, args...).WithHint("try again later")
}

func (s *server) enrol(_ *http.Request, q *request, csr *x509.CertificateRequest) ([]*x509.Certificate, error) {
	return s.o.CA.Enrol(csr, q.Token, pki.LeafOptions{Email: q.Email, Validity: time.Duration(q.ValiditySeconds) * time.Second, Now: s.o.Clock()})
}

func (s *server) renew(r *http.Request, q *request, csr *x509.CertificateRequest) ([]*x509.Certificate, error) {
	if q.Token != "" || q.Email != "" {
		return nil, fault.New(fault.Usage, "request", "a renewal has neither token nor address")
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, fault.New(fault.AccessDenied, "request", "a renewal needs the certificate that is to be renewed")
	}
	old := r.TLS.PeerCertificates[0]
	// Before anything is remembered of it.
	if err := old.CheckSignatureFrom(s.o.CA.Agent()); err != nil {
		return nil, fault.New(fault.IdentityUntrusted, "client certificate", "is none of this CA")
	}
	now := s.o.Clock()
	if !s.renewals.allow(old.SerialNumber.Text(16), now) {
		return nil, tooMany("this certificate was renewed %d times within a day", limits.PKIRenewals)
	}
	return s.o.CA.Renew(csr, old, pki.LeafOptions{Validity: time.Duration(q.ValiditySeconds) * time.Second, Now: now})
}

// refuse tells why, unless it is a failure of the server's own: that is for its
// log.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	f := refusal{Reason: fault.ReasonOf(err)}
	status, ok := statuses[f.Reason]
	var fe *fault.Error
	// What is about a file is the server's own, too.
	if !ok || !errors.As(err, &fe) || filepath.IsAbs(fe.On) {
		s.metrics.count(r, fault.Internal)
		s.o.Log.Error("failed", "address", r.RemoteAddr, "path", r.URL.Path, "error", err)
		s.reply(w, http.StatusInternalServerError, refusal{Reason: fault.Internal, Message: "the certificate authority failed; its log says why"})
		return
	}
	s.metrics.count(r, f.Reason)
	s.o.Log.Warn("refused", "address", r.RemoteAddr, "method", r.Method, "path", fault.OneLine(r.URL.Path), "reason", f.Reason, "error", err)
	bare := *fe
	bare.Hint = ""
	f.Message, f.Hint = bare.Error(), fe.Hint
	if f.Reason == fault.ResourceLimit || f.Reason == fault.Unavailable {
		w.Header().Set("Retry-After", "60")
	}
	s.reply(w, status, f)
}

func (s *server) reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.o.Log.Debug("an answer was not taken", "error", err)
	}
}
