package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest/canonical"
)

const attestationKey = "attestation"

// SetAttestation returns the manifest's text with its attestation replaced by
// blocks, each a JSON object: one as a mapping, several as a list, none removes
// the key. Everything else, comments included, stays byte for byte. The result
// has been read back: it means the old manifest with the new blocks.
func SetAttestation(file string, data []byte, blocks [][]byte) ([]byte, error) {
	old, err := Parse(file, data)
	if err != nil {
		return nil, err
	}
	want := make(Attestations, len(blocks))
	for i, block := range blocks {
		if want[i], err = canonical.JSON(block); err != nil {
			return nil, fault.Wrap(err, fault.AttestationFormat, file, "cannot write attestation block %d", i+1)
		}
	}
	text, err := attestationText(file, blocks)
	if err != nil {
		return nil, err
	}
	head, tail, err := splitAttestation(file, data)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(data, []byte("\r\n")) {
		text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
	}
	if len(text) > 0 && len(head) > 0 && head[len(head)-1] != '\n' {
		head = append(slices.Clip(head), '\n')
	}
	out := slices.Concat(head, text, tail)
	if err := sameBut(file, out, old, want); err != nil {
		return nil, err
	}
	return out, nil
}

// sameBut reads the new text and compares it with what it must mean.
func sameBut(file string, out []byte, old *Manifest, want Attestations) error {
	const hint = "write the manifest as a plain block mapping that starts in the first column"
	now, err := Parse(file, out)
	if err != nil {
		return fault.Wrap(err, fault.ManifestInvalid, file, "the attestation cannot be put into this text").WithHint(hint)
	}
	oldJSON, err := old.Canonical()
	if err != nil {
		return err
	}
	nowJSON, err := now.Canonical()
	if err != nil {
		return err
	}
	same := bytes.Equal(oldJSON, nowJSON) && old.Container == now.Container && len(want) == len(now.Attestations)
	for i := 0; same && i < len(want); i++ {
		same = bytes.Equal(want[i], now.Attestations[i])
	}
	if !same {
		return fault.New(fault.ManifestInvalid, file, "the attestation cannot be put into this text").WithHint(hint)
	}
	return nil
}

// splitAttestation returns what stands before and after the attestation's lines.
// Comments before the key that follows belong to that key.
func splitAttestation(file string, data []byte) (head, tail []byte, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, nil, fault.Wrap(err, fault.ManifestInvalid, file, "not YAML")
	}
	root := doc.Content[0]
	if root.Style&yaml.FlowStyle != 0 || root.Column != 1 {
		return nil, nil, fault.New(fault.ManifestInvalid, file, "the attestation cannot be put into this text").
			WithHint("write the manifest as a plain block mapping that starts in the first column")
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	start, end := len(lines), len(lines)
	for i := 0; i < len(root.Content); i += 2 {
		if root.Content[i].Value != attestationKey {
			continue
		}
		start = root.Content[i].Line - 1
		if i+2 < len(root.Content) {
			end = root.Content[i+2].Line - 1
		}
		for end > start+1 && between(lines[end-1]) {
			end--
		}
	}
	return bytes.Join(lines[:start], nil), bytes.Join(lines[end:], nil), nil
}

// between reports whether a line belongs to no value: in the first column, only
// a comment can be neither a key nor part of a block scalar.
func between(line []byte) bool {
	return len(bytes.TrimSpace(line)) == 0 || line[0] == '#'
}

// attestationText writes the blocks as YAML lines.
func attestationText(file string, blocks [][]byte) ([]byte, error) {
	if len(blocks) == 0 {
		return nil, nil
	}
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, block := range blocks {
		dec := json.NewDecoder(bytes.NewReader(block))
		dec.UseNumber()
		node, err := jsonNode(dec)
		if err != nil || node.Kind != yaml.MappingNode {
			return nil, fault.Wrap(err, fault.AttestationFormat, file, "an attestation block must be a JSON object")
		}
		list.Content = append(list.Content, node)
	}
	value := list
	if len(blocks) == 1 {
		value = list.Content[0]
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	root := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: attestationKey}, value}}
	if err := errors.Join(enc.Encode(root), enc.Close()); err != nil {
		return nil, fault.Wrap(err, fault.Internal, file, "cannot write the attestation as YAML")
	}
	return out.Bytes(), nil
}

// jsonNode reads one JSON value into a node, keeping the order of keys.
func jsonNode(dec *json.Decoder) (*yaml.Node, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		node := &yaml.Node{Kind: yaml.SequenceNode}
		if t == '{' {
			node.Kind = yaml.MappingNode
		}
		for dec.More() {
			child, err := jsonNode(dec)
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, child)
		}
		_, err := dec.Token()
		return node, err
	case string:
		return stringNode(t), nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: t.String()}, nil
	case bool:
		value := "false"
		if t {
			value = "true"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: value}, nil
	}
	return nil, io.ErrUnexpectedEOF
}

// stringNode writes text of several lines, like a certificate, as a block.
func stringNode(s string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case strings.Contains(s, "\n"):
		node.Style = yaml.LiteralStyle
	case !identifier.MatchString(s):
		node.Style = yaml.DoubleQuotedStyle
	}
	return node
}
