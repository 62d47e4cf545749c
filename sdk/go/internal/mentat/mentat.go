package mentat

import "strconv"

// Host is what an agent can ask for.
type Host interface {
	ReadInput() ([]byte, error)
	WriteOutput(data []byte) error
	// SetError marks the run failed; it cannot fail itself.
	SetError(code int32, message string)
	Log(level int32, message string)
	Config(key string) (string, error)
}

// Failure is an error code of the host with its JSON detail, which may be empty.
type Failure struct {
	Code   int32
	Detail []byte
}

// Error names the code only; package agent says more.
func (f *Failure) Error() string { return "host error " + strconv.Itoa(int(f.Code)) }

// NotFound is the code for something that is not there.
const NotFound = -3

var current Host = Stdio{}

// Current is the host in use.
func Current() Host { return current }

// Use replaces the host and returns the one before.
func Use(h Host) Host {
	before := current
	current = h
	return before
}
