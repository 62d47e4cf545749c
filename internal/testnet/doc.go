// Package testnet makes a network for tests that fits on loopback: a certificate
// authority, TLS servers under any name, and a resolver that says what a test
// wants it to say.
//
// Trusted: the tests that use it. Hostile: nothing. Promise: nothing listens
// but on loopback, and everything ends with its test.
package testnet
