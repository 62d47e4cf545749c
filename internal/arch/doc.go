// Package arch holds the import table of this module and the bans on what a
// part may reach, and tests the module against both. It also tests that every
// package says whom it trusts and that every ban of the linter fires.
//
// Trusted: the go command, which lists the packages. Hostile: nothing; a
// change that bends the structure by accident is what it is for. Promise: a
// package that no row names, an empty package list and a ban that cannot fire
// are failures.
package arch
