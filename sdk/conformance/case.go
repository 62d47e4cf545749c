package conformance

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
)

//go:embed cases/*.txt
var caseFiles embed.FS

// Case is one run: what it is given, the calls that the guest makes, what each
// gives, and what the run emits.
type Case struct {
	// Name is the claim that the case makes, its heading in File.
	Name, File string

	grants   []string
	denials  []string
	config   map[string]string
	env      []string
	dirs     []directory
	files    map[string]string // path as the guest sees it
	media    *mediaSetup
	limits   map[string]int64
	input    string
	hasInput bool
	// command runs the guest's _start in place of process; returns is what process
	// returns.
	command bool
	returns int32
	steps   []step
	exit    exit
}

type directory struct {
	guest    string
	readOnly bool
}

type mediaSetup struct {
	item, total int64
	given, kept []string // contents
}

// step is a call or an event that is expected at that point.
type step struct {
	line int
	// event is JSON that the next event must match, if the step is no call.
	event map[string]any
	call  int
	args  []argument
	// want judges the result.
	want want
}

// argument is one parameter, or two that are a pointer and a length.
type argument struct {
	kind  argKind
	value int64   // of an integer, a raw pointer or a result's slot
	float float64 // of a float
	text  string  // of bytes in the guest's memory
}

type argKind byte

const (
	argInt     argKind = iota
	argFloat           // an f64
	argText            // pointer and length of bytes
	argScratch         // the pointer of a place to write to
	argResult          // what an earlier call gave
)

type wantKind int

const (
	wantAny wantKind = iota
	wantValue
	wantHandle // not negative
	wantTrap
)

type want struct {
	kind  wantKind
	value int64
	// name is how later calls know the result.
	name string
	// data, if hasData, is what was read, or a part of it if that is all that
	// matters.
	data    string
	hasData bool
	part    bool
}

type exit struct {
	status  int
	reason  string
	message string // a part of it
}

// Cases are those of the suite, in the order of their files.
func Cases() ([]Case, error) {
	names, err := fs.Glob(caseFiles, "cases/*.txt")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "cases", "cannot list the cases")
	}
	var all []Case
	for _, name := range names {
		text, err := caseFiles.ReadFile(name)
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, name, "cannot read the cases")
		}
		cases, err := ParseCases(path.Base(name), string(text))
		if err != nil {
			return nil, err
		}
		all = append(all, cases...)
	}
	return all, nil
}

// ParseCases reads cases; README.md has their form. Errors are [fault.Usage] and
// name the line.
func ParseCases(file, text string) ([]Case, error) {
	var cases []Case
	var names map[string]int
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "== "); ok {
			cases = append(cases, Case{Name: name, File: file, config: map[string]string{}, files: map[string]string{}, limits: map[string]int64{}})
			names = map[string]int{}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		err := errors.New("a case begins with a line \"== NAME\"")
		if len(cases) > 0 {
			err = cases[len(cases)-1].line(n, line, names)
		}
		if err != nil {
			return nil, fault.Wrap(err, fault.Usage, fmt.Sprintf("%s:%d", file, n), "not a line of a case")
		}
	}
	return cases, nil
}

// line adds one line to the case; names has the slots of named results.
func (c *Case) line(n int, line string, names map[string]int) error {
	if event, ok := strings.CutPrefix(line, "> "); ok {
		s := step{line: n}
		dec := json.NewDecoder(strings.NewReader(event))
		dec.UseNumber()
		if err := dec.Decode(&s.event); err != nil {
			return err
		}
		c.steps = append(c.steps, s)
		return nil
	}
	words, err := split(line)
	if err != nil {
		return err
	}
	verb, rest := words[0].text, words[1:]
	if verb == "call" {
		return c.addCall(n, rest, names)
	}
	set, ok := settings[verb]
	if !ok {
		return fmt.Errorf("%q is none of call, >, %s", verb, strings.Join(slices.Sorted(maps.Keys(settings)), ", "))
	}
	texts := make([]string, len(rest))
	for i, w := range rest {
		texts[i] = w.text
	}
	if len(texts) < set.least || len(texts) > set.most {
		return fmt.Errorf("%s takes %d to %d words", verb, set.least, set.most)
	}
	return set.do(c, texts)
}

