package manifest

import (
	"bufio"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

// capabilityVectors reads testdata/capabilities.txt and calls f for each line.
func capabilityVectors(t testing.TB, f func(line int, verb, rest string)) {
	t.Helper()
	file, err := os.Open("testdata/capabilities.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n, vectors := 0, 0
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		n++
		text := strings.TrimLeft(scanner.Text(), " ")
		if text == "" || text[0] == '#' {
			continue
		}
		verb, rest, _ := strings.Cut(text, " ")
		// "bad" keeps a blank in front: the verbs are padded to six.
		if pad := 6 - len(verb); verb == "bad" && len(rest) >= pad {
			rest = rest[pad:]
		} else {
			rest = strings.TrimLeft(rest, " ")
		}
		vectors++
		f(n, verb, rest)
	}
	if vectors < 150 {
		t.Fatalf("only %d vectors", vectors)
	}
}

func mustCapability(t testing.TB, line int, s string) Capability {
	t.Helper()
	c, err := ParseCapability(s)
	if err != nil {
		t.Fatalf("line %d: %v", line, err)
	}
	return c
}

func TestCapabilitiesMeanWhatTheVectorsSay(t *testing.T) {
	var grant, denial Capability
	capabilityVectors(t, func(line int, verb, rest string) {
		switch verb {
		case "ok", "same":
			in, out, ok := strings.Cut(rest, " -> ")
			if !ok {
				out = in
			}
			if got := mustCapability(t, line, in).String(); got != out {
				t.Errorf("line %d: %q is spelled %q, want %q", line, in, got, out)
			}
		case "bad":
			c, err := ParseCapability(rest)
			if err == nil {
				t.Errorf("line %d: %q was accepted as %v", line, rest, c)
			} else if fault.ReasonOf(err) != fault.ManifestInvalid || strings.Contains(err.Error(), "\n") {
				t.Errorf("line %d: %v", line, err)
			}
			if c != (Capability{}) {
				t.Errorf("line %d: a refused string left %#v", line, c)
			}
		case "grant":
			grant = mustCapability(t, line, rest)
		case "accepts", "denies":
			req := mustCapability(t, line, rest)
			if got := grant.Allows(req); got != (verb == "accepts") {
				t.Errorf("line %d: %s allows %s: %v", line, grant, req, got)
			}
		case "both":
			sides, want, _ := strings.Cut(rest, " -> ")
			a, b, _ := strings.Cut(sides, " & ")
			ca, cb := mustCapability(t, line, a), mustCapability(t, line, b)
			for _, got := range [][]Capability{ca.Intersect(cb), cb.Intersect(ca)} {
				if text := listed(got); text != want {
					t.Errorf("line %d: %s have %q in common, want %q", line, sides, text, want)
				}
			}
		case "denial":
			denial = mustCapability(t, line, rest)
		case "stops", "cuts", "leaves":
			req := mustCapability(t, line, rest)
			all, part := denial.Denies(req), denial.DeniesPart(req)
			if all != (verb == "stops") || part == (verb == "leaves") {
				t.Errorf("line %d: %s denies %s: all of it %v, a part %v", line, denial, req, all, part)
			}
		default:
			t.Fatalf("line %d: unknown verb %q", line, verb)
		}
	})
}

// listed is a list as the vectors write it.
func listed(caps []Capability) string {
	if len(caps) == 0 {
		return "-"
	}
	texts := make([]string, len(caps))
	for i, c := range caps {
		texts[i] = c.String()
	}
	return strings.Join(texts, ", ")
}

func TestTheZeroCapabilityAllowsNothing(t *testing.T) {
	var zero Capability
	capabilityVectors(t, func(line int, verb, rest string) {
		if verb != "grant" {
			return
		}
		c := mustCapability(t, line, rest)
		if zero.Allows(c) || c.Allows(zero) || (Capability{Kind: c.Kind}).Allows(c) {
			t.Errorf("line %d: %s is allowed by or allows nothing", line, c)
		}
	})
	if zero.Allows(zero) {
		t.Error("the zero value allows itself")
	}
}

func TestReadingAndWritingMayBeGrantedApart(t *testing.T) {
	grants := []Capability{mustCapability(t, 0, "filesystem:read:/data"), mustCapability(t, 0, "filesystem:write:/data/out")}
	for req, want := range map[string]bool{
		"filesystem:read-write:/data/out/x": true,
		"filesystem:read-write:/data":       false,
		"filesystem:write:/data":            false,
		"filesystem:read:/data":             true,
	} {
		if got := Allowed(grants, mustCapability(t, 0, req)); got != want {
			t.Errorf("%s: %v", req, got)
		}
	}
	if Allowed(nil, grants[0]) {
		t.Error("no grants allow something")
	}
}

func FuzzCapability(f *testing.F) {
	capabilityVectors(f, func(_ int, verb, rest string) {
		if verb != "same" {
			f.Add(rest, "network:https:*.openai.com/v1", "network:https:api.openai.com/v1/chat")
			f.Add("network:*:10.0.0.0/8", rest, "filesystem:read:/tmp/x")
		}
	})
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ca, err := ParseCapability(a)
		if err != nil {
			if ca != (Capability{}) {
				t.Fatalf("%q is refused and left %#v", a, ca)
			}
			return
		}
		again, err := ParseCapability(ca.String())
		if err != nil || again != ca {
			t.Fatalf("%q becomes %q, which reads as %#v, %v", a, ca, again, err)
		}
		if !ca.Allows(ca) {
			t.Fatalf("%s does not allow itself", ca)
		}
		cb, err := ParseCapability(b)
		if err != nil {
			return
		}
		common(t, ca, cb, c)
		if !ca.Allows(cb) {
			return
		}
		if ca.Kind != cb.Kind {
			t.Fatalf("%s allows %s", ca, cb)
		}
		if cb.Allows(ca) && ca != cb && !equivalent(ca, cb) {
			t.Fatalf("%s and %s allow each other", ca, cb)
		}
		if cc, err := ParseCapability(c); err == nil && cb.Allows(cc) && !ca.Allows(cc) {
			t.Fatalf("%s allows %s, which allows %s, which the first does not", ca, cb, cc)
		}
	})
}

