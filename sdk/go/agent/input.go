package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
)

// Input is one input. Its bytes are [Input.Raw]; the other methods read it as a
// JSON object, and answer with an error that names the field when a field is
// missing or of another type.
type Input struct {
	doc *document
}

type document struct {
	raw    []byte
	parsed bool
	fields map[string]json.RawMessage
	err    error
}

// NewInput makes an input of bytes, for tests.
func NewInput(raw []byte) Input {
	return Input{&document{raw: raw}}
}

// FieldError says what is wrong with the input, or with one field of it.
type FieldError struct {
	// Field is empty when the whole input is meant.
	Field string
	// Problem is a sentence without the field's name.
	Problem string
}

// Error names the field and the problem.
func (e *FieldError) Error() string {
	if e.Field == "" {
		return "input " + e.Problem
	}
	return fmt.Sprintf("input field %q %s", e.Field, e.Problem)
}

// Raw is the input as it came. It must not be changed.
func (in Input) Raw() []byte {
	if in.doc == nil {
		return nil
	}
	return in.doc.raw
}

// Text is the whole input as a string.
func (in Input) Text() string { return string(in.Raw()) }

// Has tells whether the input is a JSON object with that field.
func (in Input) Has(name string) bool {
	_, err := in.field(name)
	return err == nil
}

// GetString reads a string field.
func (in Input) GetString(name string) (string, error) {
	var v string
	err := in.get(name, "a string", '"', &v)
	return v, err
}

// GetNumber reads a number field.
func (in Input) GetNumber(name string) (float64, error) {
	var v float64
	err := in.get(name, "a number", '0', &v)
	return v, err
}

// GetInt reads a number field that must be a whole number of 64 bits.
func (in Input) GetInt(name string) (int64, error) {
	var v int64
	err := in.get(name, "a whole number", '0', &v)
	return v, err
}

// GetBool reads a field that is true or false.
func (in Input) GetBool(name string) (bool, error) {
	var v bool
	err := in.get(name, "true or false", 't', &v)
	return v, err
}

// GetNumberArray reads an array of numbers.
func (in Input) GetNumberArray(name string) ([]float64, error) {
	var v []*float64
	if err := in.get(name, "an array of numbers", '[', &v); err != nil {
		return nil, err
	}
	return elements(name, "a number", v)
}

// GetStringArray reads an array of strings.
func (in Input) GetStringArray(name string) ([]string, error) {
	var v []*string
	if err := in.get(name, "an array of strings", '[', &v); err != nil {
		return nil, err
	}
	return elements(name, "a string", v)
}

// GetJSON reads a field of any type into out, as [json.Unmarshal] does.
func (in Input) GetJSON(name string, out any) error {
	raw, err := in.field(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return &FieldError{name, "does not fit: " + err.Error()}
	}
	return nil
}

// Decode reads the whole input into out, as [json.Unmarshal] does.
func (in Input) Decode(out any) error {
	if err := json.Unmarshal(in.Raw(), out); err != nil {
		return &FieldError{"", "does not fit: " + err.Error()}
	}
	return nil
}

// elements refuses null among the elements, which encoding/json would read as
// the zero value.
func elements[T any](name, want string, ptrs []*T) ([]T, error) {
	out := make([]T, len(ptrs))
	for i, p := range ptrs {
		if p == nil {
			return nil, &FieldError{name, fmt.Sprintf("has null at index %d, wanted is %s", i, want)}
		}
		out[i] = *p
	}
	return out, nil
}

func (in Input) get(name, want string, kind byte, out any) error {
	raw, err := in.field(name)
	if err != nil {
		return err
	}
	if got := kindOf(raw); got != kind {
		return &FieldError{name, "is " + kindNames[got] + ", wanted is " + want}
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return &FieldError{name, "is not " + want}
	}
	if f, ok := out.(*float64); ok && math.IsInf(*f, 0) {
		return &FieldError{name, "is out of range"}
	}
	return nil
}

func (in Input) field(name string) (json.RawMessage, error) {
	d := in.doc
	if d == nil {
		d = &document{}
	}
	if !d.parsed {
		d.parsed = true
		d.fields, d.err = parseObject(d.raw)
	}
	if d.err != nil {
		return nil, d.err
	}
	raw, ok := d.fields[name]
	if !ok {
		return nil, &FieldError{name, "is missing"}
	}
	return raw, nil
}

func parseObject(raw []byte) (map[string]json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil, &FieldError{"", "is empty, wanted is a JSON object"}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		if json.Valid(raw) {
			return nil, &FieldError{"", "is " + kindNames[kindOf(raw)] + ", wanted is a JSON object"}
		}
		return nil, &FieldError{"", "is not JSON: " + err.Error()}
	}
	return fields, nil
}

// kindOf classifies valid JSON by its first byte.
func kindOf(raw json.RawMessage) byte {
	if len(raw) == 0 {
		return 'n'
	}
	switch c := raw[0]; c {
	case '"', '[', '{', 'n', 't':
		return c
	case 'f':
		return 't'
	}
	return '0'
}

var kindNames = map[byte]string{
	'"': "a string", '[': "an array", '{': "an object", 'n': "null", 't': "true or false", '0': "a number",
}
