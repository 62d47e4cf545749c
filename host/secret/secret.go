package secret

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Read reads a file of secrets; an empty name gives none. Errors are
// [fault.PolicyInvalid] and name a secret, never its value.
func Read(file string) (hostdoc.Secrets, error) {
	if file == "" {
		return nil, nil
	}
	data, err := limits.ReadFile(file, limits.SecretsBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, file, "cannot read the secrets")
	}
	var s hostdoc.Secrets
	dec := json.NewDecoder(bytes.NewReader(data))
	// A decoder's own error may quote what it read.
	if dec.Decode(&s) != nil || dec.More() {
		return nil, fault.New(fault.PolicyInvalid, file, "the secrets are no JSON object of texts")
	}
	for name, value := range s {
		if err := Check(name, value); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Check tells whether a value can be used as a secret: it fits a header, and is
// long enough to be told from other text.
func Check(name, value string) error {
	switch {
	case len(value) < limits.ShortestSecret:
		return fault.New(fault.PolicyInvalid, "secret "+name, "is shorter than %d bytes", limits.ShortestSecret)
	case len(value) > limits.SecretBytes:
		return fault.New(fault.PolicyInvalid, "secret "+name, "is longer than %d bytes", limits.SecretBytes)
	case strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r >= 0x7f }):
		return fault.New(fault.PolicyInvalid, "secret "+name, "holds a line break or another character that no header can carry").
			WithHint("write the file without a line break at its end")
	}
	return nil
}

// Lookup finds a secret that a configuration names.
func Lookup(s hostdoc.Secrets, name, on string) (string, error) {
	value, ok := s[name]
	if !ok {
		return "", fault.New(fault.PolicyInvalid, on, "the secret %q is not there", name)
	}
	return value, Check(name, value)
}
