package canonical

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/gowebpki/jcs"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// MaxInteger is the largest magnitude of a number: above it a reader that uses
// floating point sees a different value.
const MaxInteger = 1<<53 - 1

// JSON returns data in canonical form. It refuses what [Check] refuses.
func JSON(data []byte) ([]byte, error) {
	if err := Check(data); err != nil {
		return nil, err
	}
	out, err := jcs.Transform(data)
	if err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, "", "JSON cannot be made canonical")
	}
	return out, nil
}

// Marshal encodes v as canonical JSON. A string that is not UTF-8 is an error;
// encoding/json alone would sign something else than what v holds.
func Marshal(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot encode as JSON")
	}
	if hasReplacement(data) {
		return nil, fault.New(fault.ArtifactInvalid, "", "a string is not UTF-8")
	}
	return JSON(data)
}

// hasReplacement reports an escaped U+FFFD, which is how encoding/json writes
// bytes that are not UTF-8; a real U+FFFD it writes unescaped.
func hasReplacement(data []byte) bool {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		if bytes.HasPrefix(data[i:], []byte(`\ufffd`)) {
			return true
		}
		i++
	}
	return false
}

// Check refuses JSON that could be read in two ways: duplicate keys (escaped
// spellings included), numbers that are not integers within ±2^53-1, nesting
// over [limits.JSONDepth], text that is not UTF-8, a byte order mark, lone
// surrogates and data after the value. Errors are [fault.ArtifactInvalid] and
// name the byte; a caller with a better subject wraps them.
func Check(data []byte) error {
	if len(data) == 0 {
		return fault.New(fault.ArtifactInvalid, "", "JSON is empty")
	}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return fault.New(fault.ArtifactInvalid, "", "JSON starts with a byte order mark")
	}
	c := checker{data: data}
	c.space()
	if err := c.value(0); err != nil {
		return err
	}
	c.space()
	if c.pos < len(data) {
		return c.errorf("data after the end of the JSON value")
	}
	return nil
}

type checker struct {
	data []byte
	pos  int
}

func (c *checker) errorf(format string, args ...any) error {
	return fault.New(fault.ArtifactInvalid, "byte "+strconv.Itoa(c.pos), format, args...)
}

// peek returns the byte at the position, 0 at the end; a NUL byte is not
// allowed anywhere, so the two need no telling apart.
func (c *checker) peek() byte {
	if c.pos < len(c.data) {
		return c.data[c.pos]
	}
	return 0
}

func (c *checker) space() {
	for c.pos < len(c.data) {
		switch c.data[c.pos] {
		case ' ', '\t', '\n', '\r':
			c.pos++
		default:
			return
		}
	}
}

func (c *checker) unexpected(want string) error {
	if c.pos >= len(c.data) {
		return c.errorf("JSON ends where %s is expected", want)
	}
	r, _ := utf8.DecodeRune(c.data[c.pos:])
	return c.errorf("%q where %s is expected", r, want)
}

func (c *checker) value(depth int) error {
	switch b := c.peek(); {
	case b == '{':
		return c.object(depth + 1)
	case b == '[':
		return c.array(depth + 1)
	case b == '"':
		_, err := c.str()
		return err
	case b == '-' || b >= '0' && b <= '9':
		return c.number()
	}
	for _, literal := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(c.data[c.pos:], []byte(literal)) {
			c.pos += len(literal)
			return nil
		}
	}
	return c.unexpected("a value")
}

func (c *checker) enter(depth int) error {
	if depth > limits.JSONDepth {
		return c.errorf("nested over %d levels", limits.JSONDepth)
	}
	c.pos++
	c.space()
	return nil
}

