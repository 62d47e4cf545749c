package strictyaml

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// maxBytes bounds a text.
	maxBytes = max(limits.ManifestYAMLBytes, limits.PolicyBytes)
	// maxDepth bounds nesting.
	maxDepth = limits.JSONDepth
	// maxProblems bounds how many problems are reported, so that a text of
	// rubbish does not answer with as much of it.
	maxProblems = 50
)

// Unmarshaler is a type that reads itself from a node. Its errors get file and
// line of the node, or of the node that [At] names; several may be joined.
// Aliases, anchors, tags, duplicate keys and depth have been checked before.
type Unmarshaler interface {
	UnmarshalYAMLNode(node *yaml.Node) error
}

// Decoder decodes texts of one kind.
type Decoder struct {
	// Reason is that of the errors.
	Reason fault.Reason
}

// Decode reads one document into out, a pointer to a struct. File names the
// text in errors. The error joins one *fault.Error a problem, each with
// "file:line" as its subject.
//
// Supported are structs, pointers to them, maps with string keys, slices,
// string, bool, int, int64, [Unmarshaler] and, for scalars that are strings,
// encoding.TextUnmarshaler. Struct fields are found by their tag `yaml:"key"`;
// fields without one, or with "-", are left alone. Further tags: `allowed:"a|b"`
// lists the values of a string; `scalar:"any"` takes a string, or the values of
// a map of strings, from any scalar as it is spelled (1.0 stays "1.0");
// `empty:"allowed"` takes an empty string, which is an error otherwise;
// `entries:"list"` takes a map also as a list of mappings of one entry each.
//
// When values are wrong but the text is well-formed, the lines are returned
// beside the error, and out holds what could be read; a caller with rules of its
// own can report everything at once.
func (d Decoder) Decode(file string, data []byte, out any) (Lines, error) {
	s := &state{Decoder: d, file: file, lines: Lines{}}
	root, err := s.parse(data)
	if err != nil {
		return nil, err
	}
	if s.shape(root, 1); len(s.problems) > 0 || !s.is(root, yaml.MappingNode, "") {
		return nil, s.err()
	}
	s.decode(root, reflect.ValueOf(out).Elem(), "", "")
	return s.lines, s.err()
}

// Keys lists the keys that [Decoder.Decode] knows in a struct, as "a.b" and,
// where b's is a list, "a[].b"; sorted.
func Keys(of any) []string {
	var keys []string
	collectKeys(reflect.TypeOf(of), "", &keys)
	slices.Sort(keys)
	return keys
}

func collectKeys(t reflect.Type, path string, keys *[]string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case reflect.PointerTo(t).Implements(unmarshalerType), reflect.PointerTo(t).Implements(textType):
	case t.Kind() == reflect.Slice:
		collectKeys(t.Elem(), path+"[]", keys)
	case t.Kind() == reflect.Struct:
		for f := range t.Fields() {
			if key := f.Tag.Get("yaml"); key != "" && key != "-" {
				*keys = append(*keys, Key(path, key))
				collectKeys(f.Type, Key(path, key), keys)
			}
		}
	}
}

// Lines says in which line the value at a path begins. Paths look like
// "wasm.capabilities[2]"; the document itself is "".
type Lines map[string]int

