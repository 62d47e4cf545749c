// Package integration tests MentatLab end to end on real parts: containerd,
// runc and a registry, each private to a test.
//
// Trusted: the binaries of this source tree and the tools built beside them.
// Hostile: the artifacts that the tests make. Promise: every test cleans up
// after itself and fails when something is left behind; a refusal counts only
// when the guest's marker is absent and the typed reason is there. The tests
// need root.
package integration
