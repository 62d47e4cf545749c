// Package toolchain compiles an agent's sources to a WASM module with the
// language's own tools.
//
// Trusted: the sources and the tools on PATH: building runs them with the
// caller's rights. Hostile: the environment's leftovers, such as GOFLAGS or a
// go.work of a directory above, which are kept out so that the same sources
// give the same module. Promise: the module appears under its name only when
// the whole build succeeded.
package toolchain
