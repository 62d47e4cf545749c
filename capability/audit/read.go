package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mentatlab/mentat/internal/limits"
)

// Source reads what waits in a spool, which may be another's. It remembers how
// far it came, so that it can be asked again and again.
type Source struct {
	dir string
	at  map[int]*position
}

// position is how far one file was read.
type position struct {
	id     string
	offset int64
	lines  int64
	// drained is the size at which nothing but the beginning of a line was left.
	drained int64
	// bad: the file is not read any further.
	bad bool
}

// NewSource reads the spool in a directory.
func NewSource(dir string) *Source { return &Source{dir: dir, at: map[int]*position{}} }

// Line is one record that waits. File and Number name it for good.
type Line struct {
	File   string
	Number int64
	Data   []byte
}

// Batch is what [Source.Next] found.
type Batch struct {
	Lines []Line
	// Lost are losses that a file tells of, by the file that does.
	Lost []Lost
	// Anomalies are what no writer of ours does.
	Anomalies []string
}

// Lost says that a file made way for others: how many lines it had.
type Lost struct {
	// In is the file that tells it, File the one that is gone.
	In, File string
	Lines    int64
}

// Taken tells the number of the last line of a file that was taken; false where
// nothing of it was.
type Taken func(file string) (line int64, known bool)

// Next returns up to most lines that were not taken yet, in their order.
func (s *Source) Next(most int, taken Taken) (Batch, error) {
	var b Batch
	files, err := spoolFiles(s.dir)
	if err != nil {
		return b, err
	}
	for _, f := range files {
		p := s.at[f.number]
		if p == nil {
			p = &position{}
			s.at[f.number] = p
		}
		if p.bad || f.size == p.offset || len(b.Lines) >= most {
			continue
		}
		if err := s.read(f, p, most, taken, &b); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return b, nil
}

const (
	// chunk is how much of a file is read at once.
	chunk = 4 * limits.AuditLineBytes
	// maxLost bounds what a host can say that it lost.
	maxLost = 1 << 40
)

func (s *Source) read(f spoolFile, p *position, most int, taken Taken, b *Batch) error {
	file, err := openRegular(filepath.Join(s.dir, f.name()))
	if err != nil {
		return err
	}
	defer file.Close()
	return p.read(file, f, most, taken, b)
}

func (p *position) read(file io.ReaderAt, f spoolFile, most int, taken Taken, b *Batch) error {
	spoil := func(format string, args ...any) {
		p.bad = true
		b.Anomalies = append(b.Anomalies, fmt.Sprintf("%s: ", f.name())+fmt.Sprintf(format, args...))
	}
	if f.size < p.offset {
		spoil("it became shorter, from %d to %d bytes", p.offset, f.size)
		return nil
	}
	buf := make([]byte, chunk)
	for len(b.Lines) < most {
		n, err := file.ReadAt(buf, p.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		rest := buf[:n]
		for len(b.Lines) < most {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				if n < chunk {
					p.drained = f.size
				}
				break
			}
			if p.id == "" {
				if !p.header(line, taken, b) {
					spoil("it does not begin as files of records do")
					return nil
				}
			} else {
				p.line(line, taken, b)
			}
			p.offset += int64(len(line) + 1)
			rest = after
		}
		if n < chunk {
			return nil // the end, or a line that is being written
		}
		if len(rest) == chunk {
			spoil("a line is over %d bytes", chunk)
			return nil
		}
	}
	return nil
}

func (p *position) header(line []byte, taken Taken, b *Batch) bool {
	var h header
	if len(line) > limits.AuditLineBytes || json.Unmarshal(line, &h) != nil || h.Spool != spoolVersion || h.ID == "" || len(h.ID) > 64 {
		return false
	}
	p.id = Clean(h.ID)
	if _, known := taken(p.id); known {
		return true
	}
	// Each was told together with all before it.
	list := h.Dropped[:min(len(h.Dropped), maxDropped)]
	told := 0
	for i, d := range list {
		if _, known := taken(d.In); known {
			told = i + 1
		}
	}
	for _, d := range list[told:] {
		if d.Lines > 0 && d.Lines < maxLost {
			b.Lost = append(b.Lost, Lost{In: p.id, File: Clean(d.ID), Lines: d.Lines})
		}
	}
	return true
}

// line takes a line unless it was taken before. What is torn is none: its writer
// was killed, and nobody was told that it was written.
func (p *position) line(line []byte, taken Taken, b *Batch) {
	if len(line) == 0 {
		return
	}
	p.lines++
	if last, known := taken(p.id); known && p.lines <= last {
		return
	}
	if len(line) > limits.AuditLineBytes {
		b.Anomalies = append(b.Anomalies, fmt.Sprintf("line %d of the file %s is over %d bytes", p.lines, p.id, limits.AuditLineBytes))
		return
	}
	b.Lines = append(b.Lines, Line{File: p.id, Number: p.lines, Data: bytes.Clone(line)})
}

// Trim removes files that were read to their end; the newest only when the writer
// is gone. It returns whether nothing is left. Lines that [Source.Next] gave must
// have been taken.
func (s *Source) Trim(gone bool) (empty bool, err error) {
	files, err := spoolFiles(s.dir)
	if err != nil {
		return false, err
	}
	empty = true
	for i, f := range files {
		p := s.at[f.number]
		done := p != nil && (p.bad || p.offset == f.size)
		if gone {
			// A line without an end stays one.
			done = done || f.size == 0 || p != nil && p.drained == f.size
		}
		if !done || !gone && i == len(files)-1 {
			empty = false
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, f.name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		delete(s.at, f.number)
	}
	return empty, nil
}

// Began reports whether there ever was a writer.
func (s *Source) Began() bool {
	files, err := spoolFiles(s.dir)
	return err == nil && len(files) > 0
}
