package manifest

import "testing"

func TestVersionsAreOrderedAsSemanticVersionsAre(t *testing.T) {
	ordered := []string{"", "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0", "18446744073709551616.0.0"}
	for i, a := range ordered {
		for k, b := range ordered {
			got := CompareVersions(a, b)
			if i < k && got >= 0 || i > k && got <= 0 || i == k && got != 0 {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
	for _, s := range []string{"1", "1.0", "v1.0.0", "01.0.0", "1.0.0 ", "latest", "1.0.0-01"} {
		if ValidVersion(s) || CompareVersions(s, "0.0.0") >= 0 {
			t.Errorf("%q counts as a version", s)
		}
	}
	if CompareVersions("1.0.0+a", "1.0.0+b") != 0 {
		t.Error("build metadata counts")
	}
}
