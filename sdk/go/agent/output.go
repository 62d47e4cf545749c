package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Output is what an agent answers with: a JSON object whose fields stand in the
// order in which they were first set, or, made by [RawOutput], any bytes. The
// setters return the output they were called on. A value that JSON cannot hold
// fails the run when the output is written.
type Output interface {
	// SetString, SetNumber, SetInt and SetBool set a field of that type.
	SetString(name, value string) Output
	SetNumber(name string, value float64) Output
	SetInt(name string, value int64) Output
	SetBool(name string, value bool) Output
	// SetJSON sets a field to anything that encoding/json encodes.
	SetJSON(name string, value any) Output
	// Encode returns the bytes that are written, or the first error of a setter.
	Encode() ([]byte, error)
}

// NewOutput returns an empty JSON object.
func NewOutput() Output { return &object{values: map[string]json.RawMessage{}} }

// RawOutput returns an output of exactly these bytes. It has no fields: setting
// one fails the run.
func RawOutput(data []byte) Output { return &raw{data: data} }

type object struct {
	names  []string
	values map[string]json.RawMessage
	err    error
}

func (o *object) SetString(name, value string) Output         { return o.SetJSON(name, value) }
func (o *object) SetNumber(name string, value float64) Output { return o.SetJSON(name, value) }
func (o *object) SetInt(name string, value int64) Output      { return o.SetJSON(name, value) }
func (o *object) SetBool(name string, value bool) Output      { return o.SetJSON(name, value) }

func (o *object) SetJSON(name string, value any) Output {
	data, err := encode(value)
	if err != nil {
		if o.err == nil {
			o.err = fmt.Errorf("output field %q: %w", name, err)
		}
		return o
	}
	if _, set := o.values[name]; !set {
		o.names = append(o.names, name)
	}
	o.values[name] = data
	return o
}

func (o *object) Encode() ([]byte, error) {
	if o.err != nil {
		return nil, o.err
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i, name := range o.names {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := encode(name)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(o.values[name])
	}
	b.WriteString("}\n")
	return b.Bytes(), nil
}

// encode is json.Marshal without the escapes that only matter inside HTML.
func encode(value any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

type raw struct {
	data []byte
	err  error
}

func (r *raw) SetString(name, _ string) Output         { return r.refuse(name) }
func (r *raw) SetNumber(name string, _ float64) Output { return r.refuse(name) }
func (r *raw) SetInt(name string, _ int64) Output      { return r.refuse(name) }
func (r *raw) SetBool(name string, _ bool) Output      { return r.refuse(name) }
func (r *raw) SetJSON(name string, _ any) Output       { return r.refuse(name) }
func (r *raw) Encode() ([]byte, error)                 { return r.data, r.err }

var errRawField = errors.New("a raw output has no fields")

func (r *raw) refuse(name string) Output {
	if r.err == nil {
		r.err = fmt.Errorf("output field %q: %w", name, errRawField)
	}
	return r
}
