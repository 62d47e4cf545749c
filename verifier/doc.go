// Package verifier signs agents and decides whether one may run: a function of
// the artifact's bytes, the node's policy, its revocation data and a clock.
//
// Trusted: the policy, the trust stores, the compiled revocation lists, the
// clock, and the reference the caller gives. Hostile: every byte of the
// artifact, the attestation block and its certificates included, and the
// source of a revocation list until its signature was checked.
//
// Promise: nothing here reaches the network. What is absent is UNTRUSTED; what
// is present but broken is refused, with or without a policy. A trust level
// comes from the policy alone, never from the block. [Verifier.Verify] parses no
// revocation list unless its source file changed, and always answers.
//
// Start with [Open] for a node, [New] for a test, [Sign] for a developer.
package verifier
