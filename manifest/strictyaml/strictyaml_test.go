package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/mentatlab/mentat/internal/fault"
)

type document struct {
	Name   string            `yaml:"name"`
	Mode   string            `yaml:"mode" allowed:"allow|deny"`
	Note   string            `yaml:"note" empty:"allowed"`
	Spell  string            `yaml:"spell" scalar:"any"`
	On     bool              `yaml:"on"`
	Count  int               `yaml:"count"`
	Big    int64             `yaml:"big"`
	List   []string          `yaml:"list"`
	Map    map[string]string `yaml:"map" entries:"list"`
	Inner  *inner            `yaml:"inner"`
	Inners []inner           `yaml:"inners"`
	Wall   *bool             `yaml:"wall"`
	Text   upper             `yaml:"text"`
	Hook   pair              `yaml:"hook"`
	Hidden string            `yaml:"-"`
	Bare   string
}

type inner struct {
	A string           `yaml:"a"`
	B map[string]inner `yaml:"b"`
}

type upper string

func decode(file string, data []byte, out any) error {
	_, err := Decoder{Reason: fault.ManifestInvalid}.Decode(file, data, out)
	return err
}

func (u *upper) UnmarshalText(text []byte) error {
	if strings.ToUpper(string(text)) != string(text) {
		return fault.New(fault.Usage, "", "must be upper case")
	}
	*u = upper(text)
	return nil
}

// pair reads "[x, y]" and complains about both.
type pair [2]string

func (p *pair) UnmarshalYAMLNode(n *yaml.Node) error {
	if len(n.Content) != 2 {
		return At(n, "must be a pair")
	}
	var problems []error
	for i, child := range n.Content {
		text, err := Text(child)
		if text == "plain" {
			err = fmt.Errorf("a plain error")
		}
		problems = append(problems, err)
		p[i] = text
	}
	return errors.Join(problems...)
}

