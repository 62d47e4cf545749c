package doctor

import (
	"fmt"
	"regexp"
	"strconv"
)

// release is a version as far as it is compared.
type release struct{ major, minor, patch int }

var releaseForm = regexp.MustCompile(`\bv?(\d{1,6})\.(\d{1,6})\.(\d{1,6})`)

func parseRelease(s string) (release, bool) {
	m := releaseForm.FindStringSubmatch(s)
	if m == nil {
		return release{}, false
	}
	var r release
	for i, p := range []*int{&r.major, &r.minor, &r.patch} {
		*p, _ = strconv.Atoi(m[i+1]) // at most six digits
	}
	return r, true
}

func (r release) String() string { return fmt.Sprintf("%d.%d.%d", r.major, r.minor, r.patch) }

func (r release) before(o release) bool {
	if r.major != o.major {
		return r.major < o.major
	}
	if r.minor != o.minor {
		return r.minor < o.minor
	}
	return r.patch < o.patch
}

// flaw is a known flaw that matters to what a node verifies or to what holds an
// agent: the first bad release, and the first good one of each line; other old lines never got one.
type flaw struct {
	what  string
	from  release
	fixed []release
}

var (
	// oldestContainerd is the first whose CRI asks verifiers at all.
	oldestContainerd = release{2, 1, 0}
	// pullsContainerd is the first whose transfer service asks them.
	pullsContainerd = release{2, 0, 0}

	containerdFlaws = []flaw{
		{"CVE-2026-50195: a checkpoint can put another image under a tag of the node", release{2, 1, 0}, []release{{2, 1, 9}, {2, 2, 5}, {2, 3, 2}}},
		{"CVE-2026-53488: an image's labels can make the host run commands", release{}, []release{{1, 7, 33}, {2, 0, 10}, {2, 1, 9}, {2, 2, 5}, {2, 3, 2}}},
	}
	runcFlaws = []flaw{
		{"CVE-2024-21626: a container leaves its root through a leaked descriptor", release{}, []release{{1, 1, 12}}},
		{"CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: mounts and masked paths can be redirected", release{}, []release{{1, 2, 8}, {1, 3, 3}, {1, 4, 0}}},
	}
)

// has tells whether a release has the flaw: it is older than the good one of its
// line, or its line is older than every line that got one.
func (f flaw) has(r release) bool {
	if r.before(f.from) {
		return false
	}
	for _, fixed := range f.fixed {
		if r.major == fixed.major && r.minor == fixed.minor {
			return r.before(fixed)
		}
	}
	newest := f.fixed[len(f.fixed)-1]
	return r.before(newest)
}

// since is the lowest release without the flaw that is not older than r's line.
func (f flaw) since(r release) release {
	for _, fixed := range f.fixed {
		if !fixed.before(r) {
			return fixed
		}
	}
	return f.fixed[len(f.fixed)-1]
}
