package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

const (
	// endsSoon is how long before its end a certificate is warned of.
	endsSoon = 30 * 24 * time.Hour
	// clockSlack is what two clocks may be apart.
	clockSlack = 5 * time.Minute
)

// checkTime holds the clock to what the node knows to be past.
func checkTime(r *Report, now time.Time, cfg *nodeconfig.Config) {
	sound := true
	for _, path := range []string{cfg.Verify.Policy, cfg.Verify.State, cfg.Dir} {
		info, err := os.Stat(path)
		if path != "" && err == nil && info.ModTime().After(now.Add(clockSlack)) {
			sound = false
			r.fail(checkClock, path, fmt.Sprintf("was changed at %s, the clock says %s", stamp(info.ModTime()), stamp(now)),
				"with a clock that is behind, what has expired and what was revoked counts again", "set the clock, and have it kept by NTP")
		}
	}
	if state, err := unix.Adjtimex(&unix.Timex{}); err != nil || state == unix.TIME_ERROR {
		r.warn(checkClock, "kernel", "the clock is not synchronised", "expiry, revocation and enforcement dates are judged by it", "run an NTP client")
	} else if sound {
		r.ok(checkClock, "kernel", "synchronised, %s", stamp(now))
	}
}

// checkTrust looks at policy, trust stores and revocation data. It returns the
// verifier that a gate would make, nil if none could. env is containerd's environment,
// which its gates have, too.
func checkTrust(ctx context.Context, r *Report, cfg *nodeconfig.Config, o Options, env []string) *verifier.Verifier {
	if cfg.Verify.Policy == "" {
		r.fail(checkPolicy, cfg.Dir, "there is no policy: the node is in developer mode", "everything runs that is not broken, whoever signed it or nobody did",
			"write policy.yaml, or have mentatctl pki policy write a first one")
		return nil
	}
	v, err := verifier.Open(cfg.Verify, o.Clock, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil {
		r.fail(checkPolicy, cfg.Verify.Policy, "cannot be used: "+err.Error(), "the node refuses every image", "repair it; mentatctl policy check reads it as a node does")
		return nil
	}
	r.ok(checkPolicy, cfg.Verify.Policy, "well formed, with its trust stores")
	if v.Policy().OnUnfetchable() == verifier.Defer {
		r.note(checkPolicy, "on_unfetchable", "is defer", "what the pull gate cannot fetch is pulled; it is judged when it starts under "+mentatRuntime+", and only then")
	}
	for _, path := range []string{cfg.Verify.Policy, cfg.Capability.Policy} {
		if path != "" {
			checkPath(r, path)
		}
	}
	checkTree(r, cfg.Verify.Trust)
	for _, path := range []string{cfg.Verify.Policy, cfg.Capability.Policy} {
		lint(r, path, o.Lint)
	}
	checkEnforced(r, v, cfg, o.Clock())
	checkCertificates(r, v, o.Clock())
	failed := refresh(ctx, v, cfg.Verify, env)
	checkLists(r, v, cfg, o.Clock(), failed)
	checkReleaseLists(r, v, o.Clock(), failed)
	return v
}

// refresh does what every gate does before it judges, and as a gate does it: within its
// time, through the proxies of its environment, and for what is due only. A list that
// nobody fetched yet is no fault of the node.
func refresh(ctx context.Context, v *verifier.Verifier, cfg nodeconfig.Verify, env []string) refreshed {
	// The shortest of the gates' times: what does not come within it does not come for
	// every one of them.
	ctx, cancel := context.WithTimeout(ctx, limits.StartRefreshTime)
	defer cancel()
	client := clientOf(env)
	defer client.CloseIdleConnections()
	switch err := fetch.Refresh(ctx, v, cfg, client, false).(type) { //nolint:errorlint // the list of them itself, not one in it
	case nil:
		return nil
	case *fault.Error: // it has causes of its own
		return refreshed{err}
	case interface{ Unwrap() []error }:
		return err.Unwrap()
	default:
		return refreshed{err}
	}
}

// clientOf has the proxies that an environment names.
func clientOf(env []string) *http.Client {
	either := func(name string) string {
		if v := lookup(env, name); v != "" {
			return v
		}
		return lookup(env, strings.ToLower(name))
	}
	proxies := httpproxy.Config{HTTPProxy: either("HTTP_PROXY"), HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}
	return fetch.ClientThrough(proxies.ProxyFunc())
}

// refreshed are the errors of a refresh.
type refreshed []error

// of is what went wrong with one source, by what its errors say they are on: what the
// node itself could not do concerns every source.
func (errs refreshed) of(names ...string) error {
	var found []error
	for _, err := range errs {
		named := slices.ContainsFunc(names, func(name string) bool { return name != "" && strings.Contains(err.Error(), name+": ") })
		if named || fault.ReasonOf(err) == fault.Internal {
			found = append(found, err)
		}
	}
	return errors.Join(found...)
}

// checkReleaseLists: without a list that counts, every agent is refused.
func checkReleaseLists(r *Report, v *verifier.Verifier, now time.Time, failed refreshed) {
	const do = "get a new list from its signer (mentatctl trust releases)"
	urls := map[string]string{}
	for _, l := range v.Policy().FetchedReleases() {
		urls[l.Name] = l.URL
	}
	for _, l := range v.ReleaseLists() {
		url := urls[l.Name]
		err := failed.of(url, "release list "+l.Name)
		switch left := l.NextUpdate.Sub(now); {
		case l.Err != nil && url != "" && err != nil:
			r.fail(checkReleases, l.Name, l.Err.Error()+"; it was tried now: "+err.Error(), "every agent is refused until a gate, or the node service, gets one",
				"look why "+url+" does not give one to this node")
		case l.Err != nil:
			r.fail(checkReleases, l.Name, l.Err.Error(), "every agent is refused", do)
		case len(l.Warnings) > 0:
			r.warn(checkReleases, l.Name, strings.Join(l.Warnings, "; "), "after the policy's grace every agent is refused, and what a newer list withdraws still runs", do)
		default:
			r.ok(checkReleases, l.Name, "number %d, until %s, in %d days", l.Number, stamp(l.NextUpdate), int(left/(24*time.Hour)))
		}
	}
}

// checkEnforced tells whether attestations are required yet, and whether the clock is
// behind the latest time that the node's gates saw.
func checkEnforced(r *Report, v *verifier.Verifier, cfg *nodeconfig.Config, now time.Time) {
	stage, from, err := v.Staging()
	const on = "attestation_required"
	switch {
	case err != nil:
		r.warn(checkEnforcement, on, "is enforced at once: "+err.Error(), "a date counts only where the latest time can be remembered", "repair the directory verify.state")
	case stage == verifier.StageOff:
		r.fail(checkEnforcement, on, "is not enabled", "what has no attestation runs, and no date changes that", "enable it, with an enforcement_date if it shall begin later")
	case stage != verifier.StageEnforced:
		r.warn(checkEnforcement, on, fmt.Sprintf("is %s, and enforced from %s", stage, stamp(from)), "what has no attestation runs until then", "sign what the warnings of the gates name; mentatctl verify --at tells what will break")
	default:
		r.ok(checkEnforcement, on, "enforced")
	}
	if seen, err := verifier.LatestSeen(cfg.Verify.State); err == nil && seen.After(now.Add(clockSlack)) {
		r.fail(checkClock, cfg.Verify.State, fmt.Sprintf("the gates saw %s, the clock says %s", stamp(seen), stamp(now)),
			"with a clock that is behind, what has expired and what was revoked counts again", "set the clock, and have it kept by NTP; if the time that was seen was wrong, remove the file latest-time there")
	}
}

func lint(r *Report, path string, lint func(string) ([]string, error)) {
	if path == "" || lint == nil {
		return
	}
	warnings, err := lint(path)
	if err != nil {
		r.fail(checkLint, path, err.Error(), "a node refuses to start what depends on it", "repair it")
		return
	}
	for _, w := range warnings {
		r.warn(checkLint, path, w, "it does not do what it seems to", "change it, or take it out")
	}
	if len(warnings) == 0 {
		r.ok(checkLint, path, "says nothing that has no effect")
	}
}

func checkCertificates(r *Report, v *verifier.Verifier, now time.Time) {
	for _, name := range slices.Sorted(maps.Keys(v.Stores())) {
		for _, c := range v.Stores()[name].Roots() {
			checkCertificate(r, "trust store "+name, c, now)
		}
	}
	for _, src := range v.Policy().CRLs() {
		if src.Certificate == "" {
			continue
		}
		issuers, err := src.Issuers(v.Stores())
		if err != nil {
			r.fail(checkCert, src.Certificate, err.Error(), "the issuer's revocation list cannot be checked", "name the issuer's certificate")
			continue
		}
		for _, c := range issuers {
			checkCertificate(r, src.Certificate, c, now)
		}
	}
}

func checkCertificate(r *Report, in string, c *x509.Certificate, now time.Time) {
	on := in + ": " + c.Subject.String()
	const why = "no agent that depends on it is trusted after that"
	switch left := c.NotAfter.Sub(now); {
	case now.Before(c.NotBefore):
		r.fail(checkCert, on, "is not valid before "+stamp(c.NotBefore), "no agent that depends on it is trusted until then", "set the clock, or use another certificate")
	case left < 0:
		r.fail(checkCert, on, "ended at "+stamp(c.NotAfter), why, "replace it")
	case left < endsSoon:
		r.warn(checkCert, on, fmt.Sprintf("ends at %s, in %d days", stamp(c.NotAfter), int(left/(24*time.Hour))), why, "put its successor beside it")
	default:
		r.ok(checkCert, on, "until %s", stamp(c.NotAfter))
	}
}

func checkLists(r *Report, v *verifier.Verifier, cfg *nodeconfig.Config, now time.Time, failed refreshed) {
	sources, asked := v.Policy().CRLs(), v.Policy().OCSP()
	switch {
	case len(sources) > 0:
	case len(asked) > 0:
		r.note(checkCRL, cfg.Verify.Policy, "names OCSP responders and no revocation lists", "only agents whose every issuer has a responder there can be trusted")
	default:
		r.warn(checkCRL, cfg.Verify.Policy, "names no revocation lists", "no agent can be trusted without one", "name them under revocation.crls")
	}
	for _, src := range sources {
		checkList(r, src, v, now, failed.of(src.URL, src.File, src.Issuer))
	}
}

// checkList looks at the list of one source, with the eyes of a judgement; failed is why
// it could not be refreshed.
func checkList(r *Report, src verifier.CRLSource, v *verifier.Verifier, now time.Time, failed error) {
	grace := v.Policy().Grace()
	issuers, err := src.Issuers(v.Stores())
	if err != nil {
		r.fail(checkCRL, src.Issuer, "its lists cannot be checked: "+err.Error(), "every agent of this issuer is refused", "name the issuer's certificate beside the list")
		return
	}
	if len(issuers) == 0 { // its issuer shows in a chain only: what the file says is not proven here
		list, err := readList509(src.File)
		if err != nil {
			r.fail(checkCRL, src.Issuer, fmt.Sprintf("no list from %s is at hand: %v", src.File, err), "every agent of this issuer is refused, unless the gates remember a list from before", "put its issuer's list there (mentatctl pki crl)")
			return
		}
		checkAge(r, src, list.ThisUpdate, list.NextUpdate, grace, now)
		return
	}
	var errs []error
	for _, issuer := range issuers {
		ix, err := v.RevocationList(issuer)
		if ix == nil {
			errs = append(errs, err)
			continue
		}
		checkAge(r, src, ix.ThisUpdate(), ix.NextUpdate(), grace, now)
		switch {
		case now.After(ix.NextUpdate().Add(grace)):
			if src.URL != "" && failed != nil {
				r.note(checkCRL, src.Issuer, "no other list can be fetched now: "+failed.Error(), "agents of this issuer are refused until one comes")
			}
		case src.URL != "" && failed != nil:
			r.note(checkCRL, src.Issuer, "the list cannot be refreshed now: "+failed.Error(), "the one at hand is used: what was revoked since it was made is not known here")
		case err != nil:
			r.warn(checkCRL, src.Issuer, "the list that the gates remember from before is used: "+err.Error(), "what was revoked since is not known here, and no agent starts after its end", "put its issuer's newest list into "+src.File+" (mentatctl pki crl)")
		}
		return
	}
	noList(r, src, cmp.Or(errors.Join(errs...), errNone), failed)
}

// noList is what follows where a judgement finds no list.
func noList(r *Report, src verifier.CRLSource, err, failed error) {
	const why = "every agent of this issuer is refused"
	switch {
	case src.URL == "":
		r.fail(checkCRL, src.Issuer, fmt.Sprintf("no list from %s is at hand: %v", src.File, err), why, "put its issuer's list there (mentatctl pki crl)")
	case failed != nil:
		r.fail(checkCRL, src.Issuer, fmt.Sprintf("no list is at hand: %v, and none can be fetched now: %v", err, failed), why+" until a gate, or the node service, gets one",
			"look why "+src.URL+" does not give one to this node")
	default:
		r.fail(checkCRL, src.Issuer, fmt.Sprintf("no list from %s is at hand: %v", src.URL, err), why, "look at the directory verify.state and at "+src.URL)
	}
}

var errNone = errors.New("nothing was kept under verify.state")

func readList509(path string) (*x509.RevocationList, error) {
	data, err := limits.ReadFile(path, limits.CRLBytes)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	return x509.ParseRevocationList(data)
}

func checkAge(r *Report, src verifier.CRLSource, made, next time.Time, grace time.Duration, now time.Time) {
	issuer := src.Issuer
	do := "have its issuer publish a new one (mentatctl pki crl) at " + src.URL
	if src.URL == "" {
		do = "put a new one from its issuer (mentatctl pki crl) into " + src.File
	}
	switch {
	case made.After(now.Add(clockSlack)):
		r.fail(checkClock, "revocation list of "+issuer, fmt.Sprintf("was made at %s, the clock says %s", stamp(made), stamp(now)),
			"with a clock that is behind, what has expired counts again", "set the clock, and have it kept by NTP")
	case now.After(next.Add(grace)):
		r.fail(checkCRL, issuer, fmt.Sprintf("the list is out of date since %s, the grace of %s included", stamp(next), grace), "every agent of this issuer is refused", do)
	case now.After(next):
		r.warn(checkCRL, issuer, fmt.Sprintf("the list is out of date since %s; the grace holds until %s", stamp(next), stamp(next.Add(grace))),
			"no agent of this issuer counts as verified, and after the grace none runs", do)
	default:
		r.ok(checkCRL, issuer, "made %s ago, until %s", now.Sub(made).Round(time.Minute), stamp(next))
	}
}
