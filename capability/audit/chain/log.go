package chain

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Options say how a log is kept. The zero values of all but Clock mean the
// defaults.
type Options struct {
	// Clock tells the time.
	Clock func() time.Time
	// SegmentBytes and SegmentAge end a segment.
	SegmentBytes int64
	SegmentAge   time.Duration
	// KeepBytes is what all segments may have together; the oldest are removed
	// beyond, and a record says so.
	KeepBytes int64
	// Anchor is a file to which [Log.Anchor] appends; empty is none.
	Anchor string
}

const (
	defaultSegmentBytes = 64 * limits.MiB
	defaultSegmentAge   = 24 * time.Hour
	defaultKeepBytes    = 2048 * limits.MiB
)

// Log appends to a log. Only one may be open for a directory.
type Log struct {
	dir  string
	o    Options
	lock *os.File

	mu sync.Mutex
	// head is what was acknowledged, guarded by mu.
	head Head
	// file is the newest segment, nil before the first entry; began is when it was
	// made. Guarded by mu.
	file  *os.File
	began time.Time
	// anchored is the sequence number of the last anchor, guarded by mu.
	anchored int64
}

// Pending is a record that is to be appended.
type Pending struct {
	Source *Source
	// Record is a JSON object, or what encodes as one.
	Record any
}

// Open opens the log in a directory, which is made if need be. [fault.Exists]
// means that another process has it open. What a process that was killed left is
// brought in order; a log that was changed meanwhile is not repaired but begun
// anew, behind an entry that says what was found.
func Open(dir string, o Options) (*Log, error) {
	o.SegmentBytes = cmp.Or(o.SegmentBytes, defaultSegmentBytes)
	o.SegmentAge = cmp.Or(o.SegmentAge, defaultSegmentAge)
	o.KeepBytes = cmp.Or(o.KeepBytes, defaultKeepBytes)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, fault.Internal, dir, "cannot make the directory of the audit log")
	}
	lock, err := takeLock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, o: o, lock: lock}
	if err := l.recover(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return l, nil
}

// Head is where the log ends.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.head
	h.Spools = nil
	return h
}

// Taken tells how far the files of a spool were taken.
func (l *Log) Taken(spool string) audit.Taken {
	return func(file string) (int64, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.head.Taken(spool)(file)
	}
}

// Spools are the names of the spools of which something was taken and that were
// not forgotten.
func (l *Log) Spools() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.head.Spools {
		names = append(names, name)
	}
	return names
}

// Forget drops what is known of a spool that is gone.
func (l *Log) Forget(spool string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.head.Spools, spool)
}

// Append appends records in their order. Without an error all of them are on
// disk. With one they may be, where only the head could not be written:
// [Log.Taken] tells, and a record that was taken is not to be appended again.
func (l *Log) Append(list ...Pending) error {
	if len(list) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.turn(); err != nil {
		return err
	}
	return l.append(list)
}

// append writes one batch. mu is held.
func (l *Log) append(list []Pending) error {
	var text []byte
	seq, hash := l.head.Seq, l.head.Hash
	now := audit.At(l.o.Clock())
	for _, p := range list {
		record, err := json.Marshal(p.Record)
		if err != nil {
			return fault.Wrap(err, fault.Internal, l.dir, "cannot encode a record")
		}
		e := Entry{Seq: seq + 1, Time: now, Prev: hash, Source: p.Source, Record: record}
		line, err := e.encode()
		if err != nil {
			return err
		}
		text = append(append(text, line...), '\n')
		seq, hash = e.Seq, e.Hash
	}
	if err := l.segment(); err != nil {
		return err
	}
	_, err := l.file.Write(text)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		err = fault.Wrap(err, fault.Unavailable, l.dir, "cannot write to the audit log")
		if terr := l.file.Truncate(l.head.Size); terr != nil {
			// The next start sorts it out; until then nothing is appended to it.
			err = errors.Join(err, terr, l.file.Close())
			l.file = nil
		}
		return err
	}
	l.head.Seq, l.head.Hash, l.head.Time = seq, hash, now
	l.head.Size += int64(len(text))
	for _, p := range list {
		l.head.mark(p.Source)
	}
	return l.writeHead()
}

