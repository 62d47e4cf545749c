// Package media keeps what agents exchange by reference: objects that are named
// by the SHA-256 of their bytes.
//
// Trusted: the store's owner and the process that uses it. Hostile: references
// and types, which guests name, and what lies in the store, which others write.
// Promise: a reader gets the bytes that the reference names or an error, never
// others; an object is there whole or not at all; nothing but a well-formed
// reference becomes part of a path or a key. Who may read what is not decided
// here: knowing a digest is no right, and the host asks only for what a run was
// given or wrote.
package media
