package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/capability/audit/chain"
	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/version"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

// Options are what the service is made from.
type Options struct {
	// Config is the node's configuration.
	Config *nodeconfig.Config
	// Clock tells the time; nil is the system's.
	Clock func() time.Time
	// Log receives what an operator should know.
	Log *slog.Logger
	// Interval is how often records are collected, Refresh how often revocation
	// lists are looked at, Anchor how often the log is anchored; 0 is the default.
	Interval, Refresh, Anchor time.Duration
	// Ready, if not nil, is called with the address that is served once records are
	// collected.
	Ready func(address string)
}

const (
	defaultInterval = 500 * time.Millisecond
	defaultRefresh  = 10 * time.Minute
	defaultAnchor   = time.Minute
	// refreshTime bounds one round of refreshing.
	refreshTime = 2 * time.Minute
	// unhealthyAfter is how long nothing can be collected before the service says
	// that it is not well.
	unhealthyAfter = 30 * time.Second
	shutdownTime   = 5 * time.Second
)

// service is one running node service.
type service struct {
	Options
	collector *collector
	log       *chain.Log
	metrics   *metrics

	mu sync.Mutex
	// collected is when collecting last succeeded, failure why it does not.
	collected time.Time // guarded by mu
	failure   error     // guarded by mu
}

// Run runs the service until the context ends. [fault.Exists] means that another
// one runs already.
func Run(ctx context.Context, o Options) error {
	s, err := open(o)
	if err != nil {
		return err
	}
	listener, err := listen(s.Config.Service.Listen)
	if err != nil {
		return errors.Join(err, s.log.Close())
	}
	server := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
	var wg sync.WaitGroup
	served := make(chan error, 1)
	wg.Go(func() { served <- server.Serve(listener) })
	wg.Go(func() { s.every(ctx, s.Refresh, func() { s.refresh(ctx) }) })
	wg.Go(func() { s.every(ctx, s.Refresh, s.sweep) })
	wg.Go(func() { s.every(ctx, s.Anchor, s.anchor) })
	s.note("the node service " + version.Version + " began")
	s.collect()
	if s.Ready != nil {
		s.Ready(listener.Addr().String())
	}
	err = s.loop(ctx, served)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	err = errors.Join(err, server.Shutdown(stop))
	wg.Wait()
	s.collect()
	s.note("the node service ended")
	s.anchor()
	return errors.Join(err, s.log.Close())
}

func open(o Options) (*service, error) {
	if o.Config == nil {
		return nil, fault.New(fault.Internal, "node service", "has no configuration")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		have *time.Duration
		want time.Duration
	}{{&o.Interval, defaultInterval}, {&o.Refresh, defaultRefresh}, {&o.Anchor, defaultAnchor}} {
		if *d.have == 0 {
			*d.have = d.want
		}
	}
	spools := audit.Spools(o.Config.Audit.Spool)
	if err := spools.Make(); err != nil {
		return nil, err
	}
	log, err := chain.Open(o.Config.Audit.Log, chain.Options{Clock: o.Clock, Anchor: o.Config.Audit.Anchor})
	if err != nil {
		return nil, err
	}
	s := &service{Options: o, log: log, metrics: newMetrics(), collected: o.Clock()}
	s.collector = newCollector(spools, log, o.Clock, o.Log, s.metrics.observe)
	if err := s.collector.forget(); err != nil {
		return nil, errors.Join(fault.Wrap(err, fault.Unavailable, string(spools), "cannot list the runs whose records wait"), log.Close())
	}
	return s, nil
}

// loop collects until the context ends or the server fails.
func (s *service) loop(ctx context.Context, served <-chan error) error {
	ticker := time.NewTicker(s.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fault.Wrap(err, fault.Internal, s.Config.Service.Listen, "cannot serve metrics any more")
		case <-ticker.C:
			s.collect()
		}
	}
}

