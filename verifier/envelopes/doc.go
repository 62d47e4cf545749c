// Package envelopes keeps Notary Project signatures on a node, from the pull gate, which
// asks the registry, for the gate before the start, which asks nobody.
//
// Trusted: the directory, which belongs to the running user alone. Hostile: what lies
// in it, like everything that a registry gave. Promise: what is read back is bounded,
// and is to be verified as if it came from the registry; what cannot be read is an
// envelope that does not count, never one that is not there.
package envelopes
