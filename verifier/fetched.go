package verifier

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// FetchedList is a release list that the policy names by its address.
type FetchedList struct{ Name, URL string }

// FetchedReleases are the release lists that somebody has to fetch.
func (p *Policy) FetchedReleases() []FetchedList {
	var all []FetchedList
	for _, s := range p.releases {
		if s.url != "" {
			all = append(all, FetchedList{s.name, s.url})
		}
	}
	return all
}

// fetchedPath remembers from where and when a list was fetched last.
func (s releaseSource) fetchedPath(state string) string {
	return filepath.Join(state, "releases-"+s.name+".fetched")
}

func (v *Verifier) releaseSource(name string) (releaseSource, error) {
	at := slices.IndexFunc(v.policy.releases, func(s releaseSource) bool { return s.name == name && s.url != "" })
	if at < 0 {
		return releaseSource{}, fault.New(fault.Internal, "release list "+name, "is not fetched by this policy")
	}
	return v.policy.releases[at], nil
}

// ReleasesDue tells whether a list has to be fetched: it is not there, came from
// elsewhere, was looked at longer ago than every, or half of its life is over since.
func (v *Verifier) ReleasesDue(name string, every time.Duration) bool {
	s, err := v.releaseSource(name)
	if err != nil {
		return false
	}
	l, err := keptReleases(s.statePath(v.state))
	if err != nil || l == nil {
		return true
	}
	var when int64
	var url string
	data, err := limits.ReadFile(s.fetchedPath(v.state), limits.PolicyBytes)
	if err == nil {
		_, err = fmt.Sscanf(string(data), "%d %s\n", &when, &url)
	}
	fetched, now := time.Unix(when, 0), v.clock()
	if err != nil || url != s.url || fetched.After(now) || !now.Before(fetched.Add(every)) || now.After(l.next) {
		return true
	}
	half := l.document.timestamp.Add(l.next.Sub(l.document.timestamp) / 2)
	return fetched.Before(half) && !now.Before(half)
}

// StoreReleases judges a list that was fetched, and keeps it in the place of the one
// that was believed before, unless that is the same. The caller holds the state
// directory's lock. Reasons: those of a judgement; [fault.RevocationUnknown] for a
// list whose number is not above the known one's, and for one that is past its time.
func (v *Verifier) StoreReleases(name string, data []byte) error {
	s, err := v.releaseSource(name)
	if err != nil {
		return err
	}
	on := "release list " + name
	j := v.aside()
	l, err := j.believe(s, s.url, data)
	if err != nil {
		return fault.Wrap(err, fault.ReasonOf(err), on, "cannot be believed")
	}
	path := s.statePath(v.state)
	known, err := keptReleases(path)
	switch {
	case err != nil:
		return fault.Wrap(err, fault.RevocationUnknown, on, "the one that was believed before cannot be read").WithHint("repair or remove %s", path)
	case known != nil && known.document.digest == l.document.digest:
	case known != nil && l.Number <= known.Number:
		return fault.New(fault.RevocationUnknown, s.url, "has the number %d, which is not above %d, which is known already", l.Number, known.Number)
	default:
		if err := atomicfile.Write(path, data, 0o644); err != nil {
			return fault.Wrap(err, fault.Internal, path, "cannot write the release list")
		}
	}
	// Kept even if it is late: it shuts out those before it.
	if err := j.due(on, l); err != nil {
		return err
	}
	stamp := s.fetchedPath(v.state)
	if err := atomicfile.Write(stamp, fmt.Appendf(nil, "%d %s\n", j.now.Unix(), s.url), 0o644); err != nil {
		return fault.Wrap(err, fault.Internal, stamp, "cannot remember when the release list was fetched")
	}
	return nil
}

// fetched is the list that was fetched and believed last, if it still is believed.
func (j *judge) fetched(s releaseSource) (*releaseList, error) {
	on, path := "release list "+s.name, s.statePath(j.state)
	j.rest(map[string]string{path: Stamp(path)})
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.RevocationUnknown, on, "was not fetched from %s yet", s.url).WithHint("its server must answer once before anything runs")
	}
	l, err := j.believed(s, path)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, on, "the one that was fetched cannot be used").
			WithHint("get a new one from its signer; if that one was no signer of yours, remove %s", path)
	}
	return l, j.due(on, l)
}
