// Package notation makes Notary Project signatures of agents, for those who verify
// with notation, and reads them for those whose policy accepts them.
//
// Trusted: for [Sign] the key, its certificates and the descriptor of what is signed.
// Hostile: every byte of an envelope and of the manifests that carry it. Promise: what
// [Sign] returns was verified, and is about the descriptor alone; [Referrer] makes the
// OCI manifest under which notation finds it; what [Reader] accepts notation-core-go
// verified, and is about the target, by the scheme notary.x509 and without a critical
// attribute that nobody here knows. Whom to believe is for package verifier.
//
// It is no part of that package because the library that it is made of holds an HTTP
// client, too. Nothing here reaches the network.
package notation
