// Package sdk carries the guest SDKs inside mentatctl, so that `init` makes an
// agent that builds with nothing published and nothing fetched. The SDK itself
// is a Go module of its own in sdk/go; what is embedded is a copy that
// `go generate ./sdk` makes and a test compares.
//
// Trusted: this repository's own sources. Hostile: the id and image that a user
// gives to [Template], which end up in a manifest and a go.mod. Promise: what
// [Template] returns builds offline as it is; it writes nothing itself.
package sdk