// Command says that the guest must export _start.
func (c *Case) Command() bool { return c.command }

// settings are the lines that say what a run is given and how it ends.
var settings = map[string]struct {
	least, most int
	do          func(*Case, []string) error
}{
	"grant":  {1, 1, func(c *Case, w []string) error { c.grants = append(c.grants, w[0]); return nil }},
	"deny":   {1, 1, func(c *Case, w []string) error { c.denials = append(c.denials, w[0]); return nil }},
	"config": {2, 2, func(c *Case, w []string) error { c.config[w[0]] = w[1]; return nil }},
	"env":    {1, 1, func(c *Case, w []string) error { c.env = append(c.env, w[0]); return nil }},
	"input":  {1, 1, func(c *Case, w []string) error { c.input, c.hasInput = w[0], true; return nil }},
	"dir": {1, 2, func(c *Case, w []string) error {
		c.dirs = append(c.dirs, directory{w[0], len(w) > 1 && w[1] == "read-only"})
		return nil
	}},
	"file": {2, 2, func(c *Case, w []string) error { c.files[w[0]] = w[1]; return nil }},
	"media": {2, 2, func(c *Case, w []string) (err error) {
		c.media = &mediaSetup{}
		if c.media.item, err = strconv.ParseInt(w[0], 10, 64); err == nil {
			c.media.total, err = strconv.ParseInt(w[1], 10, 64)
		}
		return err
	}},
	"given": {1, 1, func(c *Case, w []string) error {
		return c.store(func(m *mediaSetup) { m.given = append(m.given, w[0]) })
	}},
	"kept": {1, 1, func(c *Case, w []string) error { return c.store(func(m *mediaSetup) { m.kept = append(m.kept, w[0]) }) }},
	"limit": {2, 2, func(c *Case, w []string) (err error) {
		c.limits[w[0]], err = strconv.ParseInt(w[1], 10, 64)
		return err
	}},
	"command": {0, 0, func(c *Case, _ []string) error { c.command = true; return nil }},
	"return": {1, 1, func(c *Case, w []string) error {
		n, err := strconv.ParseInt(w[0], 10, 32)
		c.returns = int32(n)
		return err
	}},
	"exit": {1, 3, func(c *Case, w []string) (err error) {
		w = append(w, "", "")
		c.exit.status, err = strconv.Atoi(w[0])
		c.exit.reason, c.exit.message = w[1], w[2]
		return err
	}},
}

func (c *Case) store(do func(*mediaSetup)) error {
	if c.media == nil {
		return errors.New("a line \"media ITEM TOTAL\" comes first")
	}
	do(c.media)
	return nil
}

func (c *Case) addCall(n int, words []word, names map[string]int) error {
	if len(words) == 0 {
		return errors.New("call what?")
	}
	index, ok := lookup(words[0].text)
	if !ok {
		return fmt.Errorf("no function is called %q", words[0].text)
	}
	s := step{line: n, call: index}
	at := slices.IndexFunc(words, func(w word) bool { return !w.quoted && w.text == "->" })
	given := words[1:]
	if at >= 0 {
		given = words[1:at]
		var err error
		if s.want, err = parseWant(words[at+1:]); err != nil {
			return err
		}
	}
	for _, w := range given {
		args, err := parseArg(w, names)
		if err != nil {
			return err
		}
		s.args = append(s.args, args...)
	}
	if got, want := shape(s.args), Functions[index].Params; got != want {
		return fmt.Errorf("%s takes %q, these are %q", Functions[index], want, got)
	}
	if s.want.name != "" {
		names[s.want.name] = c.calls()
	}
	c.steps = append(c.steps, s)
	return nil
}

