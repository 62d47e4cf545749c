package imageref

import "testing"

func pattern(t *testing.T, s string) Pattern {
	t.Helper()
	p, ok := ParsePattern(s)
	if !ok {
		t.Fatalf("%q is no pattern", s)
	}
	return p
}

func TestARepositoryMovesWithWhatStandsForTheStar(t *testing.T) {
	for _, c := range []struct{ from, to, repository, want string }{
		{"m.example/a/**", "r.example/b/**", "m.example/a/x/y", "r.example/b/x/y"},
		{"m.example/**", "r.example/b/**", "m.example/x", "r.example/b/x"},
		{"m.example/a", "r.example/b", "m.example/a", "r.example/b"},
		{"m.example/a/**", "r.example/b/**", "m.example/ab/x", ""},
		{"m.example/a/**", "r.example/b/**", "m.example/a", ""},
		{"m.example/a", "r.example/b", "m.example/a/x", ""},
		{"m.example/a", "r.example/b/**", "m.example/a", ""},
		{"m.example/a/**", "r.example/b", "m.example/a/x", ""},
		{"*", "r.example/b/**", "m.example/a/x", ""},
		{"m.example/a/**", "*", "m.example/a/x", ""},
		{"m.example/a/**", "r.example/b/**", "", ""},
	} {
		if got, ok := pattern(t, c.from).Move(c.repository, pattern(t, c.to)); got != c.want || ok != (c.want != "") {
			t.Errorf("%+v: %q, %v", c, got, ok)
		}
	}
}

func TestAPatternCoversWhatIsWithinIt(t *testing.T) {
	for _, c := range []struct {
		outer, inner string
		want         bool
	}{
		{"*", "m.example/a/**", true}, {"m.example/**", "m.example/a/**", true}, {"m.example/a/**", "m.example/a/b", true}, {"m.example/a", "m.example/a", true},
		{"m.example/a/**", "*", false}, {"m.example/a/**", "m.example/**", false}, {"m.example/a/**", "m.example/ab/**", false}, {"m.example/a", "m.example/a/**", false}, {"m.example/a", "m.example/b", false},
	} {
		if got := pattern(t, c.outer).Covers(pattern(t, c.inner)); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