// common holds what two capabilities have in common against a third: it lies in
// both, and what lies in both lies in it.
func common(t *testing.T, a, b Capability, third string) {
	t.Helper()
	both := a.Intersect(b)
	for _, one := range both {
		again, err := ParseCapability(one.String())
		if err != nil || again != one {
			t.Fatalf("%s and %s have %#v in common, which reads as %#v, %v", a, b, one, again, err)
		}
		if !a.Allows(one) || !b.Allows(one) {
			t.Fatalf("%s and %s do not both allow %s", a, b, one)
		}
	}
	if a.Overlaps(b) != b.Overlaps(a) || len(b.Intersect(a)) != len(both) {
		t.Fatalf("%s and %s: the order counts", a, b)
	}
	c, err := ParseCapability(third)
	if err != nil {
		return
	}
	if a.Allows(c) && b.Allows(c) && c.Scheme != SchemeAny && !Allowed(both, c) {
		t.Fatalf("%s and %s both allow %s, what they have in common is %v", a, b, c, both)
	}
	if a.Allows(c) && !a.Denies(c) || a.Denies(c) && !a.DeniesPart(c) {
		t.Fatalf("%s denies less of %s than it allows", a, c)
	}
}

// equivalent lists the spellings that mean the same without being the same: a
// prefix with and without its star.
func equivalent(a, b Capability) bool {
	a.Path, b.Path = strings.TrimSuffix(a.Path, "*"), strings.TrimSuffix(b.Path, "*")
	return a == b
}

func TestARequestIsHeldToTheAddressItsNameResolvesTo(t *testing.T) {
	c := mustCapability(t, 0, "network:https:api.example.com:8443/v1")
	for addr, want := range map[string]string{
		"203.0.113.7":        "network:https:203.0.113.7/32:8443/v1",
		"2001:db8::1":        "network:https:[2001:db8::1]/128:8443/v1",
		"::ffff:203.0.113.7": "network:https:203.0.113.7/32:8443/v1",
		"fe80::1%eth0":       "network:https:[fe80::1]/128:8443/v1",
	} {
		got := c.At(netip.MustParseAddr(addr))
		if got.String() != want || !got.HostRange() || mustCapability(t, 0, want) != got {
			t.Errorf("%s: %s", addr, got)
		}
	}
	if c.HostRange() {
		t.Error("a name is no range")
	}
}
