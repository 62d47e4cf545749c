package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// A node's spool has one spool for all preparations and a directory for each run:
//
//	node/                       written by root
//	run/KEY/identity.json       written by root
//	run/KEY/in/                 written by the run's host, mounted into its container
const (
	nodeDir      = "node"
	runDir       = "run"
	inDir        = "in"
	identityName = "identity.json"
	// identityBytes bounds an identity.
	identityBytes = 64 * limits.KiB
	// pruneAtOnce bounds how many runs one preparation removes.
	pruneAtOnce = 4
)

// Spools is a node's spool directory.
type Spools string

// Make makes the directory.
func (s Spools) Make() error {
	for _, dir := range []string{nodeDir, runDir} {
		if err := os.MkdirAll(filepath.Join(string(s), dir), 0o700); err != nil {
			return fault.Wrap(err, fault.Unavailable, string(s), "cannot make the directory for audit records")
		}
	}
	return nil
}

// Node is the directory of the spool of all preparations.
func (s Spools) Node() string { return filepath.Join(string(s), nodeDir) }

// In is the directory into which a run's host writes.
func (s Spools) In(key string) string { return filepath.Join(string(s), runDir, key, inDir) }

// Append adds records of a preparation.
func (s Spools) Append(records ...any) error {
	lines := make([][]byte, len(records))
	for i, r := range records {
		var err error
		if lines[i], err = json.Marshal(r); err != nil {
			return fault.Wrap(err, fault.Internal, string(s), "cannot encode a record")
		}
	}
	return OpenShared(s.Node(), limits.AuditNodeBytes).Append(lines...)
}

var runKey = regexp.MustCompile(`^[0-9a-f]{32}$`)

// NewKey names a run. Names sort by time.
func NewKey(now time.Time) string { return fmt.Sprintf("%016x%s", now.UnixNano(), newID()) }

// Add makes the directory of a run, whose host is the user with that id.
func (s Spools) Add(id Identity, uid, gid int) error {
	dir := filepath.Join(string(s), runDir, id.Key)
	data, err := json.Marshal(id)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, identityName), data, 0o600), os.Mkdir(s.In(id.Key), 0o700))
	}
	if err == nil {
		err = os.Chown(s.In(id.Key), uid, gid)
	}
	if err != nil {
		return errors.Join(fault.Wrap(err, fault.Unavailable, dir, "cannot make the directory for a run's records"), os.RemoveAll(dir))
	}
	return nil
}

// Replace writes anew what is known of a run whose directory is there already. It
// comes before the old mark goes: who misses the mark reads that there will be
// another.
func (s Spools) Replace(id Identity) error {
	id.Again = true
	dir := filepath.Join(string(s), runDir, id.Key)
	data, err := json.Marshal(id)
	if err == nil {
		err = replace(filepath.Join(dir, identityName), data)
	}
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, dir, "cannot write whose records these are")
	}
	return nil
}

// replace is done often, on the way to a start: that it reaches the disk is not
// waited for.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Remove removes a run's directory with all in it.
func (s Spools) Remove(key string) error {
	return os.RemoveAll(filepath.Join(string(s), runDir, key))
}

// Runs lists the runs, the oldest first.
func (s Spools) Runs() ([]string, error) {
	d, err := os.Open(filepath.Join(string(s), runDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Identity reads what root wrote about a run.
func (s Spools) Identity(key string) (*Identity, error) {
	path := filepath.Join(string(s), runDir, key, identityName)
	if !runKey.MatchString(key) {
		return nil, fault.New(fault.NotFound, path, "it is no run's")
	}
	data, err := limits.ReadFile(path, identityBytes)
	if err != nil {
		return nil, err
	}
	id := new(Identity)
	if err := json.Unmarshal(data, id); err != nil || id.Key != key {
		return nil, fault.Wrap(err, fault.Internal, path, "the record of whose records these are is damaged")
	}
	return id, nil
}

// settling is how long a preparation may take from a run's directory to its mark,
// which comes last.
const settling = 5 * time.Second

// Over reports whether the run's container is not there: gone or, unless
// [Identity.Settled], still being prepared.
func (id *Identity) Over() bool {
	data, err := limits.ReadFile(id.Mark, identityBytes)
	return err != nil || string(data) != id.Key
}

// Settled reports whether the run's preparation is over. A clock that was set back
// says that it is.
func (id *Identity) Settled(now time.Time) bool {
	age := now.Sub(id.Created.Time)
	return age < 0 || age >= settling
}

// Prune removes the oldest runs that are over where there are more than
// [limits.AuditRuns], a few at a time, and leaves a record of what is lost. Where
// records are collected there never are that many.
func (s Spools) Prune(now time.Time) error {
	few, err := s.few()
	if few || err != nil {
		return err
	}
	names, err := s.Runs()
	if err != nil || len(names) <= limits.AuditRuns {
		return err
	}
	lost, removed := int64(0), 0
	for _, key := range names[:min(len(names), len(names)-limits.AuditRuns+pruneAtOnce, 8*pruneAtOnce)] {
		if removed == pruneAtOnce {
			break
		}
		if id, err := s.Identity(key); err == nil && !id.Over() {
			continue
		}
		lines := s.waiting(key)
		if err := s.Remove(key); err != nil {
			return err
		}
		lost += lines
		removed++
	}
	if removed == 0 {
		return nil
	}
	return s.Append(Loss{Timestamp: At(now), EventType: EventLoss, Lost: lost,
		Reason: fmt.Sprintf("the records of %d old runs were removed: nobody collected them", removed)})
}

// waiting counts a run's records.
func (s Spools) waiting(key string) int64 {
	files, err := spoolFiles(s.In(key))
	if err != nil {
		return 0
	}
	var total int64
	for _, f := range files {
		h, lines := countLines(filepath.Join(s.In(key), f.name()))
		total += lines
		for _, d := range h.Dropped {
			total += d.Lines
		}
	}
	return total
}
