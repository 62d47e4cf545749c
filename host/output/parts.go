package output

import (
	"iter"
	"unicode/utf8"
)

// Parts cuts p into pieces of at most n bytes, in order. A piece of text does not
// end within a character unless n is less than four. An empty p has no pieces.
func Parts(p []byte, n int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(p) > 0 {
			cut := min(n, len(p))
			if cut < len(p) {
				cut = boundary(p, cut)
			}
			if !yield(p[:cut:cut]) {
				return
			}
			p = p[cut:]
		}
	}
}

// boundary moves cut back to the beginning of a character, if there is one
// within a character's length.
func boundary(p []byte, cut int) int {
	for back := cut; back > 0 && back > cut-utf8.UTFMax; back-- {
		if utf8.RuneStart(p[back]) {
			return back
		}
	}
	return cut
}
