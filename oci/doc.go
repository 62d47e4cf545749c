// Package oci handles agents as bytes: it builds the artifact reproducibly,
// reads one strictly, and keeps it in an OCI image layout on disk. Package
// oci/remote moves the same bytes to and from registries.
//
// Trusted: the caller's limits and the digests it asks for. Hostile: every
// manifest, index, config, blob, layout directory and archive, wherever it came
// from. Promise: nothing is returned whose size and digest were not checked
// against the descriptor that was asked for; a manifest that other readers
// could understand differently (duplicate or differently cased keys, null, two
// kinds of document in one) is refused; files appear in a layout complete or
// not at all.
package oci
