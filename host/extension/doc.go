// Package extension serves extension capabilities by programs of the node's
// owner, which run beside the host and speak over their standard streams
// (docs/extensions.md).
//
// Trusted: the host document, which names the programs; they run as the host
// does, and are started before it locks itself. Hostile: the guest's operations,
// heads and bodies, which are passed on as they are; and, for the host's own
// sake, what a program writes. Promise: a program that ends, hangs or breaks the
// protocol fails the calls that it owes and no others; what it writes is bounded,
// and so is what waits for it.
package extension
