package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
)

const (
	// refreshEvery is how old a fetched list gets before it is fetched again,
	// even if it counts for longer: revoking publishes a new one at once.
	refreshEvery = time.Hour
	// requestTimeout bounds one request of the default client.
	requestTimeout = 5 * time.Second
	maxRedirects   = 3
	lockFile       = ".lock"
)

// Refresh fetches the revocation lists and release lists of the verifier's policy that
// are due, or all with force, and writes indexes and lists into cfg.State. Without a
// policy there are none. A nil client is one with short time-outs. It returns the joined errors of the
// sources that failed: [fault.Unavailable] for a server, [fault.RevocationUnknown]
// for a list that cannot be used, [fault.PolicyInvalid] for the configuration.
func Refresh(ctx context.Context, v *verifier.Verifier, cfg nodeconfig.Verify, client *http.Client, force bool) error {
	p := v.Policy()
	if p == nil || len(p.CRLs())+len(p.FetchedReleases()) == 0 {
		return nil
	}
	if client == nil {
		client = newClient()
	}
	if err := os.MkdirAll(cfg.State, 0o755); err != nil {
		return fault.Wrap(err, fault.Internal, cfg.State, "cannot make the directory for revocation data")
	}
	r := refresher{client: client, state: cfg.State, now: v.Now(), force: force}
	sources := p.CRLs()
	errs := make([]error, len(sources))
	var wg sync.WaitGroup
	for i, src := range sources {
		wg.Go(func() { errs[i] = r.source(ctx, src, v.Stores()) })
	}
	wg.Wait()
	// After the revocation lists, to which their signers are held.
	for _, l := range p.FetchedReleases() {
		if !force && !v.ReleasesDue(l.Name, refreshEvery) || !force && failures(r.state).recent(l.URL, r.now) && r.released(v, l.Name) {
			continue
		}
		err := r.releases(ctx, v, l)
		failures(r.state).note(l.URL, err, r.now)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// releases fetches a release list, from the policy's address and nowhere else: a
// redirection is an answer that is none.
func (r refresher) releases(ctx context.Context, v *verifier.Verifier, l verifier.FetchedList) error {
	client := *r.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	data, err := get(ctx, &client, l.URL, "release list", limits.ReleasesBytes)
	if err != nil {
		return err
	}
	unlock, err := lockedfile.MutexAt(filepath.Join(r.state, lockFile)).Lock()
	if err != nil {
		return fault.Wrap(err, fault.Internal, r.state, "cannot lock the revocation data")
	}
	defer unlock()
	return v.StoreReleases(l.Name, data)
}

type refresher struct {
	client *http.Client
	state  string
	now    time.Time
	force  bool
}

func (r refresher) source(ctx context.Context, src verifier.CRLSource, stores map[string]*verifier.Store) error {
	issuers, err := src.Issuers(stores)
	if err != nil || len(issuers) == 0 {
		return err // a file whose issuer only a chain can show is read at the gate
	}
	if !r.anyDue(src, issuers) {
		return nil
	}
	if src.File != "" {
		return r.store(issuers, func(issuer *x509.Certificate) (*verifier.CRLIndex, error) {
			return verifier.CompileFile(src.File, issuer, r.now)
		})
	}
	if !r.force && failures(r.state).recent(src.URL, r.now) && r.counts(src, issuers) {
		return nil
	}
	data, err := get(ctx, r.client, src.URL, "revocation list", limits.CRLBytes)
	if err == nil {
		err = r.store(issuers, func(issuer *x509.Certificate) (*verifier.CRLIndex, error) {
			return verifier.CompileCRL(data, issuer, verifier.CRLOrigin{URL: src.URL, Fetched: r.now.UTC()}, r.now)
		})
	}
	failures(r.state).note(src.URL, err, r.now)
	return err
}

// counts tells whether a list from the source is at hand that has not ended.
func (r refresher) counts(src verifier.CRLSource, issuers []*x509.Certificate) bool {
	return slices.ContainsFunc(issuers, func(issuer *x509.Certificate) bool {
		ix, err := verifier.LoadIndex(r.state, issuer)
		return err == nil && ix != nil && ix.Origin().URL == src.URL && !r.now.After(ix.NextUpdate())
	})
}

// released is the same of a release list.
func (r refresher) released(v *verifier.Verifier, name string) bool {
	return slices.ContainsFunc(v.ReleaseLists(), func(l verifier.ReleaseList) bool {
		return l.Name == name && l.Err == nil && !r.now.After(l.NextUpdate)
	})
}

// anyDue tells whether an index is missing, damaged, or old.
func (r refresher) anyDue(src verifier.CRLSource, issuers []*x509.Certificate) bool {
	for _, issuer := range issuers {
		ix, err := verifier.LoadIndex(r.state, issuer)
		if r.force || err != nil || ix == nil || due(ix, src, r.now) {
			return true
		}
	}
	return false
}

func due(ix *verifier.CRLIndex, src verifier.CRLSource, now time.Time) bool {
	if src.File != "" {
		return !ix.Current(src.File)
	}
	origin := ix.Origin()
	if origin.URL != src.URL || origin.Fetched.After(now) {
		return true
	}
	// A short-lived list is fetched anew at half its life.
	half := ix.ThisUpdate().Add(ix.NextUpdate().Sub(ix.ThisUpdate()) / 2)
	return !now.Before(origin.Fetched.Add(refreshEvery)) || origin.Fetched.Before(half) && !now.Before(half) || now.After(ix.NextUpdate())
}

// store compiles a list for the issuer that signed it and writes the index.
// Several roots of one name are rare, and only one of them signed.
func (r refresher) store(issuers []*x509.Certificate, compile func(*x509.Certificate) (*verifier.CRLIndex, error)) error {
	unlock, err := lockedfile.MutexAt(filepath.Join(r.state, lockFile)).Lock()
	if err != nil {
		return fault.Wrap(err, fault.Internal, r.state, "cannot lock the revocation data")
	}
	defer unlock()
	var errs []error
	for _, issuer := range issuers {
		ix, err := compile(issuer)
		if err == nil {
			return verifier.StoreIndex(r.state, issuer, ix)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// get fetches a list of at most so many bytes.
func get(ctx context.Context, client *http.Client, url, what string, most int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, url, "is no address")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, url, "cannot fetch the %s", what)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fault.New(fault.Unavailable, url, "cannot fetch the %s: the server says %s", what, resp.Status)
	}
	data, err := limits.Read(resp.Body, most)
	if errors.Is(err, limits.ErrExceeded) {
		return nil, fault.Wrap(err, fault.RevocationUnknown, url, "the %s cannot be used", what)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, url, "the %s breaks off", what)
	}
	return data, nil
}
