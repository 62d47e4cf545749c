package pkcs11

import (
	"net/url"
	"path/filepath"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
)

// Scheme begins the name of a key in a token.
const Scheme = "pkcs11:"

const maxNameBytes = 1024

// Name says which key is meant: the part of RFC 7512 that is needed for it.
type Name struct {
	// Token and Object are labels.
	Token, Object string
	// Module is the path of the token's library; empty: the program's environment
	// names it.
	Module string
}

// Is tells whether a key's name is one of a key in a token.
func Is(s string) bool { return strings.HasPrefix(s, Scheme) }

// Parse reads pkcs11:token=LABEL;object=LABEL, with ?module-path=FILE behind it
// or not. Reason of its error: [fault.Usage].
func Parse(s string) (Name, error) {
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok || len(s) > maxNameBytes {
		return Name{}, badName(s, "is not of the form pkcs11:token=LABEL;object=LABEL")
	}
	if strings.Contains(s, "pin-value") || strings.Contains(s, "pin-source") {
		// The name itself is not repeated.
		return Name{}, fault.New(fault.Usage, "pkcs11 name", "holds a PIN, or where it is: that stays out of names").WithHint("it is asked for as a key's passphrase is")
	}
	path, query, asked := strings.Cut(rest, "?")
	var n Name
	if err := attributes(s, path, ";", map[string]*string{"token": &n.Token, "object": &n.Object}); err != nil {
		return Name{}, err
	}
	if asked {
		if err := attributes(s, query, "&", map[string]*string{"module-path": &n.Module}); err != nil {
			return Name{}, err
		}
		if !filepath.IsAbs(n.Module) {
			return Name{}, badName(s, "its module-path is not absolute")
		}
	}
	if n.Token == "" || n.Object == "" {
		return Name{}, badName(s, "names no token or no object")
	}
	return n, nil
}

func attributes(s, list, separator string, known map[string]*string) error {
	for _, part := range strings.Split(list, separator) {
		name, text, ok := strings.Cut(part, "=")
		to := known[name]
		value, err := url.PathUnescape(text)
		switch {
		case !ok || to == nil:
			return badName(s, "has the unknown part %q", part)
		case *to != "":
			return badName(s, "says %s twice", name)
		case err != nil || value == "" || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
			return badName(s, "has no text for %s", name)
		}
		*to = value
	}
	return nil
}

func badName(s, format string, args ...any) error {
	return fault.New(fault.Usage, s, format, args...)
}