func (c *checker) object(depth int) error {
	if err := c.enter(depth); err != nil {
		return err
	}
	if c.peek() == '}' {
		c.pos++
		return nil
	}
	seen := make(map[string]struct{})
	for {
		if c.peek() != '"' {
			return c.unexpected("a key")
		}
		start := c.pos
		key, err := c.str()
		if err != nil {
			return err
		}
		if _, ok := seen[key]; ok {
			c.pos = start
			return c.errorf("key %q occurs twice", key)
		}
		seen[key] = struct{}{}
		c.space()
		if c.peek() != ':' {
			return c.unexpected("':'")
		}
		c.pos++
		c.space()
		if err := c.value(depth); err != nil {
			return err
		}
		c.space()
		switch c.peek() {
		case ',':
			c.pos++
			c.space()
		case '}':
			c.pos++
			return nil
		default:
			return c.unexpected("',' or '}'")
		}
	}
}

func (c *checker) array(depth int) error {
	if err := c.enter(depth); err != nil {
		return err
	}
	if c.peek() == ']' {
		c.pos++
		return nil
	}
	for {
		if err := c.value(depth); err != nil {
			return err
		}
		c.space()
		switch c.peek() {
		case ',':
			c.pos++
			c.space()
		case ']':
			c.pos++
			return nil
		default:
			return c.unexpected("',' or ']'")
		}
	}
}

// number accepts -?(0|[1-9][0-9]*) within MaxInteger, but not -0, which JCS
// writes as 0.
func (c *checker) number() error {
	start := c.pos
	if c.peek() == '-' {
		c.pos++
	}
	digits := c.pos
	for b := c.peek(); b >= '0' && b <= '9'; b = c.peek() {
		c.pos++
	}
	text := string(c.data[start:c.pos])
	switch b := c.peek(); {
	case c.pos == digits:
		return c.unexpected("a digit")
	case b == '.' || b == 'e' || b == 'E':
		c.pos = start
		return c.errorf("a number that is not an integer")
	case c.data[digits] == '0' && c.pos > digits+1:
		c.pos = start
		return c.errorf("a number with a leading zero")
	case text == "-0":
		c.pos = start
		return c.errorf("negative zero")
	}
	if n, err := strconv.ParseInt(text, 10, 64); err != nil || n > MaxInteger || n < -MaxInteger {
		c.pos = start
		return c.errorf("an integer beyond ±%d", MaxInteger)
	}
	return nil
}

// str reads a string and returns what it means, so that two spellings of one
// key are seen to be the same.
func (c *checker) str() (string, error) {
	c.pos++
	var out []byte
	for c.pos < len(c.data) {
		switch b := c.data[c.pos]; {
		case b == '"':
			c.pos++
			return string(out), nil
		case b < 0x20:
			return "", c.errorf("an unescaped control character in a string")
		case b == '\\':
			r, err := c.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		case b < utf8.RuneSelf:
			out = append(out, b)
			c.pos++
		default:
			r, size := utf8.DecodeRune(c.data[c.pos:])
			if r == utf8.RuneError && size <= 1 {
				return "", c.errorf("a string that is not UTF-8")
			}
			out = append(out, c.data[c.pos:c.pos+size]...)
			c.pos += size
		}
	}
	return "", c.errorf("JSON ends inside a string")
}

var escapes = map[byte]rune{
	'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t',
}

func (c *checker) escape() (rune, error) {
	start := c.pos
	c.pos++
	if r, ok := escapes[c.peek()]; ok {
		c.pos++
		return r, nil
	}
	c.pos = start
	r, ok := c.unit()
	if !ok {
		return 0, c.errorf("an unknown escape in a string")
	}
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	low, ok := c.unit()
	if full := utf16.DecodeRune(r, low); ok && full != utf8.RuneError {
		return full, nil
	}
	c.pos = start
	return 0, c.errorf("half of a surrogate pair in a string")
}

// unit reads one \uXXXX escape.
func (c *checker) unit() (rune, bool) {
	if len(c.data)-c.pos < 6 || c.data[c.pos] != '\\' || c.data[c.pos+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, b := range c.data[c.pos+2 : c.pos+6] {
		switch {
		case b >= '0' && b <= '9':
			r = r<<4 | rune(b-'0')
		case b >= 'a' && b <= 'f':
			r = r<<4 | rune(b-'a'+10)
		case b >= 'A' && b <= 'F':
			r = r<<4 | rune(b-'A'+10)
		default:
			return 0, false
		}
	}
	c.pos += 6
	return r, true
}