// Of returns the line of the value at path or, where that was not written, of
// the nearest value around it.
func (l Lines) Of(path string) int {
	for {
		if line, ok := l[path]; ok || path == "" {
			return max(line, 1)
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
}

// Key gives the path of a key in the mapping at path.
func Key(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// Index gives the path of an element of the list at path.
func Index(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}

type located struct {
	node *yaml.Node
	msg  string
}

func (l *located) Error() string { return l.msg }

// At returns an error about one node, for use in an [Unmarshaler].
func At(node *yaml.Node, format string, args ...any) error {
	return &located{node: node, msg: fmt.Sprintf(format, args...)}
}

type state struct {
	Decoder
	file     string
	lines    Lines
	problems []error
	omitted  int
}

func (s *state) add(line int, format string, args ...any) {
	if len(s.problems) >= maxProblems {
		s.omitted++
		return
	}
	s.problems = append(s.problems, fault.New(s.Reason, Position(s.file, line), format, args...))
}

// Position gives the subject of an error, "file:line".
func Position(file string, line int) string {
	return file + ":" + strconv.Itoa(line)
}

func (s *state) err() error {
	if s.omitted > 0 {
		s.problems = append(s.problems, fault.New(s.Reason, s.file, "%d more problems", s.omitted))
	}
	return errors.Join(s.problems...)
}

var parserError = regexp.MustCompile(`^did not find expected (<|node content$|key$|',' or '[\]}]'$|'-' indicator$)`)

var syntaxError = regexp.MustCompile(`^yaml: (?:line ([0-9]+): )?(.*)$`)

func (s *state) parse(data []byte) (*yaml.Node, error) {
	if len(data) > maxBytes {
		return nil, fault.New(s.Reason, s.file, "over %d bytes", maxBytes)
	}
	if line, what := unreadable(data); what != "" {
		return nil, fault.New(s.Reason, Position(s.file, line), "%s", what)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fault.New(s.Reason, s.file, "the file is empty")
		}
		return nil, s.syntax(err)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, fault.New(s.Reason, Position(s.file, second.Line), "a second document, allowed is one")
	case !errors.Is(err, io.EOF):
		return nil, s.syntax(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, fault.New(s.Reason, s.file, "the file is empty")
	}
	return doc.Content[0], nil
}

func (s *state) syntax(err error) error {
	line, msg := 0, err.Error()
	if m := syntaxError.FindStringSubmatch(msg); m != nil {
		msg = m[2]
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			line = n
		}
	}
	// The library's parser, unlike its scanner, counts lines from 0.
	if parserError.MatchString(msg) {
		line++
	}
	line = max(line, 1)
	return fault.New(s.Reason, Position(s.file, line), "not YAML: %s", msg)
}

// unreadable finds text that is not UTF-8 and characters that look like nothing
// or that only some readers take for a line's end.
func unreadable(data []byte) (line int, what string) {
	line = 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return line, "the text is not UTF-8"
		case r == '\uFEFF':
			return line, "a byte order mark; save the file without one"
		case r == '\u0085' || r == '\u2028' || r == '\u2029':
			return line, fmt.Sprintf("the character %U, which only some readers take for a line's end", r)
		case r == '\r' && (i+1 == len(data) || data[i+1] != '\n'):
			return line, "a carriage return without a line feed"
		case r == '\n':
			line++
		}
		i += size
	}
	return 0, ""
}

// shape refuses, everywhere in the document, what the decoder has no meaning
// for, before any type is looked at.
func (s *state) shape(n *yaml.Node, depth int) {
	if depth > maxDepth {
		s.add(n.Line, "nested over %d levels", maxDepth)
		return
	}
	switch {
	case n.Kind == yaml.AliasNode:
		s.add(n.Line, "the alias *%s; write the value out", clip(n.Value))
		return
	case n.Anchor != "":
		s.add(n.Line, "the anchor &%s; write every value out", clip(n.Anchor))
	case n.Style&yaml.TaggedStyle != 0:
		s.add(n.Line, "the tag %s; no tags are allowed", clip(n.Tag))
		return
	}
	if n.Kind != yaml.MappingNode {
		for _, child := range n.Content {
			s.shape(child, depth+1)
		}
		return
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			s.add(key.Line, "a key that is not a plain word")
			continue
		}
		if key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 {
			s.add(key.Line, "key %q has an anchor or tag", clip(key.Value))
		}
		if key.Tag == "!!merge" {
			s.add(key.Line, "the merge key <<; write the values out")
			continue
		}
		if first, ok := seen[key.Value]; ok {
			s.add(key.Line, "key %q is there twice, first in line %d", clip(key.Value), first)
			continue
		}
		seen[key.Value] = key.Line
		s.shape(value, depth+1)
	}
}

