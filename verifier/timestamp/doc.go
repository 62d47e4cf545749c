// Package timestamp reads RFC 3161 time stamp tokens.
//
// Trusted: the roots it is given. Hostile: every byte of a token. Promise: what
// [Reader.Verify] accepts is signed by one certificate for time stamps and nothing
// else, which led to a root at the time that the token tells, and is about the
// message. Nothing here reaches the network.
//
// It is no part of package verifier because the library that it is made of holds
// an HTTP client, too; [github.com/mentatlab/mentat/verifier/fetch] uses that one.
package timestamp
