package canonical

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/gowebpki/jcs"

	"github.com/mentatlab/mentat/internal/fault"
)

// implementation is one of RFC 8785, without our check before it.
type implementation struct {
	name string
	form func([]byte) ([]byte, error)
}

// implementations are the one that we use and two that others wrote.
var implementations = []implementation{
	{"gowebpki", jcs.Transform},
	{"jsontext", func(data []byte) ([]byte, error) {
		v := jsontext.Value(bytes.Clone(data))
		err := v.Canonicalize()
		return v, err
	}},
	{"cyberphone", func(data []byte) ([]byte, error) {
		// It reads objects and arrays only.
		out, err := jsoncanonicalizer.Transform(slices.Concat([]byte("["), data, []byte("]")))
		if err != nil {
			return nil, err // it returns bytes beside some errors
		}
		return out[1 : len(out)-1], nil
	}},
}

// The examples of RFC 8785, section 3.2: the input, and the result in bytes.
func TestTheExamplesOfTheRFC(t *testing.T) {
	for name, c := range map[string]struct{ in, hex string }{
		"serialization": {
			`{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}`,
			"7b226c69746572616c73223a5b6e756c6c2c747275652c66616c73655d2c226e756d62657273223a5b3333333333333333332e333333333333332c" +
				"31652b33302c342e352c302e3030322c31652d32375d2c22737472696e67223a22e282ac245c75303030665c6e4127425c225c5c5c5c5c222f227d",
		},
		"sorting": {
			`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",` +
				`"\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			hex.EncodeToString([]byte("{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"\u00f6\":\"Latin Small Letter O With Diaeresis\"," +
				"\"\u20ac\":\"Euro Sign\",\"\U0001f600\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}")),
		},
	} {
		want, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range implementations {
			if got, err := i.form([]byte(c.in)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %s: %q, %v; want %q", name, i.name, got, err, want)
			}
		}
		// Ours signs no number that is not an integer; the rest is the same.
		whole := c.in
		for _, n := range []string{"333333333.33333329", "1E30", "4.50", "2e-3", "0.000000000000000000000000001"} {
			if strings.Contains(whole, n) {
				if err := Check([]byte(n)); fault.ReasonOf(err) != fault.ArtifactInvalid {
					t.Errorf("%s: %v", n, err)
				}
				whole = strings.Replace(whole, n, "1", 1)
			}
		}
		for _, n := range []string{"333333333.3333333", "1e+30", "4.5", "0.002", "1e-27"} {
			want = bytes.Replace(want, []byte(n), []byte("1"), 1)
		}
		if got, err := JSON([]byte(whole)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// The numbers of RFC 8785, appendix B: bits of a double and how it is written.
func TestTheNumbersOfTheRFC(t *testing.T) {
	for bits, want := range map[uint64]string{
		0x0000000000000000: "0",
		0x8000000000000000: "0",
		0x0000000000000001: "5e-324",
		0x8000000000000001: "-5e-324",
		0x7fefffffffffffff: "1.7976931348623157e+308",
		0xffefffffffffffff: "-1.7976931348623157e+308",
		0x4340000000000000: "9007199254740992",
		0xc340000000000000: "-9007199254740992",
		0x4430000000000000: "295147905179352830000",
		0x44b52d02c7e14af5: "9.999999999999997e+22",
		0x44b52d02c7e14af6: "1e+23",
		0x44b52d02c7e14af7: "1.0000000000000001e+23",
		0x444b1ae4d6e2ef4e: "999999999999999700000",
		0x444b1ae4d6e2ef4f: "999999999999999900000",
		0x444b1ae4d6e2ef50: "1e+21",
		0x3eb0c6f7a0b5ed8c: "9.999999999999997e-7",
		0x3eb0c6f7a0b5ed8d: "0.000001",
		0x41b3de4355555553: "333333333.3333332",
		0x41b3de4355555554: "333333333.33333325",
		0x41b3de4355555555: "333333333.3333333",
		0x41b3de4355555556: "333333333.3333334",
		0x41b3de4355555557: "333333333.33333343",
		0xbecbf647612f3696: "-0.0000033333333333333333",
		0x43143ff3c1cb0959: "1424953923781206.2",
	} {
		number := math.Float64frombits(bits)
		for _, i := range implementations {
			in := strconv.FormatFloat(number, 'e', -1, 64)
			if got, err := i.form([]byte(in)); err != nil || string(got) != want {
				t.Errorf("%s: %016x, %s, becomes %s, %v; want %s", i.name, bits, in, got, err, want)
			}
		}
		// Of these only zero is an integer that every reader reads alike.
		if _, err := JSON([]byte(want)); (err == nil) != (want == "0") {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, none := range []string{"NaN", "Infinity", "-Infinity"} {
		for _, i := range implementations {
			if got, err := i.form([]byte(none)); err == nil {
				t.Errorf("%s writes %s as %s", i.name, none, got)
			}
		}
		if err := Check([]byte(none)); err == nil {
			t.Errorf("%s is accepted", none)
		}
	}
}

// differences are the inputs about which the implementations are of several minds,
// and what each does: the result, or refused. We refuse all of them.
var differences = []struct {
	in, why string
	does    [3]string // by implementations
}{
	{`{"a":"` + "\xff" + `"}`, "bytes that are not UTF-8", [3]string{refuses, refuses, "{\"a\":\"\xff\"}"}},
	{"{\"\xc0\x80\":1}", "an encoding longer than it need be", [3]string{refuses, refuses, "{\"\xc0\x80\":1}"}},
	{`1e400`, "beyond what a double holds", [3]string{refuses, "1.7976931348623157e+308", refuses}},
	{`1e-400`, "below what a double holds", [3]string{"0", "0", "0"}},
	{`9007199254740993`, "an integer that a double rounds", [3]string{"9007199254740992", "9007199254740992", "9007199254740992"}},
	{`-0`, "a zero with a sign", [3]string{"0", "0", "0"}},
	{`{"a":1,"\u0061":2}`, "a key twice in two spellings", [3]string{refuses, refuses, refuses}},
	{`"\ud800"`, "half a character", [3]string{refuses, refuses, refuses}},
	{`12`, "a value that is no object", [3]string{"12", "12", "12"}},
	{strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "nesting that costs a stack", [3]string{refuses, refuses, "accepted"}},
}

const refuses = "refused"

func TestWhereReadersDisagreeWeRefuse(t *testing.T) {
	for _, d := range differences {
		for n, i := range implementations {
			got, err := i.form([]byte(d.in))
			word := string(got)
			switch {
			case err != nil:
				word = refuses
			case len(got) > 1000:
				word = "accepted"
			}
			if word != d.does[n] {
				t.Errorf("%s: %s says %q (%v), the table %q", d.why, i.name, word, err, d.does[n])
			}
		}
		if d.in == `12` { // the control: what nobody disagrees about passes
			if got, err := JSON([]byte(d.in)); err != nil || string(got) != d.in {
				t.Errorf("%q, %v", got, err)
			}
			continue
		}
		if got, err := JSON([]byte(d.in)); err == nil {
			t.Errorf("%s: becomes %q", d.why, got)
		}
	}
}

// agreed holds all implementations to one result.
func agreed(data, want []byte) error {
	for _, i := range implementations {
		got, err := i.form(data)
		if err != nil {
			return fmt.Errorf("%q is refused by %s: %w", data, i.name, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%q becomes %q, %s gives %q", data, want, i.name, got)
		}
	}
	return nil
}
