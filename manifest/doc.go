// Package manifest holds the agent manifest: its types, the strict reading of
// manifest.yaml, the capability strings and the canonical JSON that goes into
// an artifact.
//
// Trusted: nothing. Hostile: the text of a manifest.yaml that came with an
// agent, the JSON from an artifact, capability strings that a guest asks for.
// Promise: [Parse] and [ParseCanonical] apply one set of rules and report every
// break of them, with file and line; a [Manifest] they return
// spells every value in one way, and its canonical JSON means exactly what the
// YAML meant; a [Capability] never allows what its string does not say.
package manifest
