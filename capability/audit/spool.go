package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
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
	"sync"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// spoolVersion is in the first line of every file.
	spoolVersion = 1
	suffix       = ".jsonl"
	// filesPerSpool is into how many files the bound of a spool is divided: what is
	// dropped is one of them.
	filesPerSpool = 4
	// maxFiles bounds how many files of a spool are looked at.
	maxFiles = 64
	// maxDropped bounds what one header tells; what is older is told as one.
	maxDropped = 32
)

// header is a file's first line.
type header struct {
	Spool int `json:"spool"`
	// ID names the file for good.
	ID string `json:"id"`
	// Dropped are files that made way for this one, and those of which only files
	// told that are gone themselves.
	Dropped []dropped `json:"dropped,omitempty"`
}

type dropped struct {
	ID    string `json:"id"`
	Lines int64  `json:"lines"`
	// In is the file that told it first: who read that one knows already.
	In string `json:"in"`
}

// Spool appends lines to numbered files in a directory. When they reach their
// bound the oldest file is dropped, and its lines are counted in the next one. It
// may be used from several goroutines, and one that is shared from several
// processes.
type Spool struct {
	dir    string
	bytes  int64
	shared bool

	mu   sync.Mutex
	f    *os.File // guarded by mu; nil in a shared spool between calls
	size int64    // of f
}

// OpenSpool opens the spool in a directory, which must exist, for this process
// alone. Files that are there already are kept.
func OpenSpool(dir string, bound int64) *Spool { return &Spool{dir: dir, bytes: bound} }

// OpenShared opens a spool that other processes append to, too.
func OpenShared(dir string, bound int64) *Spool { return &Spool{dir: dir, bytes: bound, shared: true} }

// Begin makes the spool's first file, which tells that there was a writer. It is
// made by [Spool.Append] otherwise.
func (s *Spool) Begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared || s.f != nil {
		return nil
	}
	return s.next()
}

// Append writes lines, each a JSON object without a line break. Without an error
// all of them are written, else none.
func (s *Spool) Append(lines ...[]byte) error {
	var text []byte
	for _, l := range lines {
		if len(l) > limits.AuditLineBytes || bytes.IndexByte(l, '\n') >= 0 {
			return fault.New(fault.Internal, s.dir, "a record is no line of at most %d bytes", limits.AuditLineBytes)
		}
		text = append(append(text, l...), '\n')
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared {
		return s.appendShared(text)
	}
	if s.f == nil || s.size+int64(len(text)) > s.bytes/filesPerSpool {
		if err := s.next(); err != nil {
			return err
		}
	}
	return s.write(text)
}

// write appends to the open file, whole or not at all.
func (s *Spool) write(text []byte) error {
	n, err := s.f.Write(text)
	if err == nil {
		s.size += int64(n)
		return nil
	}
	if n > 0 {
		// What cannot be taken back is a torn line, which readers skip; nothing is
		// appended to it.
		if terr := s.f.Truncate(s.size); terr != nil {
			err = errors.Join(err, terr, s.f.Close())
			s.f = nil
		}
	}
	return fault.Wrap(err, fault.Unavailable, s.dir, "cannot write a record")
}

// plan is what the next file is to be.
type plan struct {
	name   string
	header []byte
	drop   []spoolFile
}

// plan counts what must make way for the next file.
func (s *Spool) plan() (plan, error) {
	files, err := spoolFiles(s.dir)
	if err != nil {
		return plan{}, fault.Wrap(err, fault.Unavailable, s.dir, "cannot look at the records that wait")
	}
	h := header{Spool: spoolVersion, ID: newID()}
	number := 1
	var p plan
	if len(files) > 0 {
		number = files[len(files)-1].number + 1
		p.drop = s.excess(files)
	}
	for _, f := range p.drop {
		old, lines := countLines(filepath.Join(s.dir, f.name()))
		h.Dropped = append(append(h.Dropped, old.Dropped...), dropped{ID: old.ID, Lines: lines, In: h.ID})
	}
	h.Dropped = condense(h.Dropped)
	p.name = filepath.Join(s.dir, spoolFile{number: number}.name())
	line, err := json.Marshal(h)
	if err != nil {
		return plan{}, fault.Wrap(err, fault.Internal, s.dir, "cannot encode a header")
	}
	p.header = append(line, '\n')
	return p, nil
}

// create makes the file; [fs.ErrExist] if somebody did so first.
func (p *plan) create() (*os.File, error) {
	f, err := os.OpenFile(p.name, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, p.name, "cannot begin a file of records")
	}
	return f, nil
}

// finish writes the header and drops what was counted in it. In this order: who
// is killed in between counts it again.
func (p *plan) finish(f *os.File) error {
	if _, err := f.Write(p.header); err != nil {
		return fault.Wrap(err, fault.Unavailable, p.name, "cannot begin a file of records")
	}
	for _, d := range p.drop {
		if err := os.Remove(filepath.Join(filepath.Dir(p.name), d.name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(err, fault.Unavailable, p.name, "cannot drop old records")
		}
	}
	return nil
}

// next opens the next file.
func (s *Spool) next() error {
	p, err := s.plan()
	if err != nil {
		return err
	}
	f, err := p.create()
	if err != nil {
		return err
	}
	if err := p.finish(f); err != nil {
		return errors.Join(err, f.Close())
	}
	old := s.f
	s.f, s.size = f, int64(len(p.header))
	if old != nil {
		return old.Close()
	}
	return nil
}

// excess are the oldest files that must go so that one more has room.
func (s *Spool) excess(files []spoolFile) []spoolFile {
	var total int64
	for _, f := range files {
		total += f.size
	}
	n := 0
	for n < len(files) && total > s.bytes-s.bytes/filesPerSpool {
		total -= files[n].size
		n++
	}
	return files[:n]
}

// Close ends the spool's use.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}

// spoolFile is a file of a spool.
type spoolFile struct {
	number int
	size   int64
}

func (f spoolFile) name() string { return fmt.Sprintf("%08d%s", f.number, suffix) }

// spoolFiles lists a spool's files, oldest first. Of very many only some are
// looked at: a spool has a handful.
func spoolFiles(dir string) ([]spoolFile, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var files []spoolFile
	for _, e := range entries {
		number, ok := spoolNumber(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, spoolFile{number, info.Size()})
	}
	slices.SortFunc(files, func(a, b spoolFile) int { return a.number - b.number })
	return files, nil
}

func spoolNumber(name string) (int, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n > 0 && spoolFile{number: n}.name() == name
}

// newID is a random name.
func newID() string {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

// countLines reads the header of a file that is to be dropped and counts its
// records.
func countLines(path string) (header, int64) {
	var h header
	data, err := limits.ReadFile(path, limits.AuditNodeBytes)
	if err != nil {
		return h, 0
	}
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	if json.Unmarshal(first, &h) != nil {
		h = header{}
	}
	return h, int64(bytes.Count(rest, []byte("\n")))
}

// condense adds up the oldest losses where there are too many to tell each.
func condense(list []dropped) []dropped {
	if len(list) <= maxDropped {
		return list
	}
	old := list[:len(list)-maxDropped+1]
	sum := dropped{In: old[len(old)-1].In}
	for _, d := range old {
		sum.Lines += d.Lines
	}
	return append([]dropped{sum}, list[len(old):]...)
}
