package llm

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/mentatlab/mentat/internal/limits"
)

// errEvent is an event that is longer than may be.
var errEvent = errors.New("an event is too long")

// events reads the data of server-sent events.
type events struct {
	r *bufio.Reader
	// cr says that the last line ended in a carriage return: a line feed that
	// follows belongs to it. It is not waited for.
	cr bool
}

func newEvents(r io.Reader) *events { return &events{r: bufio.NewReaderSize(r, 16<<10)} }

// next returns the data of the next event that has any. An event that the
// stream does not finish is dropped, as the format says: the error is then
// [io.EOF].
func (e *events) next() ([]byte, error) {
	var data []byte
	has := false
	for {
		line, err := e.line()
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			if has {
				return data, nil
			}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		if string(field) != "data" {
			continue // a comment, or something that is not used here
		}
		if has {
			data = append(data, '\n')
		}
		has = true
		data = append(data, bytes.TrimPrefix(value, []byte(" "))...)
		if len(data) > limits.LLMEventBytes {
			return nil, errEvent
		}
	}
}

// line reads a line, which ends in LF, CR LF, or CR.
func (e *events) line() ([]byte, error) {
	var line []byte
	for {
		b, err := e.r.ReadByte()
		if err != nil {
			return nil, err
		}
		after := e.cr
		e.cr = b == '\r'
		switch {
		case b == '\n' && after:
			continue
		case b == '\n' || b == '\r':
			return line, nil
		case len(line) >= limits.LLMEventBytes:
			return nil, errEvent
		}
		line = append(line, b)
	}
}
