package mentat

import (
	"io"
	"os"
	"strings"
)

// Stdio is the host of a program that runs by itself: the input is its
// arguments joined by a space, or else its standard input.
type Stdio struct{}

var levels = [...]string{"trace", "debug", "info", "warn", "error"}

// ReadInput reads everything.
func (Stdio) ReadInput() ([]byte, error) {
	if len(os.Args) > 1 {
		return []byte(strings.Join(os.Args[1:], " ")), nil
	}
	return io.ReadAll(os.Stdin)
}

// WriteOutput writes to the standard output.
func (Stdio) WriteOutput(data []byte) error {
	_, err := os.Stdout.Write(data)
	return err
}

// SetError writes the message to the standard error.
func (s Stdio) SetError(_ int32, message string) {
	s.Log(int32(len(levels)-1), message)
}

// Log writes one line to the standard error, whose failure nobody could hear.
func (Stdio) Log(level int32, message string) {
	level = max(0, min(level, int32(len(levels)-1)))
	_, _ = io.WriteString(os.Stderr, levels[level]+": "+strings.ReplaceAll(message, "\n", " ")+"\n")
}

// Config knows no settings: they come from the manifest, which only a MentatLab
// host reads.
func (Stdio) Config(string) (string, error) { return "", &Failure{Code: NotFound} }
