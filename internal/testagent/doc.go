// Package testagent signs a small agent for tests.
//
// Trusted: the test. Hostile: nothing. Promise: the same agent every time, signed
// by a test's own authority, in memory.
package testagent
