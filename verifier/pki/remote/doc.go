// Package remote is the certificate authority over HTTPS: the server that
// enrols developers by one-time tokens, renews their certificates and publishes
// revocation lists, and its client.
//
// Trusted: the CA and its directory, the clock; by the client, the roots that it
// was given. Hostile: every client, how slowly it sends and reads, how many there
// are, each byte of its request and the certificate it presents; to the client,
// the server's answer.
//
// Promise: of a request only the key is taken, for an address that a token or a
// certificate of this CA proves; connections, bodies, times and rates are
// bounded, and beyond the bounds a request is refused, not kept; an answer leaves
// after what it says is on disk; what is refused says why by a reason, and
// nothing of the server's own failures. The client keeps only a certificate for
// its own key and the address that it asked for.
package remote
