package chain

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	segmentSuffix = ".jsonl"
	headName      = "head.json"
	lockName      = ".lock"
	// headVersion is the version of the head's form.
	headVersion = 1
	// headBytes bounds the head: a few hundred bytes for each run that goes on.
	headBytes = 64 * limits.MiB
	// maxMarks bounds the files of one spool of which is known how far they were
	// taken.
	maxMarks = 64
)

// Head says where the log ends and how far each spool was taken.
type Head struct {
	Version int        `json:"version"`
	Time    audit.Time `json:"time"`
	Seq     int64      `json:"seq"`
	Hash    string     `json:"hash"`
	// Segment is the newest segment, Size its length.
	Segment string             `json:"segment"`
	Size    int64              `json:"size"`
	Spools  map[string][]*mark `json:"spools,omitempty"`
}

// mark is how far one file of a spool was taken.
type mark struct {
	File string `json:"file"`
	Line int64  `json:"line"`
}

func (h *Head) mark(s *Source) {
	if s == nil {
		return
	}
	if h.Spools == nil {
		h.Spools = map[string][]*mark{}
	}
	marks := h.Spools[s.Spool]
	for _, m := range marks {
		if m.File == s.File {
			m.Line = max(m.Line, s.Line)
			return
		}
	}
	marks = append(marks, &mark{s.File, s.Line})
	h.Spools[s.Spool] = marks[max(0, len(marks)-maxMarks):]
}

// Taken tells how far the files of a spool were taken.
func (h *Head) Taken(spool string) audit.Taken {
	return func(file string) (int64, bool) {
		for _, m := range h.Spools[spool] {
			if m.File == file {
				return m.Line, true
			}
		}
		return 0, false
	}
}

// ReadHead reads a log's head; errors.Is [fs.ErrNotExist] where there is none.
func ReadHead(dir string) (*Head, error) {
	path := filepath.Join(dir, headName)
	data, err := limits.ReadFile(path, headBytes)
	if err != nil {
		return nil, err
	}
	h := new(Head)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(h); err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, path, "the head of the audit log is damaged")
	}
	if h.Version != headVersion {
		return nil, fault.New(fault.Unsupported, path, "the head of the audit log has version %d, this program knows %d", h.Version, headVersion)
	}
	return h, nil
}

// segment is one file of the log.
type segment struct {
	name  string
	first int64
	size  int64
}

func segmentName(first int64) string { return fmt.Sprintf("%016d%s", first, segmentSuffix) }

// segments lists a log's segments, oldest first.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []segment
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		first, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || segmentName(first) != e.Name() || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, segment{e.Name(), first, info.Size()})
	}
	slices.SortFunc(list, func(a, b segment) int { return int(a.first - b.first) })
	return list, nil
}

// errTorn says that a segment ends within a line.
var errTorn = errors.New("the last line has no end")

// scan calls f for every line of a segment from an offset on, with the offset
// behind it. It returns [errTorn] after the last whole line of a torn segment.
func scan(path string, from int64, f func(line []byte, end int64) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return err
	}
	return scanLines(file, path, from, f)
}

func scanLines(from io.Reader, name string, offset int64, f func(line []byte, end int64) error) error {
	r := bufio.NewReaderSize(from, 2*maxLine)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return errTorn
		case errors.Is(err, bufio.ErrBufferFull):
			return fault.New(fault.ArtifactInvalid, name, "a line is over %d bytes", 2*maxLine)
		case err != nil:
			return err
		}
		offset += int64(len(line))
		if err := f(line[:len(line)-1], offset); err != nil {
			return err
		}
	}
}

// lastLine is the line that ends at an offset.
func lastLine(path string, end int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	begin := max(0, end-2*maxLine)
	buf := make([]byte, end-begin)
	if _, err := f.ReadAt(buf, begin); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	text, ok := bytes.CutSuffix(buf, []byte("\n"))
	if !ok {
		return nil, errTorn
	}
	return text[bytes.LastIndexByte(text, '\n')+1:], nil
}
