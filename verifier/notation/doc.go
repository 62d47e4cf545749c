// Package notation makes Notary Project signatures of agents, for those who verify
// with notation.
//
// Trusted: the key, its certificates and the descriptor of what is signed. Hostile:
// nothing; no signature is read here. Promise: what [Sign] returns was verified, and
// is about the descriptor alone; [Referrer] makes the OCI manifest under which
// notation finds it. MentatLab's own gates ask for the attestation and do not look
// at these.
package notation