var (
	unmarshalerType = reflect.TypeFor[Unmarshaler]()
	textType        = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// decode reads n into v. Tags are those of the struct field that v came from.
func (s *state) decode(n *yaml.Node, v reflect.Value, path string, tags reflect.StructTag) {
	s.lines[path] = n.Line
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		s.add(n.Line, "%shas no value; give it one or remove it", subject(path))
		return
	}
	if v.Kind() == reflect.Pointer {
		fresh, before := reflect.New(v.Type().Elem()), len(s.problems)
		s.decode(n, fresh.Elem(), path, tags)
		if n.Kind != yaml.ScalarNode || len(s.problems) == before {
			v.Set(fresh)
		}
		return
	}
	switch addr := v.Addr(); {
	case addr.Type().Implements(unmarshalerType):
		s.hook(n, path, addr.Interface().(Unmarshaler).UnmarshalYAMLNode(n))
		return
	case addr.Type().Implements(textType):
		text, ok := s.text(n, path, tags)
		if !ok {
			return
		}
		if err := addr.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
			s.hook(n, path, err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		s.structure(n, v, path)
	case reflect.Map:
		s.mapping(n, v, path, tags)
	case reflect.Slice:
		if !s.is(n, yaml.SequenceNode, path) {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, child := range n.Content {
			s.decode(child, v.Index(i), Index(path, i), tags)
		}
	case reflect.String:
		if text, ok := s.text(n, path, tags); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		if !s.is(n, yaml.ScalarNode, path) {
			return
		}
		if n.Tag != "!!bool" || n.Value != "true" && n.Value != "false" {
			s.add(n.Line, "%sis %s, allowed are true and false", subject(path), describe(n))
			return
		}
		v.SetBool(n.Value == "true")
	case reflect.Int, reflect.Int64:
		i, err := Integer(n)
		if err != nil {
			s.add(n.Line, "%sis %s, allowed is a whole number", subject(path), describe(n))
			return
		}
		v.SetInt(i)
	default:
		panic("strictyaml: cannot decode into " + v.Type().String())
	}
}

// Integer reads a whole decimal number as it is written in JSON: YAML's other
// spellings (010, 0x10, 1_000) mean different things to different readers.
func Integer(n *yaml.Node) (int64, error) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || !decimal.MatchString(n.Value) {
		return 0, At(n, "%s is not a whole decimal number", describe(n))
	}
	i, err := strconv.ParseInt(n.Value, 10, 64)
	if err != nil {
		return 0, At(n, "%s is out of range", describe(n))
	}
	return i, nil
}

var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

// Text reads a string. A scalar that YAML takes for something else, like 1.0 or
// on, is refused: whoever wrote it may have meant either.
func Text(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode {
		return "", At(n, "%s where a string is expected", describe(n))
	}
	if n.Tag != "!!str" {
		return "", At(n, "%s is not a string; write it in quotes", describe(n))
	}
	return n.Value, nil
}

func (s *state) text(n *yaml.Node, path string, tags reflect.StructTag) (string, bool) {
	text := n.Value
	if tags.Get("scalar") != "any" || n.Kind != yaml.ScalarNode {
		var err error
		if text, err = Text(n); err != nil {
			s.add(n.Line, "%s: %v", name(path), err)
			return "", false
		}
	}
	if text == "" && tags.Get("empty") != "allowed" {
		s.add(n.Line, "%sis empty; give it a value or remove it", subject(path))
		return "", false
	}
	if allowed := tags.Get("allowed"); allowed != "" && !slices.Contains(strings.Split(allowed, "|"), text) {
		s.add(n.Line, "%sis %q, allowed %s", subject(path), clip(text), list(strings.Split(allowed, "|")))
		return "", false
	}
	return text, true
}

// hook takes the error of an [Unmarshaler] apart.
func (s *state) hook(n *yaml.Node, path string, err error) {
	switch e := err.(type) { //nolint:errorlint // the tree is walked from its root
	case nil:
	case *located:
		s.add(e.node.Line, "%s: %s", name(path), e.msg)
	case *fault.Error:
		s.add(n.Line, "%s: %s", name(path), e.Error())
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			s.hook(n, path, part)
		}
	default:
		s.add(n.Line, "%s: %s", name(path), e.Error())
	}
}

