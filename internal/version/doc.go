// Package version says which build this is.
//
// Trusted: the linker, which sets the variables. Hostile: nothing. Promise: a
// build without flags says so instead of claiming a release.
package version

// Set by the linker (-X).
var (
	// Version is the release, e.g. 1.0.0, or "dev".
	Version = "dev"
	// Revision is the source revision, "" if unknown.
	Revision = ""
)
