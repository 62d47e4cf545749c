// Package docs tests the documentation beside it: links resolve, tables and
// help pages are what the code says, examples parse. `go test ./docs -update`
// writes the generated parts anew.
//
// Trusted: the code, which is right where the two disagree. Hostile: nothing;
// what it guards against is a page that was true once. Promise: a generated
// part, a link or an example that is stale fails the test.
package docs
