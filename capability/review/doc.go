// Package review looks at an agent before it runs: what its manifest asks for
// beside what its module imports, and how much each capability gives away.
//
// Trusted: nothing but the reader. Hostile: manifest and module, which are only
// read. Promise: what is not imported cannot be used, so "unused" holds for
// every module but one that carries an interpreter, which is said of it; whether
// what is imported is ever called, and with what, is not told. A rating is a
// reason to look, not a verdict.
package review
