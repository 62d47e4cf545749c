// Package module reads a WebAssembly binary without an engine: enough to say
// what it is, what it imports and whether MentatLab can run it. It also holds
// the one table of functions that the host provides.
//
// Trusted: nothing. Hostile: every byte of the module. Promise: [Inspect]
// allocates in proportion to the module and never panics; what it reports is
// what the engine will see, and what it cannot name it refuses. Function bodies
// are measured, not validated: that is the engine's work.
package module
