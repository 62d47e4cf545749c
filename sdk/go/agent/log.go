package agent

import (
	"fmt"

	"github.com/mentatlab/sdk-go/internal/mentat"
)

// Level is the weight of a log line.
type Level int32

// The levels that the host knows.
const (
	LevelTrace Level = iota
	LevelDebug
	LevelInfo
	LevelWarn
	LevelError
)

// Log writes one line to the agent's log. It cannot fail: an agent does not end
// because nobody listens.
func Log(level Level, message string) {
	mentat.Current().Log(int32(level), message)
}

// Logf is [Log] with a format.
func Logf(level Level, format string, args ...any) {
	Log(level, fmt.Sprintf(format, args...))
}
