package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"html"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/limits"
)

// Mask replaces secrets in text and in streams by as many stars. The zero value
// and nil replace nothing. It may be used from several goroutines.
type Mask struct {
	// forms are what is looked for, the longest first.
	forms [][]byte
	// first tells which bytes a form begins with.
	first [256]bool
}

// NewMask hides the values.
func NewMask(values ...string) *Mask {
	m := new(Mask)
	add := func(form string) {
		if len(form) >= limits.ShortestSecret && !slices.ContainsFunc(m.forms, func(f []byte) bool { return string(f) == form }) {
			m.forms = append(m.forms, []byte(form))
			m.first[form[0]] = true
		}
	}
	for _, v := range values {
		for _, form := range slices.Concat([]string{v, hex.EncodeToString([]byte(v))}, escaped(v), encoded(v, 0), encoded(v, 1), encoded(v, 2)) {
			add(form)
		}
	}
	slices.SortStableFunc(m.forms, func(a, b []byte) int { return len(b) - len(a) })
	return m
}

// lowerEscapes spells %2F as %2f.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// escaped gives v as it stands in URLs, in JSON and in HTML.
func escaped(v string) []string {
	query, path := url.QueryEscape(v), url.PathEscape(v)
	quotes := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	return []string{
		query, path, lowerEscapes(query), lowerEscapes(path),
		quotes.Replace(v),
		strings.ReplaceAll(quotes.Replace(v), "/", `\/`),
		strings.NewReplacer("&", `\u0026`, "<", `\u003c`, ">", `\u003e`).Replace(quotes.Replace(v)),
		html.EscapeString(v),
	}
}

// encoded gives the base64 of v that stands in the base64 of any text in which
// v begins at an offset of shift modulo 3: without the characters that it shares
// with its neighbours.
func encoded(v string, shift int) []string {
	padded := make([]byte, shift, shift+len(v))
	padded = append(padded, v...)
	whole := len(padded) / 3 * 3
	skip := []int{0, 2, 3}[shift]
	var out []string
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		if text := enc.EncodeToString(padded[:whole]); len(text) > skip {
			out = append(out, text[skip:])
		}
	}
	return out
}

// Text hides the secrets in s.
func (m *Mask) Text(s string) string {
	if m == nil || len(m.forms) == 0 {
		return s
	}
	b := []byte(s)
	m.hide(b)
	return string(b)
}

// hide puts stars over every whole form in b.
func (m *Mask) hide(b []byte) {
	for i := 0; i < len(b); i++ {
		if !m.first[b[i]] {
			continue
		}
		for _, form := range m.forms {
			if bytes.HasPrefix(b[i:], form) {
				stars(b[i : i+len(form)])
				i += len(form) - 1
				break
			}
		}
	}
}

func stars(b []byte) {
	for i := range b {
		b[i] = '*'
	}
}

// Reader hides the secrets in what r gives. A byte is held back only while it
// may belong to a secret, so that a stream flows on.
func (m *Mask) Reader(r io.Reader) io.Reader {
	if m == nil || len(m.forms) == 0 {
		return r
	}
	return &reader{m: m, r: r}
}

type reader struct {
	m *Mask
	r io.Reader
	// held is what was read and may be the beginning of a form; out what was
	// judged and not yet given.
	held, out []byte
	err       error
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		// Room for what is held and for what comes.
		buf := make([]byte, len(r.held)+len(p))
		copy(buf, r.held)
		n, err := r.r.Read(buf[len(r.held):])
		buf = buf[:len(r.held)+n]
		r.m.hide(buf)
		keep := 0
		if r.err = err; err == nil {
			keep = r.m.unfinished(buf)
		}
		r.out, r.held = buf[:len(buf)-keep], slices.Clone(buf[len(buf)-keep:])
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// unfinished is how many bytes at the end of b may begin a form.
func (m *Mask) unfinished(b []byte) int {
	longest := min(len(b), len(m.forms[0])-1)
	for i := len(b) - longest; i < len(b); i++ {
		if !m.first[b[i]] {
			continue
		}
		for _, form := range m.forms {
			if bytes.HasPrefix(form, b[i:]) {
				return len(b) - i
			}
		}
	}
	return 0
}