func TestDecodeFillsEveryKind(t *testing.T) {
	var got document
	err := decode("f", []byte(`
name: a
mode: deny
note: ""
spell: 1.0
on: true
count: -5
big: 9007199254740993
list: [x, "y", 'z']
map: {k: v}
inner: {a: b, b: {c: {a: d}}}
inners:
- a: "1"
- {}
wall: false
text: UP
hook: [x, y]
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	no := false
	want := document{
		Name: "a", Mode: "deny", Spell: "1.0", On: true, Count: -5, Big: 9007199254740993, List: []string{"x", "y", "z"},
		Map: map[string]string{"k": "v"}, Inner: &inner{A: "b", B: map[string]inner{"c": {A: "d"}}}, Inners: []inner{{A: "1"}, {}},
		Wall: &no, Text: "UP", Hook: pair{"x", "y"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestDecodeNamesLineAndRemedy(t *testing.T) {
	for text, want := range map[string][]string{
		"":                      {"f: the file is empty"},
		"# nothing\n":           {"f: the file is empty"},
		"---\n":                 {"f:2: the document is the empty value"},
		"- a":                   {"f:1: the document is a list, allowed is a mapping"},
		"name: a\nx: 1":         {`f:2: unknown key "x", allowed are big, count, hook, inner, inners, list, map, mode, name, note, on, spell, text, wall`},
		"Bare: a":               {`f:1: unknown key "Bare"`},
		"Hidden: a":             {`f:1: unknown key "Hidden"`},
		"-: a":                  {`f:1: unknown key "-"`},
		"Name: a":               {`f:1: unknown key "Name"`},
		"inner: {x: 1}":         {`f:1: unknown key "x" in inner, allowed are a, b`},
		"inners: [{}, {x: 1}]":  {`f:1: unknown key "x" in inners[1], allowed are a, b`},
		"name: a\nname: b":      {`f:2: key "name" is there twice, first in line 1`},
		"map: {a: b, \"a\": c}": {`key "a" is there twice`},
		"map: [a: b, a: c]":     {`f:1: map: "a" is there twice`},
		"map: [{a: b, c: d}]":   {"f:1: map: a mapping where a mapping with one entry is expected"},
		"map: {a: 1}":           {`f:1: map.a: the number "1" is not a string; write it in quotes`},
		"name: 1.10":            {`f:1: name: the number "1.10" is not a string; write it in quotes`},
		"name: true":            {`f:1: name: the truth value "true" is not a string`},
		"name: 2026-01-01":      {`f:1: name: the date "2026-01-01" is not a string`},
		"name: [a]":             {"f:1: name: a list where a string is expected"},
		"name: ~":               {"f:1: name has no value; give it one or remove it"},
		"name:":                 {"f:1: name has no value"},
		`name: ""`:              {"f:1: name is empty; give it a value or remove it"},
		"list: [a, '']":         {"f:1: list[1] is empty"},
		"mode: Allow":           {`f:1: mode is "Allow", allowed are allow, deny`},
		"on: yes":               {`f:1: on is the string "yes", allowed are true and false`},
		"on: 1":                 {`f:1: on is the number "1"`},
		"on: 'true'":            {`f:1: on is the string "true"`},
		"count: 0x10":           {`f:1: count is the number "0x10", allowed is a whole number`},
		"count: 010":            {"allowed is a whole number"},
		"count: 1_000":          {"allowed is a whole number"},
		"count: +1":             {"allowed is a whole number"},
		"count: 1.0":            {"allowed is a whole number"},
		"count: '1'":            {"allowed is a whole number"},
		"big: 9223372036854775808": {
			"allowed is a whole number"},
		"list: a":                        {`f:1: list is the string "a", allowed is a list`},
		"list: {a: b}":                   {"f:1: list is a mapping, allowed is a list"},
		"map: a":                         {`f:1: map is the string "a", allowed is a mapping`},
		"inner: a":                       {"f:1: inner is the string \"a\", allowed is a mapping"},
		"name: &a b":                     {"f:1: the anchor &a"},
		"name: &a b\nnote: *a":           {"f:1: the anchor &a", "f:2: the alias *a"},
		"name: *a":                       {"not YAML: unknown anchor 'a' referenced"},
		"inner: &a {a: x}\n<<: *a":       {"f:1: the anchor &a", "f:2: the merge key <<"},
		"<<: {name: a}":                  {"f:1: the merge key <<"},
		"name: !!str a":                  {"f:1: the tag !!str"},
		"name: !!binary aGk=":            {"f:1: the tag !!binary"},
		"!!str name: a":                  {`key "name" has an anchor or tag`},
		"&k name: a":                     {`key "name" has an anchor or tag`},
		"? {a: b}\n: c":                  {"f:1: a key that is not a plain word"},
		"name: a\n---\nname: b":          {"f:2: a second document, allowed is one"},
		"name: a\n--- {}\n...":           {"a second document"},
		"name: a: b":                     {"f:1: not YAML: mapping values are not allowed in this context"},
		"name: a\nlist: [1, 2\nmap: b\n": {"f:2: not YAML: did not find expected ',' or ']'"},
		"name: a\n- c\n":                 {"f:2: not YAML: did not find expected key"},
		"name: a\nmode: @x":              {"f:2: not YAML: found character that cannot start any token"},
		"name: 'a":                       {"not YAML"},
		"name: a\n\tx: b":                {"f:2: not YAML"},
		"name: \xff":                     {"f:1: the text is not UTF-8"},
		"name: a\nmode: \xff":            {"f:2: the text is not UTF-8"},
		"\ufeffname: a":                  {"f:1: a byte order mark"},
		"\xff\xfen\x00":                  {"f:1: the text is not UTF-8"},
		"name: a\u2028b":                 {"f:1: the character U+2028"},
		"name: a\u0085b: c":              {"f:1: the character U+0085"},
		"name: a\rmode: b":               {"f:1: a carriage return without a line feed"},
		"name: a\x00":                    {"not YAML: control characters are not allowed"},
		"text: low":                      {"f:1: text: must be upper case"},
		"text: 5":                        {`f:1: text: the number "5" is not a string`},
		"hook: a":                        {"f:1: hook: must be a pair"},
		"hook:\n- 1\n- 2":                {`f:2: hook: the number "1" is not a string`, `f:3: hook: the number "2" is not a string`},
		"hook: [plain, 1]":               {"f:1: hook: a plain error", "f:1: hook: the number"},
		"x: 1\nname: 2\non: 3":           {"f:1: unknown key", "f:2: name:", "f:3: on is"},
	} {
		got := document{}
		err := decode("f", []byte(text), &got)
		if err == nil {
			t.Errorf("%q: accepted as %+v", text, got)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(want) {
			t.Errorf("%q: %d errors: %v", text, len(lines), err)
			continue
		}
		for i := range want {
			if !strings.Contains(lines[i], want[i]) || !strings.HasPrefix(lines[i], "f:") {
				t.Errorf("%q: %s, want %s", text, lines[i], want[i])
			}
		}
		if fault.ReasonOf(err) != fault.ManifestInvalid {
			t.Errorf("%q: reason %s", text, fault.ReasonOf(err))
		}
	}
}

func TestDecoderHasAReason(t *testing.T) {
	for _, text := range []string{"", "x: 1", "name: 'a", "- a", strings.Repeat(" ", maxBytes+1), "\xff", "name: a\n--- a"} {
		_, err := Decoder{Reason: fault.PolicyInvalid}.Decode("f", []byte(text), new(document))
		if fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestDecodeIsBounded(t *testing.T) {
	nested := strings.Repeat("{b: {x: ", 40) + "1" + strings.Repeat("}}", 40)
	for text, want := range map[string]string{
		"inner: " + nested:                          "nested over 32 levels",
		strings.Repeat("[", 9000):                   "not YAML",
		"name: " + strings.Repeat("a", maxBytes):    "over 1048576 bytes",
		"list: [" + strings.Repeat("1, ", 1000):     "not YAML",
		"list: [" + strings.Repeat("1, ", 99) + "]": "49 more problems",
		"? " + strings.Repeat("k", 5000) + "\n: 1":  "unknown key",
	} {
		err := decode("f", []byte(text), new(document))
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 1<<14 {
			t.Errorf("%.20q: %.200v", text, err)
		}
	}
}

func TestLinesFindTheNearestValue(t *testing.T) {
	var d document
	lines, err := Decoder{}.Decode("f", []byte("name: a\ninner:\n  a: b\nlist:\n- x\n- y\nmap:\n  /a.b[0]: c\n"), &d)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"": 1, "name": 1, "inner": 3, "inner.a": 3, "inner.b": 3, "inner.b.c.d": 3, "list[1]": 6, "list[1].x": 6, "list[7]": 5,
		Key("map", "/a.b[0]"): 8, "nothing": 1, Index("inners", 3): 1,
	} {
		if got := lines.Of(path); got != want {
			t.Errorf("%q is in line %d, want %d", path, got, want)
		}
	}
	if Lines(nil).Of("a.b") != 1 {
		t.Error("no lines are not line 1")
	}
}

// FuzzStrictYAML checks that what is accepted is what the YAML library reads
// too, and that every refusal is an error with a place.
func FuzzStrictYAML(f *testing.F) {
	for _, seed := range []string{
		"name: a\nmode: deny\nnote: \"\"\non: true\ncount: -5\nlist: [x, \"y\", 'z']\nmap: {k: v}\ninner: {a: b, b: {c: {a: d}}}\n",
		"inners:\n- a: \"1\"\n- {}\nwall: false\ntext: UP\nhook: [x, y]\nspell: 1.0\n",
		"name: &a b\nnote: *a", "<<: {name: a}", "name: !!str a", "name: |\n  x\n  y\n", "name: >-\n  x\n  y\n", "? name\n: a\n",
		"name: a\n---\nname: b", "name: a: b", "name: \"\\x41\\u00e9\\U0001F600\"", "map: [a: b, c: d]", "%YAML 1.1\n---\nname: a\n", "name: a\r\nmode: allow\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var got document
		err := decode("f", text, &got)
		if err != nil {
			if fault.ReasonOf(err) != fault.ManifestInvalid {
				t.Fatalf("reason %s", fault.ReasonOf(err))
			}
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.HasPrefix(line, "f:") {
					t.Fatalf("no place: %q", line)
				}
			}
			return
		}
		// The library on its own must see the same values.
		var other struct {
			Name  string   `yaml:"name"`
			Mode  string   `yaml:"mode"`
			Note  string   `yaml:"note"`
			On    bool     `yaml:"on"`
			Count int64    `yaml:"count"`
			List  []string `yaml:"list"`
			Inner *struct {
				A string `yaml:"a"`
			} `yaml:"inner"`
		}
		if err := yaml.Unmarshal(text, &other); err != nil {
			t.Fatalf("accepted what the library refuses: %v", err)
		}
		if got.Name != other.Name || got.Mode != other.Mode || got.Note != other.Note || got.On != other.On || int64(got.Count) != other.Count ||
			(len(got.List) > 0 || len(other.List) > 0) && !reflect.DeepEqual(got.List, other.List) ||
			(got.Inner == nil) != (other.Inner == nil) || got.Inner != nil && got.Inner.A != other.Inner.A {
			t.Fatalf("%+v, the library reads %+v", got, other)
		}
	})
}

func TestKeysAreThoseThatAreKnown(t *testing.T) {
	type inner struct {
		B string `yaml:"b"`
		C string
	}
	type outer struct {
		A    inner             `yaml:"a"`
		P    *inner            `yaml:"p"`
		List []inner           `yaml:"list"`
		Map  map[string]string `yaml:"map"`
		No   string            `yaml:"-"`
	}
	if got, want := strings.Join(Keys(outer{}), " "), "a a.b list list[].b map p p.b"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
