package manifest

import gosemver "golang.org/x/mod/semver"

// ValidID tells whether s is an agent's id.
func ValidID(s string) bool { return len(s) <= maxIdentifier && identifier.MatchString(s) }

// ValidVersion tells whether s is a semantic version as a manifest may have it.
func ValidVersion(s string) bool { return len(s) <= maxVersion && semver.MatchString(s) }

// CompareVersions orders two semantic versions: below 0 when a comes before b. What
// is no version comes before each that is.
func CompareVersions(a, b string) int { return gosemver.Compare(orderable(a), orderable(b)) }

func orderable(s string) string {
	if !ValidVersion(s) {
		return ""
	}
	return "v" + s
}
