package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
)

// broken says that the log is not what was acknowledged.
type broken struct{ message string }

func (b *broken) Error() string { return b.message }

func brokenf(format string, args ...any) error { return &broken{fmt.Sprintf(format, args...)} }

// recover finds out where the log ends. A process that was killed may have left
// entries that the head does not know yet, and the beginning of a line.
func (l *Log) recover() error {
	l.head = Head{Version: headVersion, Hash: Zero}
	h, err := ReadHead(l.dir)
	list, listErr := segments(l.dir)
	switch {
	case listErr != nil:
		return fault.Wrap(listErr, fault.Unavailable, l.dir, "cannot look at the audit log")
	case errors.Is(err, fs.ErrNotExist) && len(list) == 0:
		return nil // a new log
	case errors.Is(err, fs.ErrNotExist):
		err = l.goOn(list, 0, 0)
		// A first segment whose process was killed before it wrote a head is one
		// thing, a head that was taken away from a log another.
		if err == nil && (len(list) > 1 || list[0].first != 1) {
			err = brokenf("the head of the log is missing")
		}
	case err != nil && fault.ReasonOf(err) != fault.ArtifactInvalid:
		return err
	case err != nil:
		err = errors.Join(brokenf("the head of the log is damaged"), l.goOn(list, 0, 0))
	default:
		l.head = *h
		err = l.resume(list)
	}
	var b *broken
	if err != nil && !errors.As(err, &b) {
		return fault.Wrap(err, fault.Unavailable, l.dir, "cannot read the audit log")
	}
	if err != nil {
		return l.begin(err)
	}
	return l.reopen()
}

// resume checks that the log holds what the head says, and goes on from there.
func (l *Log) resume(list []segment) error {
	at := -1
	for i, s := range list {
		if s.name == l.head.Segment {
			at = i
		}
	}
	if l.head.Seq > 0 {
		switch {
		case at < 0:
			return brokenf("the segment %s is missing, which ends with entry %d", l.head.Segment, l.head.Seq)
		case list[at].size < l.head.Size:
			return brokenf("the segment %s was cut off: it has %d bytes and had %d, up to entry %d", l.head.Segment, list[at].size, l.head.Size, l.head.Seq)
		}
		line, err := lastLine(filepath.Join(l.dir, l.head.Segment), l.head.Size)
		if err != nil && !errors.Is(err, errTorn) {
			return err
		}
		if e, intact, decErr := decode(line); err != nil || decErr != nil || !intact || e.Seq != l.head.Seq || e.Hash != l.head.Hash {
			return brokenf("the segment %s does not end with entry %d, as it did", l.head.Segment, l.head.Seq)
		}
	}
	return l.goOn(list, max(at, 0), l.head.Size)
}

// goOn takes entries that the head does not know, from a segment and an offset
// on. What a killed process began and did not finish is cut off.
func (l *Log) goOn(list []segment, from int, offset int64) error {
	for i := from; i < len(list); i++ {
		s := list[i]
		path := filepath.Join(l.dir, s.name)
		end := offset
		err := scan(path, offset, func(line []byte, at int64) error {
			e, intact, err := decode(line)
			if err != nil || !intact || e.Seq != l.head.Seq+1 || e.Prev != l.head.Hash {
				return brokenf("the segment %s has something else in the place of entry %d", s.name, l.head.Seq+1)
			}
			l.head.Seq, l.head.Hash, l.head.Time, l.head.Segment, l.head.Size = e.Seq, e.Hash, e.Time, s.name, at
			l.head.mark(e.Source)
			end = at
			return nil
		})
		if errors.Is(err, errTorn) {
			if i != len(list)-1 {
				return brokenf("the segment %s ends within a line, and is not the last", s.name)
			}
			if err = os.Truncate(path, end); err == nil {
				l.head.Segment, l.head.Size = s.name, end
			}
		}
		if err != nil {
			return err
		}
		offset = 0
	}
	return nil
}

// reopen opens the newest segment to append to.
func (l *Log) reopen() error {
	if l.head.Segment == "" {
		return nil
	}
	path := filepath.Join(l.dir, l.head.Segment)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, path, "cannot open the audit log")
	}
	l.file, l.began = f, l.o.Clock()
	// A segment is as old as its first entry.
	_ = scan(path, 0, func(line []byte, _ int64) error {
		if e, _, err := decode(line); err == nil {
			l.began = e.Time.Time
		}
		return errStop
	})
	return nil
}

var errStop = errors.New("enough")

// begin goes on in a new segment after a log that was changed, with an entry
// about it. What was acknowledged last stays what the new entry follows.
func (l *Log) begin(err error) error {
	var b *broken
	message := "the log is not what was acknowledged"
	if errors.As(err, &b) {
		message = b.message
	}
	l.file = nil
	return l.append([]Pending{{Record: audit.Note{
		Timestamp: audit.At(l.o.Clock()), EventType: audit.EventBroken, Message: message, Last: l.head.Seq, Hash: l.head.Hash,
	}}})
}
