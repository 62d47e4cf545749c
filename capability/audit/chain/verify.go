package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Report is what [Verify] found.
type Report struct {
	Segments int   `json:"segments"`
	Entries  int64 `json:"entries"`
	First    int64 `json:"first"`
	Last     int64 `json:"last"`
	// Hash is the last entry's.
	Hash string `json:"hash"`
	// Anchors is how many anchors were held against the log.
	Anchors  int       `json:"anchors"`
	Problems []Problem `json:"problems"`
	// Unfinished says that the last line is being written, or its writer was killed.
	Unfinished bool `json:"unfinished,omitempty"`
}

// Kinds of problems.
const (
	Edited    = "edited"    // an entry is not what its hash is of
	Missing   = "missing"   // entries are not there
	Disorder  = "disorder"  // an entry is in another's place
	Replaced  = "replaced"  // an entry is intact, but not the one that was written there
	Truncated = "truncated" // the log ends before it did
	Malformed = "malformed" // something is no entry
	Broken    = "broken"    // the keeper of the log found it changed, and said so
)

// Problem is something in a log that is not as it was written.
type Problem struct {
	Kind    string `json:"kind"`
	Segment string `json:"segment,omitempty"`
	// Line counts from 1 in the segment, Seq is the entry's number as far as known.
	Line    int    `json:"line,omitempty"`
	Seq     int64  `json:"seq,omitempty"`
	Message string `json:"message"`
}

// maxProblems bounds a report: after a change all that follows is suspect.
const maxProblems = 100

// checker goes through a log.
type checker struct {
	*Report
	segment string
	line    int
	expect  int64  // the next entry's number; 0 before the first
	hash    string // of the entry before
	removed map[int64]string
	// prev is what the first entry says of the one before it.
	prev string
	// at are the hashes by which head and anchors are checked, filled as met.
	want map[int64][]claim
}

// claim is what somebody says an entry's hash is.
type claim struct{ hash, by string }

func (c *checker) problem(kind string, seq int64, format string, args ...any) {
	if len(c.Problems) < maxProblems {
		c.Problems = append(c.Problems, Problem{kind, c.segment, c.line, seq, fmt.Sprintf(format, args...)})
	}
}

// Verify goes through a log and reports all that is not as it was written. With
// an anchor file the log is held against it, too. An error means that the log
// cannot be read; one that is not there is [fault.NotFound].
func Verify(dir, anchorFile string) (*Report, error) {
	r, err := verify(dir, anchorFile)
	// The keeper may just have removed an old segment.
	for try := 0; try < 3 && errors.Is(err, fs.ErrNotExist) && fault.ReasonOf(err) == fault.AccessDenied; try++ {
		r, err = verify(dir, anchorFile)
	}
	return r, err
}

func verify(dir, anchorFile string) (*Report, error) {
	list, err := segments(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, dir, "cannot read the audit log")
	}
	head, headErr := ReadHead(dir)
	if len(list) == 0 && errors.Is(headErr, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, dir, "there is no audit log").WithHint("mentatctl node serve keeps one")
	}
	c := newChecker(len(list))
	if headErr == nil && head.Seq > 0 {
		c.want[head.Seq] = append(c.want[head.Seq], claim{head.Hash, "the head"})
	}
	if err := c.anchors(anchorFile); err != nil {
		return nil, err
	}
	for i, s := range list {
		c.segment, c.line = s.name, 0
		if err := c.ended(scan(filepath.Join(dir, s.name), 0, c.check), i == len(list)-1); err != nil {
			return nil, fault.Wrap(err, fault.AccessDenied, s.name, "cannot read the audit log")
		}
	}
	c.end(headErr)
	return c.Report, nil
}

func newChecker(segments int) *checker {
	return &checker{Report: &Report{Segments: segments, Problems: []Problem{}}, removed: map[int64]string{}, want: map[int64][]claim{}}
}

// ended judges how a segment ended; what it returns is no matter of its content.
func (c *checker) ended(err error, last bool) error {
	switch {
	case errors.Is(err, errTorn) && last:
		c.Unfinished = true
	case errors.Is(err, errTorn):
		c.problem(Truncated, 0, "the segment ends within a line, and is not the last")
	case fault.ReasonOf(err) == fault.ArtifactInvalid:
		c.problem(Malformed, 0, "%v", err)
	default:
		return err
	}
	return nil
}

