package display

import (
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
)

// Format is how a result is printed. It implements pflag.Value, so that an
// unknown format is refused where flags are parsed.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// String returns the format's name.
func (f *Format) String() string { return string(*f) }

// Set accepts the name of a format.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Text, JSON:
		*f = Format(s)
		return nil
	}
	return fault.New(fault.Usage, "", "%q is not a format, allowed are text and json", s)
}

// Type is shown in help texts.
func (f *Format) Type() string { return "text|json" }

// ProgressMode says whether progress is shown.
type ProgressMode string

// The progress modes: ProgressAuto shows progress on a terminal only.
const (
	ProgressAuto  ProgressMode = "auto"
	ProgressPlain ProgressMode = "plain"
	ProgressNone  ProgressMode = "none"
)

// String returns the mode's name.
func (m *ProgressMode) String() string { return string(*m) }

// Set accepts the name of a mode.
func (m *ProgressMode) Set(s string) error {
	switch ProgressMode(s) {
	case ProgressAuto, ProgressPlain, ProgressNone:
		*m = ProgressMode(s)
		return nil
	}
	return fault.New(fault.Usage, "", "%q is not a progress mode, allowed are auto, plain and none", s)
}

// Type is shown in help texts.
func (m *ProgressMode) Type() string { return "auto|plain|none" }

// AsksForJSON tells whether unparsed arguments ask for JSON: a command line
// that cannot be parsed is still answered in the format it asked for.
func AsksForJSON(args []string) bool {
	for i, a := range args {
		switch {
		case a == "--":
			return false
		case a == "--output=json" || a == "-ojson" || a == "-o=json":
			return true
		case (a == "--output" || a == "-o") && i+1 < len(args) && strings.TrimSpace(args[i+1]) == "json":
			return true
		}
	}
	return false
}