// writeHead makes the head known. Should it not be written, the entries are there
// all the same, and the next start finds them. mu is held.
func (l *Log) writeHead() error {
	data, err := json.Marshal(&l.head)
	if err == nil {
		err = atomicfile.Write(filepath.Join(l.dir, headName), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, l.dir, "cannot write the head of the audit log")
	}
	return nil
}

// segment makes sure that there is an open segment. mu is held.
func (l *Log) segment() error {
	if l.file != nil {
		return nil
	}
	name := segmentName(l.head.Seq + 1)
	path := filepath.Join(l.dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = l.displace(path)
	}
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, path, "cannot begin a segment of the audit log")
	}
	l.file, l.began = f, l.o.Clock()
	l.head.Segment, l.head.Size = name, 0
	return nil
}

// displace moves what is in a segment's place and is none of ours, but keeps it:
// an empty file that a killed process left, or what somebody put there.
func (l *Log) displace(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > 0 {
		if err := os.Rename(path, path+".broken-"+l.o.Clock().UTC().Format("20060102T150405.000")); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// turn ends a segment that is large or old enough, and removes old ones. mu is
// held.
func (l *Log) turn() error {
	if l.file == nil || l.head.Size == 0 || l.head.Size < l.o.SegmentBytes && l.o.Clock().Sub(l.began) < l.o.SegmentAge {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, l.dir, "cannot end a segment of the audit log")
	}
	return l.retire()
}

// retire removes the oldest segments beyond the bound, after an entry that says
// so: what is missing at the beginning is then accounted for. mu is held.
func (l *Log) retire() error {
	list, err := segments(l.dir)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, l.dir, "cannot look at the audit log")
	}
	var total int64
	for _, s := range list {
		total += s.size
	}
	n := 0
	for n < len(list)-1 && total > l.o.KeepBytes {
		total -= list[n].size
		n++
	}
	if n == 0 {
		return nil
	}
	last := list[n-1]
	line, err := lastLine(filepath.Join(l.dir, last.name), last.size)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, last.name, "cannot read the segment that is to be removed")
	}
	e, _, err := decode(line)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, last.name, "cannot read the segment that is to be removed")
	}
	note := audit.Note{
		Timestamp: audit.At(l.o.Clock()), EventType: audit.EventRemoved, First: list[0].first, Last: e.Seq, Hash: e.Hash,
		Message: fmt.Sprintf("%d old segments were removed", n),
	}
	if err := l.append([]Pending{{Record: note}}); err != nil {
		return err
	}
	for _, s := range list[:n] {
		if err := os.Remove(filepath.Join(l.dir, s.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(err, fault.Unavailable, s.name, "cannot remove an old segment")
		}
	}
	return nil
}

// anchor is one line of the anchor file.
type anchor struct {
	Time audit.Time `json:"time"`
	Seq  int64      `json:"seq"`
	Hash string     `json:"hash"`
}

// Anchor appends the head to the anchor file, if there is one and the log grew.
func (l *Log) Anchor() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.o.Anchor == "" || l.head.Seq == l.anchored || l.head.Seq == 0 {
		return nil
	}
	line, err := json.Marshal(anchor{audit.At(l.o.Clock()), l.head.Seq, l.head.Hash})
	if err != nil {
		return fault.Wrap(err, fault.Internal, l.o.Anchor, "cannot encode the anchor")
	}
	f, err := os.OpenFile(l.o.Anchor, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, l.o.Anchor, "cannot anchor the audit log")
	}
	l.anchored = l.head.Seq
	return nil
}

// Close writes the head and gives the log free.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.writeHead()
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
		l.file = nil
	}
	return errors.Join(err, l.lock.Close())
}
