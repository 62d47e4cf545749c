package imageref

import "testing"

func TestNamesAreReadAsClientsMeanThem(t *testing.T) {
	for ref, want := range map[string]Name{
		"":                                    {},
		"registry.example/agents/Echo:1":      {},
		"https://registry.example/agents/a":   {},
		"alpine":                              {"docker.io/library/alpine", ""},
		"alpine:3":                            {"docker.io/library/alpine", "3"},
		"registry-1.docker.io/library/alpine": {"docker.io/library/alpine", ""},
		"registry.example:443/agents/echo:1":  {"registry.example/agents/echo", "1"},
		"registry.example:0080/agents/echo":   {"registry.example:80/agents/echo", ""},
		"REGISTRY.example/agents/echo:1.0.0":  {"registry.example/agents/echo", "1.0.0"},
		"[::1]:5000/agents/echo":              {"[::1]:5000/agents/echo", ""},
		"registry.example/agents/echo:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": {"registry.example/agents/echo", "1"},
	} {
		if got := Parse(ref); got != want {
			t.Errorf("%q: %+v, want %+v", ref, got, want)
		}
	}
}

func TestThePatternThatSaysMoreIsTheMoreSpecific(t *testing.T) {
	const repository = "registry.example/agents/team/echo"
	last := 0
	for _, text := range []string{"*", "registry.example/**", "registry.example/agents/**", "registry.example/agents/team/**", repository} {
		p, ok := ParsePattern(text)
		s := p.Specificity(repository)
		if !ok || s <= last || p.String() != text {
			t.Errorf("%s: %v, %d after %d", text, ok, s, last)
		}
		last = s
	}
	for _, text := range []string{"registry.example/agents/team", "registry.example/agents/tea/**", "other.example/**", repository + "/**"} {
		if p, ok := ParsePattern(text); !ok || p.Specificity(repository) != 0 {
			t.Errorf("%s covers %s", text, repository)
		}
	}
	for _, text := range []string{"", "**", "agents/**", "registry.example", "Registry.example/a", "registry.example/a:1", "registry.example/*", "registry.example/a/*/b"} {
		if _, ok := ParsePattern(text); ok {
			t.Errorf("%q is taken for a pattern", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine:3", "registry.example:443/agents/echo:1", "[::1]:5000/a/b", "*", "registry.example/agents/**", "[A]/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n := Parse(s)
		if n.Repository == "" {
			if n != (Name{}) {
				t.Fatalf("%q is unknown and leaves %+v", s, n)
			}
			return
		}
		// A repository that a pattern can name names itself.
		if !ValidRepository(n.Repository) {
			return
		}
		if again := Parse(n.Repository); again.Repository != n.Repository {
			t.Fatalf("%q is %q, which is %q", s, n.Repository, again.Repository)
		}
		if p, ok := ParsePattern(s); ok && n.Tag == "" && p.Specificity(n.Repository) == 0 {
			t.Fatalf("the pattern %q does not cover %q", s, n.Repository)
		}
	})
}
