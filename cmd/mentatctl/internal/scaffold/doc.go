// Package scaffold makes the directory of a new agent. The SDK comes inside
// mentatctl, so that an agent builds where nothing is published and nothing can
// be fetched.
//
// Trusted: the templates and the SDK, which are compiled in. Hostile: nothing.
// Promise: a directory that has anything in it is left alone, and a new one
// appears whole or not at all.
package scaffold
