// Package mentat is the border between the SDK and what runs the agent: the
// `mentat` functions of a module, the standard streams of an ordinary program,
// or a test.
//
// Trusted: the host. Hostile: nothing is judged here; bytes pass as they are.
// Promise: the imports are exactly those of ABI 1.0, and no guest memory is
// kept by the host after a call.
package mentat
