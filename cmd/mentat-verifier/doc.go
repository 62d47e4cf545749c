// Command mentat-verifier is containerd's image verifier for MentatLab: the
// early gate, which keeps what would be refused at its start from being pulled
// at all. The gate before every start does not depend on it.
//
// containerd runs it with -name, -digest and -stdin-media-type and a descriptor
// on standard input. It prints one line on standard output and exits with 0 to
// allow or 1 to refuse; what else there is to say goes to standard error.
//
// Trusted: containerd, the node's configuration and policy. Hostile: the
// registry and everything in it. Promise: an answer within containerd's time
// limit; a refusal for everything that goes wrong, but for a manifest that
// cannot be fetched, where the policy may defer to the gate before the start.
package main
