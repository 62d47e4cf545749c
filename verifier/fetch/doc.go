// Package fetch brings revocation lists to the node: the one part of
// verification that uses the network.
//
// Trusted: the policy, which alone names the sources, and the issuers'
// certificates on this node. Hostile: the servers and everything between; plain
// HTTP is fine because a list counts only with its issuer's signature.
//
// Promise: an index on disk is replaced only by one that is signed, complete and
// not older; every source gets its try whatever happens to the others; nothing
// is fetched from an address that an artifact named.
package fetch
