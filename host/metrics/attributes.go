package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
)

func refuse(code backend.Code, format string, args ...any) *backend.Refusal {
	return &backend.Refusal{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// ParseAttributes reads a guest's attributes: empty, or a flat JSON object of
// texts, numbers and booleans.
func ParseAttributes(data []byte) (map[string]string, *backend.Refusal) {
	switch {
	case len(data) == 0:
		return nil, nil
	case len(data) > limits.MetricAttributesBytes:
		return nil, refuse(backend.Limit, "the attributes are over %d bytes", limits.MetricAttributesBytes)
	case !utf8.Valid(data):
		return nil, refuse(backend.Invalid, "the attributes are not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if token, err := dec.Token(); err != nil || token != json.Delim('{') {
		return nil, refuse(backend.Invalid, "the attributes are not a JSON object")
	}
	attributes := map[string]string{}
	for dec.More() {
		if refused := attribute(dec, attributes); refused != nil {
			return nil, refused
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, refuse(backend.Invalid, "the attributes are not a JSON object")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, refuse(backend.Invalid, "something follows the attributes")
	}
	return attributes, nil
}

// attribute reads one key and its value.
func attribute(dec *json.Decoder, into map[string]string) *backend.Refusal {
	token, err := dec.Token()
	key, ok := token.(string)
	if err != nil || !ok {
		return refuse(backend.Invalid, "the attributes are not a JSON object")
	}
	if _, twice := into[key]; twice {
		return refuse(backend.Invalid, "an attribute is there twice")
	}
	// le is the bound of a histogram's bucket.
	if !validName(key) || strings.HasPrefix(key, "__") || key == "le" {
		return refuse(backend.Invalid, "an attribute's name is up to %d letters, digits and '_', not beginning with a digit or two '_', and not le", limits.MetricNameBytes)
	}
	if token, err = dec.Token(); err != nil {
		return refuse(backend.Invalid, "the attributes are not a JSON object")
	}
	value, ok := text(token)
	switch {
	case !ok:
		return refuse(backend.Invalid, "an attribute's value is a text, a number or a boolean")
	case len(value) > limits.MetricValueBytes || strings.ContainsRune(value, 0):
		return refuse(backend.Invalid, "an attribute's value is at most %d bytes, without NUL", limits.MetricValueBytes)
	case len(into) >= limits.MetricAttributes:
		return refuse(backend.Limit, "at most %d attributes are kept", limits.MetricAttributes)
	}
	into[key] = value
	return nil
}

func text(token json.Token) (string, bool) {
	switch v := token.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}