// mapping reads a map. With the tag `entries:"list"` it may also be written as
// a list of mappings with one entry each.
func (s *state) mapping(n *yaml.Node, v reflect.Value, path string, tags reflect.StructTag) {
	pairs := n.Content
	switch {
	case n.Kind == yaml.SequenceNode && tags.Get("entries") == "list":
		pairs = nil
		for _, item := range n.Content {
			if item.Kind != yaml.MappingNode || len(item.Content) != 2 {
				s.add(item.Line, "%s: %s where a mapping with one entry is expected", name(path), describe(item))
				continue
			}
			pairs = append(pairs, item.Content...)
		}
	case !s.is(n, yaml.MappingNode, path):
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(pairs)/2))
	for i := 0; i+1 < len(pairs); i += 2 {
		key := reflect.ValueOf(pairs[i].Value).Convert(v.Type().Key())
		if v.MapIndex(key).IsValid() {
			s.add(pairs[i].Line, "%s: %q is there twice", name(path), clip(pairs[i].Value))
			continue
		}
		value := reflect.New(v.Type().Elem()).Elem()
		s.decode(pairs[i+1], value, Key(path, pairs[i].Value), tags)
		v.SetMapIndex(key, value)
	}
}

func (s *state) structure(n *yaml.Node, v reflect.Value, path string) {
	if !s.is(n, yaml.MappingNode, path) {
		return
	}
	fields := map[string]reflect.StructField{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if key := f.Tag.Get("yaml"); key != "" && key != "-" {
			fields[key] = f
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		f, ok := fields[key.Value]
		if !ok {
			s.add(key.Line, "unknown key %q%s, allowed %s", clip(key.Value), in(path), list(slices.Sorted(maps.Keys(fields))))
			continue
		}
		s.decode(n.Content[i+1], v.FieldByIndex(f.Index), Key(path, key.Value), f.Tag)
	}
}

func (s *state) is(n *yaml.Node, kind yaml.Kind, path string) bool {
	if n.Kind == kind {
		return true
	}
	s.add(n.Line, "%sis %s, allowed is %s", subject(path), describe(n), kinds[kind])
	return false
}

var kinds = map[yaml.Kind]string{
	yaml.MappingNode:  "a mapping",
	yaml.SequenceNode: "a list",
	yaml.ScalarNode:   "a single value",
}

// describe says what a node is, quoting a scalar in part.
func describe(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return kinds[n.Kind]
	}
	what := map[string]string{
		"!!str": "the string", "!!int": "the number", "!!float": "the number", "!!bool": "the truth value",
		"!!timestamp": "the date", "!!null": "the empty value", "!!binary": "the binary value",
	}[n.Tag]
	return strings.TrimSpace(fmt.Sprintf("%s %q", what, clip(n.Value)))
}

// clip keeps hostile text from filling an error message.
func clip(s string) string {
	if len(s) <= 64 {
		return s
	}
	return strings.ToValidUTF8(s[:64], "") + "…"
}

func list(of []string) string {
	if len(of) == 1 {
		return "is " + of[0]
	}
	return "are " + strings.Join(of, ", ")
}

func name(path string) string {
	if path == "" {
		return "the document"
	}
	return path
}

func subject(path string) string { return name(path) + " " }

func in(path string) string {
	if path == "" {
		return ""
	}
	return " in " + path
}