// calls is how many calls the case has.
func (c *Case) calls() int {
	n := 0
	for _, s := range c.steps {
		if s.event == nil {
			n++
		}
	}
	return n
}

// shape is the parameters that arguments fill.
func shape(args []argument) string {
	var b strings.Builder
	for _, a := range args {
		switch a.kind {
		case argFloat:
			b.WriteByte('F')
		case argText:
			b.WriteString("ii")
		default:
			b.WriteByte('i')
		}
	}
	return b.String()
}

// parseArg reads 12, 0xff, -1, 1.5, nan, inf, "text", $name, @PTR:LEN or
// scratch:LEN.
func parseArg(w word, names map[string]int) ([]argument, error) {
	if w.quoted {
		return []argument{{kind: argText, text: w.text}}, nil
	}
	if name, ok := strings.CutPrefix(w.text, "$"); ok {
		slot, ok := names[name]
		if !ok {
			return nil, fmt.Errorf("no result is called %q", name)
		}
		return []argument{{kind: argResult, value: int64(slot)}}, nil
	}
	if span, ok := strings.CutPrefix(w.text, "@"); ok {
		ptr, length, ok := strings.Cut(span, ":")
		p, err := strconv.ParseUint(ptr, 0, 32)
		n, err2 := strconv.ParseUint(length, 0, 32)
		if !ok || err != nil || err2 != nil {
			return nil, fmt.Errorf("%q is not @POINTER:LENGTH", w.text)
		}
		return []argument{{value: int64(p)}, {value: int64(n)}}, nil
	}
	if length, ok := strings.CutPrefix(w.text, "scratch:"); ok {
		n, err := strconv.ParseUint(length, 0, 16)
		if err != nil || n > ScratchBytes {
			return nil, fmt.Errorf("%q is not scratch:LENGTH, of at most %d", w.text, ScratchBytes)
		}
		return []argument{{kind: argScratch}, {value: int64(n)}}, nil
	}
	if n, err := strconv.ParseInt(w.text, 0, 64); err == nil && n >= math.MinInt32 && n <= math.MaxUint32 {
		return []argument{{value: n}}, nil
	}
	f, err := strconv.ParseFloat(w.text, 64)
	if err != nil {
		return nil, fmt.Errorf("%q is no argument", w.text)
	}
	return []argument{{kind: argFloat, float: f}}, nil
}

// parseWant reads any, trap, $name, a number or a code, and what was read: "text",
// or has "part".
func parseWant(words []word) (want, error) {
	var w want
	if len(words) == 3 && !words[1].quoted && words[1].text == "has" {
		w.part = true
		words = slices.Delete(slices.Clone(words), 1, 2)
	}
	if len(words) == 0 || len(words) > 2 || len(words) == 2 && !words[1].quoted {
		return w, errors.New("after -> comes a result, and what was read")
	}
	if len(words) == 2 {
		w.data, w.hasData = words[1].text, true
	}
	text := words[0].text
	if name, ok := strings.CutPrefix(text, "$"); ok {
		w.kind, w.name = wantHandle, name
		return w, nil
	}
	code, known := Codes[text]
	n, err := strconv.ParseInt(text, 0, 64)
	switch {
	case text == "any":
	case text == "trap":
		w.kind = wantTrap
	case known:
		w.kind, w.value = wantValue, code
	case err == nil:
		w.kind, w.value = wantValue, n
	default:
		return w, fmt.Errorf("%q is no result", text)
	}
	return w, nil
}

// word is a word of a line; quoted ones are Go's strings.
type word struct {
	text   string
	quoted bool
}

func split(line string) ([]word, error) {
	var words []word
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " \t") {
		if line[0] == '"' {
			prefix, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("a text does not end: %s", line)
			}
			text, err := strconv.Unquote(prefix)
			if err != nil {
				return nil, err
			}
			words = append(words, word{text, true})
			line = line[len(prefix):]
			continue
		}
		text, _, _ := strings.Cut(line, " ")
		words = append(words, word{text: text})
		line = line[len(text):]
	}
	return words, nil
}