// anchors reads what an anchor file says.
func (c *checker) anchors(path string) error {
	if path == "" {
		return nil
	}
	data, err := limits.ReadFile(path, headBytes)
	if err != nil {
		return fault.Wrap(err, fault.NotFound, path, "cannot read the anchors")
	}
	for line := range bytes.Lines(data) {
		var a anchor
		if json.Unmarshal(line, &a) != nil || a.Seq < 1 || a.Hash == "" {
			c.problem(Malformed, 0, "the anchor file has a line that is no anchor")
			continue
		}
		c.want[a.Seq] = append(c.want[a.Seq], claim{a.Hash, "the anchor of " + a.Time.Format("2006-01-02 15:04:05")})
		c.Anchors++
	}
	return nil
}

func (c *checker) check(line []byte, _ int64) error {
	c.line++
	e, intact, err := decode(line)
	switch {
	case err != nil:
		c.problem(Malformed, c.expect, "%v", err)
		return nil
	case !intact:
		c.problem(Edited, e.Seq, "entry %d is not what its hash is of", e.Seq)
	}
	c.Entries++
	switch {
	case c.expect == 0:
		c.First, c.prev = e.Seq, e.Prev
	case e.Seq > c.expect:
		c.problem(Missing, e.Seq, "entries %d to %d are missing", c.expect, e.Seq-1)
	case e.Seq < c.expect:
		c.problem(Disorder, e.Seq, "entry %d stands where entry %d should", e.Seq, c.expect)
	case e.Prev != c.hash:
		c.problem(Replaced, e.Seq, "entry %d follows another entry %d than the one that is there", e.Seq, e.Seq-1)
	}
	for _, w := range c.want[e.Seq] {
		if w.hash != e.Hash {
			c.problem(Replaced, e.Seq, "entry %d is another one than %s says", e.Seq, w.by)
		}
	}
	delete(c.want, e.Seq)
	c.note(&e)
	c.expect, c.hash = e.Seq+1, e.Hash
	c.Last, c.Hash = e.Seq, e.Hash
	return nil
}

// note takes in what the log's keeper says.
func (c *checker) note(e *Entry) {
	if e.Source != nil {
		return // a spool's record says nothing about the log
	}
	var n audit.Note
	if json.Unmarshal(e.Record, &n) != nil {
		return
	}
	switch n.EventType {
	case audit.EventRemoved:
		c.removed[n.Last] = n.Hash
	case audit.EventBroken:
		c.problem(Broken, e.Seq, "the keeper of the log found it changed: %s", n.Message)
	}
}

// end checks what can only be told at the end.
func (c *checker) end(headErr error) {
	c.segment, c.line = "", 0
	switch {
	case c.expect == 0 || c.First == 1 && c.prev == Zero:
	case c.First == 1:
		c.problem(Missing, 1, "the first entry follows one that is not there")
	case c.removed[c.First-1] != c.prev:
		c.problem(Missing, c.First, "the log begins with entry %d, and nothing says that what was before it was removed", c.First)
	}
	for seq, claims := range c.want {
		if seq < c.First {
			continue // removed
		}
		for _, w := range claims {
			c.problem(Truncated, seq, "%s knows entry %d, and the log ends with %d", w.by, seq, c.Last)
		}
	}
	switch {
	case errors.Is(headErr, fs.ErrNotExist):
		c.problem(Truncated, 0, "the head is missing, so that nobody can tell whether the log ends where it did")
	case headErr != nil:
		c.problem(Malformed, 0, "%v", headErr)
	}
}

// Read calls f for every entry from a number on, as far as they can be read; it
// judges nothing.
func Read(dir string, from int64, f func(Entry) error) error {
	list, err := segments(dir)
	if err != nil {
		return err
	}
	for i, s := range list {
		if i+1 < len(list) && list[i+1].first <= from {
			continue
		}
		err := scan(filepath.Join(dir, s.name), 0, func(line []byte, _ int64) error {
			e, _, err := decode(line)
			if err != nil || e.Seq < from {
				return nil //nolint:nilerr // Verify is there to judge
			}
			return f(e)
		})
		if err != nil && !errors.Is(err, errTorn) && !errors.Is(err, fs.ErrNotExist) && fault.ReasonOf(err) != fault.ArtifactInvalid {
			return err
		}
	}
	return nil
}
