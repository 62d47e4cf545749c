package canonical

import (
	"bytes"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

var accepted = map[string]string{
	`{}`:                             `{}`,
	" [ ] \n":                        `[]`,
	`null`:                           `null`,
	`[true, false]`:                  `[true,false]`,
	`-12`:                            `-12`,
	`9007199254740991`:               `9007199254740991`,
	`-9007199254740991`:              `-9007199254740991`,
	`{"b":1,"a":2}`:                  `{"a":2,"b":1}`,
	`{"a":{"d":1,"c":2}}`:            `{"a":{"c":2,"d":1}}`,
	`{"":0}`:                         `{"":0}`,
	`"\u0041\/\u00e9\n\u001F\u007f"`: "\"A/é\\n\\u001f\x7f\"",
	`"\ud83d\ude00"`:                 `"😀"`,
	`{"\ud83d\ude00":1,"\ufb33":2}`:  "{\"😀\":1,\"\ufb33\":2}", // by UTF-16 units, not by code points
	`{"a":1,"A":2}`:                  `{"A":2,"a":1}`,
	"\"\u2028\ufffd\"":               "\"\u2028\ufffd\"",
}

var refused = map[string]string{
	``:                              "empty",
	` `:                             "a value is expected",
	"\xef\xbb\xbf{}":                "byte order mark",
	`{`:                             "a key is expected",
	`{"a"`:                          "':' is expected",
	`{"a":1`:                        "',' or '}' is expected",
	`{"a":1,}`:                      "a key is expected",
	`{a:1}`:                         "a key is expected",
	`[1,]`:                          "a value is expected",
	`[1 2]`:                         "',' or ']' is expected",
	`{} {}`:                         "data after the end",
	`nul`:                           "a value is expected",
	`nulls`:                         "data after the end",
	`{"a":1,"a":1}`:                 `key "a" occurs twice`,
	`{"a":1,"\u0061":2}`:            `key "a" occurs twice`,
	`{"x":{"é":1,"\u00e9":2}}`:      `key "é" occurs twice`,
	`1.0`:                           "not an integer",
	`1e3`:                           "not an integer",
	`1E400`:                         "not an integer",
	`01`:                            "leading zero",
	`-`:                             "a digit is expected",
	`-0`:                            "negative zero",
	`+1`:                            "a value is expected",
	`NaN`:                           "a value is expected",
	`9007199254740992`:              "beyond ±9007199254740991",
	`-9007199254740992`:             "beyond",
	`99999999999999999999`:          "beyond",
	"\"\xff\"":                      "not UTF-8",
	"\"\xed\xa0\x80\"":              "not UTF-8",
	"{\"\xc0\x80\":1}":              "not UTF-8",
	"\"a\nb\"":                      "control character",
	"\"a\x00b\"":                    "control character",
	`"\x41"`:                        "unknown escape",
	`"\u12"`:                        "unknown escape",
	`"\u12g4"`:                      "unknown escape",
	`"\`:                            "unknown escape",
	`"\ud800"`:                      "surrogate",
	`"\udc00"`:                      "surrogate",
	`"\ud800\u0041"`:                "surrogate",
	`"\udc00\ud800"`:                "surrogate",
	`"\ud800\ud800"`:                "surrogate",
	`"abc`:                          "inside a string",
	strings.Repeat("[", 33):         "nested over 32 levels",
	strings.Repeat(`{"a":`, 33):     "nested over 32 levels",
	strings.Repeat("[", 1_000_000):  "nested over 32 levels",
	"{\"a\":1}\x00":                 "data after the end",
	"\u00a0{}":                      "a value is expected",
	"// comment\n{}":                "a value is expected",
	`{"a":1,/**/"b":2}`:             "a key is expected",
	`{'a':1}`:                       "a key is expected",
	`[` + strings.Repeat(`{},`, 99): "a value is expected",
}

func TestJSONHasOneForm(t *testing.T) {
	for in, want := range accepted {
		got, err := JSON([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%q becomes %q, %v; want %q", in, got, err, want)
		}
	}
	deepest := strings.Repeat("[", 32) + strings.Repeat("]", 32)
	if err := Check([]byte(deepest)); err != nil {
		t.Error(err)
	}
}

func TestCheckRefusesWhatTwoReadersReadDifferently(t *testing.T) {
	for in, want := range refused {
		err := Check([]byte(in))
		if err == nil || !strings.Contains(err.Error(), want) || fault.ReasonOf(err) != fault.ArtifactInvalid || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: %v, want %q", in, err, want)
		}
		if out, err := JSON([]byte(in)); err == nil || out != nil {
			t.Errorf("%.60q: JSON returned %q, %v", in, out, err)
		}
	}
}

func TestMarshalRefusesTextThatIsNotUTF8(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		{map[string]any{"b": "<&>", "a": []int{1}}, `{"a":[1],"b":"<&>"}`},
		{"real \ufffd", "\"real \ufffd\""},
		{`literal \ufffd`, `"literal \\ufffd"`},
		{"bad \xff", ""},
		{`\` + "\xff", ""},
		{map[string]int{"\xff": 1}, ""},
		{1.5, ""},
		{make(chan int), ""},
	} {
		got, err := Marshal(c.in)
		if string(got) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
}

// FuzzCanonical compares with implementations that others wrote: what the strict
// check accepts, each of them reads, and the form is the same.
func FuzzCanonical(f *testing.F) {
	for in := range accepted {
		f.Add([]byte(in))
	}
	for in := range refused {
		f.Add([]byte(in[:min(len(in), 200)]))
	}
	for _, d := range differences {
		f.Add([]byte(d.in[:min(len(d.in), 200)]))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := JSON(data)
		if (err == nil) != (Check(data) == nil) {
			t.Fatalf("the check and the transformation disagree: %v", err)
		}
		if err != nil {
			return
		}
		again, err := JSON(got)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q becomes %q, %v", got, again, err)
		}
		if err := agreed(data, got); err != nil {
			t.Fatal(err)
		}
	})
}
