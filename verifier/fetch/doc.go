// Package fetch brings revocation lists and OCSP answers to the node, and time
// stamps to signers: the one part of verification that uses the network.
//
// Trusted: the policy, which alone names the sources, and the issuers'
// certificates on this node. Hostile: the servers and everything between; plain
// HTTP is fine because a list counts only with its issuer's signature.
//
// Promise: an index on disk is replaced only by one that is signed, complete and
// not older, an OCSP answer likewise; every source gets its try whatever happens to
// the others; nothing is fetched from an address that an artifact named, unless
// the policy lists its host.
package fetch