// every calls f at once and then in an interval, until the context ends.
func (s *service) every(ctx context.Context, interval time.Duration, f func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// collect takes what waits, in as many passes as that needs.
func (s *service) collect() {
	var err error
	for more, passes := true, 0; more && err == nil && passes < 16; passes++ {
		more, err = s.collector.pass()
	}
	s.metrics.sequence.Set(float64(s.log.Head().Seq))
	s.metrics.runs.Set(float64(len(s.collector.runs)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.failure == nil {
		s.Log.Error("cannot collect audit records", "error", err)
	}
	s.failure = err
	if err == nil {
		s.collected = s.Clock()
	}
}

// note records something about the service itself.
func (s *service) note(message string) {
	n := &audit.Note{Timestamp: audit.At(s.Clock()), EventType: audit.EventService, Message: message}
	if err := s.log.Append(chain.Pending{Record: n}); err != nil {
		s.Log.Error("cannot write to the audit log", "error", err)
		return
	}
	s.metrics.observe(n)
}

func (s *service) anchor() {
	if err := s.log.Anchor(); err != nil {
		s.Log.Error("the audit log is not anchored", "error", err)
	}
}

// refresh fetches the revocation lists, release lists and OCSP answers that are due.
// The gates do so themselves where nobody did; with the service they need not.
func (s *service) refresh(ctx context.Context) {
	if s.Config.Verify.Policy == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refreshTime)
	defer cancel()
	v, err := verifier.Open(s.Config.Verify, s.Clock, timestamp.Reader{})
	if err == nil {
		err = fetch.Refresh(ctx, v, s.Config.Verify, nil, false)
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	s.metrics.refresh(err, s.Clock())
	if err != nil {
		s.Log.Warn("revocation lists not refreshed", "error", err)
	}
	if v != nil && v.Policy() != nil {
		s.refreshOCSP(ctx, v)
	}
}

// refreshOCSP keeps the answers new that the gates keep.
func (s *service) refreshOCSP(ctx context.Context, v *verifier.Verifier) {
	kept, err := fetch.RefreshOCSP(ctx, v, s.Config.Verify, nil)
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	s.metrics.refreshOCSP(kept, err, s.Clock())
	if err != nil {
		s.Log.Warn("OCSP answers not refreshed", "error", err)
	}
}

// sweep removes from the media store what the capability policy no longer keeps.
// The policy is read each time: it may have been changed.
func (s *service) sweep() {
	p, err := policy.Open(s.Config.Capability)
	if err != nil {
		s.Log.Warn("the media store is not swept", "error", err)
		return
	}
	serving := p.Serving()
	if _, err := os.Stat(serving.MediaDir); serving.MediaDir == "" || errors.Is(err, fs.ErrNotExist) {
		return
	}
	store, err := media.OpenDir(serving.MediaDir)
	if err != nil {
		s.Log.Warn("the media store is not swept", "error", err)
		return
	}
	removed, err := store.Sweep(s.Clock(), time.Duration(serving.MediaKeepDays)*24*time.Hour)
	if err := errors.Join(err, store.Close()); err != nil {
		s.Log.Warn("the media store is not wholly swept", "error", err)
	}
	if removed > 0 {
		s.Log.Info("removed from the media store", "files", removed)
	}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		failure, since := s.failure, s.Clock().Sub(s.collected)
		s.mu.Unlock()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if since > unhealthyAfter {
			w.WriteHeader(http.StatusServiceUnavailable)
			text := "nothing was collected for " + since.Truncate(time.Second).String()
			if failure != nil {
				text += ": " + fault.OneLine(failure.Error())
			}
			_, _ = w.Write([]byte(text + "\n")) // who asked may be gone
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}

// listen opens what metrics are served on: a socket that only root reaches, or an
// address of this machine.
func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return listenUnix(path)
	}
	host, _, err := net.SplitHostPort(address)
	addr, addrErr := netip.ParseAddr(host)
	if err != nil || host != "localhost" && (addrErr != nil || !addr.IsLoopback()) {
		return nil, fault.New(fault.PolicyInvalid, address, "service.listen is neither unix:PATH nor a loopback address with a port").
			WithHint("metrics name every agent of the node; let a collector on the node fetch them")
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, address, "cannot listen for requests of metrics")
	}
	return l, nil
}

func listenUnix(path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.New(fault.PolicyInvalid, path, "the socket's path must be absolute")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, path, "cannot make the socket's directory")
	}
	// The log's lock is held: a socket that is there is of a service that is gone.
	// Anything else is not removed.
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fault.Wrap(err, fault.Unavailable, path, "cannot remove an old socket")
		}
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, path, "cannot listen for requests of metrics")
	}
	return l, nil
}
