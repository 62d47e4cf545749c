package manifest

import (
	"encoding/json"
	"regexp"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// Size is a number of bytes. In a manifest it is a whole number of MB, or a
// string with a unit: "512MB". All units are powers of two, so that MB and MiB
// are the same.
type Size int64

const (
	maxSize  = 1 << 40
	sizeForm = "allowed is a whole number of MB or a string like \"100MB\", up to 1024GB"
)

var sizePattern = regexp.MustCompile(`^([1-9][0-9]{0,12})(KB|KiB|MB|MiB|GB|GiB)$`)

var units = map[byte]int64{'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}

// UnmarshalText reads a size with its unit.
func (s *Size) UnmarshalText(text []byte) error {
	m := sizePattern.FindSubmatch(text)
	if m == nil {
		return fault.New(fault.ManifestInvalid, "", "not a size; %s", sizeForm)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		return fault.Wrap(err, fault.ManifestInvalid, "", "not a size")
	}
	return s.set(n, units[m[2][0]])
}

func (s *Size) set(n, unit int64) error {
	if n < 1 || n > maxSize/unit {
		return fault.New(fault.ManifestInvalid, "", "a size out of range; %s", sizeForm)
	}
	*s = Size(n * unit)
	return nil
}

// UnmarshalYAMLNode reads either form.
func (s *Size) UnmarshalYAMLNode(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		mb, err := strictyaml.Integer(n)
		if err != nil {
			return err
		}
		return s.set(mb, limits.MiB)
	}
	text, err := strictyaml.Text(n)
	if err != nil {
		return err
	}
	return s.UnmarshalText([]byte(text))
}

// String gives the size in the largest unit that divides it.
func (s Size) String() string {
	for _, unit := range []byte("GMK") {
		if n := int64(s) / units[unit]; n > 0 && n*units[unit] == int64(s) {
			return strconv.FormatInt(n, 10) + string(unit) + "B"
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// MarshalText gives [Size.String].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Duration is a time span, written like "30s" or "1m30s".
type Duration time.Duration

const (
	maxDuration  = 24 * time.Hour
	durationForm = "allowed is a time like \"30s\" or \"1m30s\", from 1ms to 24h"
)

// UnmarshalText reads a span of whole milliseconds.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < time.Millisecond || v > maxDuration || v%time.Millisecond != 0 {
		return fault.New(fault.ManifestInvalid, "", "not a time span; %s", durationForm)
	}
	*d = Duration(v)
	return nil
}

// String gives the span as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText gives [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// The values of [Preopens].
const (
	ModeReadOnly  = "read-only"
	ModeReadWrite = "read-write"
)

// Preopens are the directories that the guest finds open: the guest's path to
// [ModeReadOnly] or [ModeReadWrite].
type Preopens map[string]string

// TempDirs are empty directories that live as long as the run: the guest's path
// to the size.
type TempDirs map[string]Size

// Attestations are signature blocks, each as a JSON object.
type Attestations []json.RawMessage

// UnmarshalYAMLNode reads one block or a list of them. A number with a point
// and a date become the text that was written: a block's `version: 1.0` means
// the version 1.0, not a number.
func (a *Attestations) UnmarshalYAMLNode(n *yaml.Node) error {
	blocks := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		blocks = n.Content
	}
	for _, block := range blocks {
		if block.Kind != yaml.MappingNode {
			return strictyaml.At(block, "allowed is an attestation block or a list of them")
		}
		value, err := plain(block)
		if err != nil {
			return err
		}
		data, err := canonical.Marshal(value)
		if err != nil {
			return strictyaml.At(block, "%v", err)
		}
		*a = append(*a, data)
	}
	return nil
}

// plain turns a node into what encoding/json encodes.
func plain(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		object := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			value, err := plain(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			object[n.Content[i].Value] = value
		}
		return object, nil
	case yaml.SequenceNode:
		array := make([]any, len(n.Content))
		for i, child := range n.Content {
			value, err := plain(child)
			if err != nil {
				return nil, err
			}
			array[i] = value
		}
		return array, nil
	}
	switch n.Tag {
	case "!!str", "!!float", "!!timestamp":
		return n.Value, nil
	case "!!int":
		return strictyaml.Integer(n)
	case "!!bool":
		return n.Value == "true" || n.Value == "True" || n.Value == "TRUE", nil
	}
	return nil, strictyaml.At(n, "a value is missing or of an unknown type")
}

var quotaPattern = regexp.MustCompile(`^([1-9][0-9]{0,5})ms/s$`)

// quotaMillis reads "1000ms/s".
func quotaMillis(s string) (int, bool) {
	m := quotaPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n, err == nil
}

func unprintable(r rune) bool {
	return r == utf8.RuneError || !unicode.IsPrint(r)
}
