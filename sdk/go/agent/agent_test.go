package agent

import (
	"bytes"
	"errors"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mentatlab/sdk-go/internal/mentat"
)

func TestInputFieldsAreReadByTypeOrRefusedByName(t *testing.T) {
	in := NewInput([]byte(`{"s":"x","n":1.5,"i":7,"big":9007199254740993,"b":true,"ns":[1,2.5],"ss":["a"],"o":{"k":1},"z":null,"holes":[1,null],"huge":1e999}`))
	cases := []struct {
		name string
		get  func() (any, error)
		want any
		err  string
	}{
		{"string", func() (any, error) { return in.GetString("s") }, "x", ""},
		{"number", func() (any, error) { return in.GetNumber("n") }, 1.5, ""},
		{"whole number", func() (any, error) { return in.GetInt("i") }, int64(7), ""},
		{"whole number beyond a float", func() (any, error) { return in.GetInt("big") }, int64(9007199254740993), ""},
		{"bool", func() (any, error) { return in.GetBool("b") }, true, ""},
		{"missing", func() (any, error) { return in.GetString("q") }, "", `input field "q" is missing`},
		{"number for string", func() (any, error) { return in.GetString("n") }, "", `input field "n" is a number, wanted is a string`},
		{"string for number", func() (any, error) { return in.GetNumber("s") }, 0.0, `input field "s" is a string, wanted is a number`},
		{"fraction for int", func() (any, error) { return in.GetInt("n") }, int64(0), `input field "n" is not a whole number`},
		{"null for string", func() (any, error) { return in.GetString("z") }, "", `input field "z" is null, wanted is a string`},
		{"out of range", func() (any, error) { return in.GetNumber("huge") }, 0.0, `input field "huge" is not a number`},
		{"object for bool", func() (any, error) { return in.GetBool("o") }, false, `input field "o" is an object, wanted is true or false`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.get()
			if text(err) != c.err {
				t.Fatalf("error %q, want %q", text(err), c.err)
			}
			if err == nil && got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	if ns, err := in.GetNumberArray("ns"); err != nil || len(ns) != 2 || ns[1] != 2.5 {
		t.Errorf("numbers: %v, %v", ns, err)
	}
	if _, err := in.GetNumberArray("holes"); text(err) != `input field "holes" has null at index 1, wanted is a number` {
		t.Errorf("null in an array: %v", err)
	}
	if _, err := in.GetNumberArray("ss"); text(err) != `input field "ss" is not an array of numbers` {
		t.Errorf("strings for numbers: %v", err)
	}
	if ss, err := in.GetStringArray("ss"); err != nil || len(ss) != 1 || ss[0] != "a" {
		t.Errorf("strings: %v, %v", ss, err)
	}
	var o struct{ K int }
	if err := in.GetJSON("o", &o); err != nil || o.K != 1 {
		t.Errorf("object: %v, %v", o, err)
	}
	if !in.Has("z") || in.Has("q") {
		t.Error("Has must tell null from missing")
	}
}

func TestInputThatIsNoObjectSaysWhatItIs(t *testing.T) {
	for input, want := range map[string]string{
		"":          "input is empty, wanted is a JSON object",
		" \n":       "input is empty, wanted is a JSON object",
		"[1]":       "input is an array, wanted is a JSON object",
		"null":      "input is null, wanted is a JSON object",
		`"text"`:    "input is a string, wanted is a JSON object",
		"words":     "input is not JSON: invalid character 'w' looking for beginning of value",
		`{"a":1} x`: "input is not JSON: invalid character 'x' after top-level value",
	} {
		in := NewInput([]byte(input))
		if _, err := in.GetString("a"); text(err) != want {
			t.Errorf("%q: error %q, want %q", input, text(err), want)
		}
		if string(in.Raw()) != input || in.Text() != input {
			t.Errorf("%q: raw input changed", input)
		}
	}
	if _, err := (Input{}).GetString("a"); err == nil {
		t.Error("the zero input has no fields")
	}
}

func TestOutputKeepsTheOrderOfItsFields(t *testing.T) {
	got, err := NewOutput().SetNumber("count", 2).SetJSON("z", map[string]int{"b": 1, "a": 2}).
		SetString("html", "<a & b>").SetInt("n", 1<<60).SetBool("ok", true).SetNumber("count", 3).Encode()
	want := `{"count":3,"z":{"a":2,"b":1},"html":"<a & b>","n":1152921504606846976,"ok":true}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

func TestOutputThatJSONCannotHoldFailsTheRun(t *testing.T) {
	for name, o := range map[string]Output{
		"NaN":          NewOutput().SetNumber("x", math.NaN()).SetNumber("y", 1),
		"a channel":    NewOutput().SetJSON("x", make(chan int)),
		"field of raw": RawOutput([]byte("text")).SetString("x", "y"),
	} {
		if _, err := o.Encode(); err == nil || !strings.Contains(err.Error(), `output field "x"`) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestHostErrorKeepsCodeAndDetail(t *testing.T) {
	err := hostError(&mentat.Failure{Code: -2, Detail: []byte(`{"code":-2,"capability":"env:X","reason":"not granted","hint":"add env:X"}`)})
	if !errors.Is(err, Denied) || errors.Is(err, NotFound) {
		t.Errorf("code lost: %v", err)
	}
	if text(err) != "denied: not granted (add env:X)" {
		t.Errorf("text %q", text(err))
	}
	if err := hostError(&mentat.Failure{Code: -3, Detail: []byte("not json")}); text(err) != "not found" {
		t.Errorf("text %q", text(err))
	}
	if _, err := GetConfig("k"); !errors.Is(err, NotFound) {
		t.Errorf("config of a program: %v", err)
	}
}

type echo struct{}

func (echo) Process(in Input) (Output, error) {
	if in.Text() == "panic" {
		panic("on purpose")
	}
	if in.Text() == "nothing" {
		return nil, nil
	}
	if in.Text() == "fail" {
		return RawOutput([]byte("never written")), errors.New("on purpose")
	}
	return RawOutput(in.Raw()), nil
}

// TestMain is also the program that TestProgramMapsStdinToStdout starts.
func TestMain(m *testing.M) {
	if os.Getenv("AGENT_TEST_PROGRAM") != "" {
		Register(echo{})
		Run()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestProgramMapsStdinToStdout(t *testing.T) {
	for _, c := range []struct {
		input, stdout, stderr string
		status                int
	}{
		{"hello", "hello", "", 0},
		{"nothing", "", "", 0},
		{"fail", "", "error: on purpose\n", 1},
		{"panic", "", "error: panic: on purpose\n", 2},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "AGENT_TEST_PROGRAM=1")
		cmd.Stdin = strings.NewReader(c.input)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.status {
			t.Errorf("%s: status %d, want %d", c.input, got, c.status)
		}
		if stdout.String() != c.stdout || !strings.HasPrefix(stderr.String(), c.stderr) {
			t.Errorf("%s: stdout %q, stderr %q", c.input, &stdout, &stderr)
		}
	}
	cmd := exec.Command(os.Args[0], "two", "words")
	cmd.Env = append(os.Environ(), "AGENT_TEST_PROGRAM=1")
	if out, err := cmd.Output(); err != nil || string(out) != "two words" {
		t.Errorf("arguments as input: %q, %v", out, err)
	}
}

func FuzzInputNeverPanicsAndNeverInventsAField(f *testing.F) {
	for _, seed := range []string{`{"a":"b"}`, `{"a":null}`, `[]`, ``, `{"a":"\ud800"}`, `{"a":1,"a":"x"}`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := NewInput(data)
		s, err := in.GetString("a")
		if err == nil && !in.Has("a") {
			t.Errorf("%q was read from a field that is not there", s)
		}
		if _, nerr := in.GetNumber("a"); err == nil && nerr == nil {
			t.Error("a field is a string and a number")
		}
	})
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
