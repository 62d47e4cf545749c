package agent

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/mentatlab/sdk-go/internal/mentat"
)

// Code is why the host refused or failed a call. Test for one with errors.Is:
//
//	if errors.Is(err, agent.NotFound) { … }
type Code int32

// The codes of ABI 1.0.
const (
	Invalid     Code = -1
	Denied      Code = -2
	NotFound    Code = -3
	Limit       Code = -4
	Deadline    Code = -5
	Canceled    Code = -6
	Unavailable Code = -7
	BadHandle   Code = -8
	Unsupported Code = -9
	Conflict    Code = -10
	Internal    Code = -11
)

var codeNames = map[Code]string{
	Invalid: "invalid", Denied: "denied", NotFound: "not found", Limit: "over a limit", Deadline: "deadline passed",
	Canceled: "canceled", Unavailable: "unavailable", BadHandle: "bad handle", Unsupported: "unsupported",
	Conflict: "conflict", Internal: "internal",
}

// Error is the code's name.
func (c Code) Error() string {
	if name, ok := codeNames[c]; ok {
		return name
	}
	return "unknown host error"
}

// HostError is a failed call to the host. It wraps its [Code].
type HostError struct {
	Code Code
	// Capability is the capability string that was missing, if one was.
	Capability string `json:"capability"`
	// Reason is the host's sentence, Rule what decided, Hint what would help.
	Reason string `json:"reason"`
	Rule   string `json:"rule"`
	Hint   string `json:"hint"`
	// RetryAfterMillis is how long to wait before trying again, 0 if unknown.
	RetryAfterMillis int64 `json:"retry_after_ms"`
}

// Error gives code, reason and hint on one line.
func (e *HostError) Error() string {
	var b strings.Builder
	b.WriteString(e.Code.Error())
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap returns the code.
func (e *HostError) Unwrap() error { return e.Code }

// GetConfig reads one of the non-secret settings of the manifest (`config:`).
// A setting that is not there is [NotFound].
func GetConfig(key string) (string, error) {
	value, err := mentat.Current().Config(key)
	return value, hostError(err)
}

// hostError turns the binding's error into the documented type.
func hostError(err error) error {
	var failure *mentat.Failure
	if !errors.As(err, &failure) {
		return err
	}
	e := &HostError{}
	// The detail is a help for people: without it the code still stands.
	if json.Unmarshal(failure.Detail, e) != nil {
		e = &HostError{}
	}
	e.Code = Code(failure.Code)
	return e
}
