// Package dialer opens connections from the host to the network: it resolves a
// name once, judges every address, and dials exactly what it judged.
//
// Trusted: the rules it is made with and the authorities it is given. Hostile:
// the names it is asked for, which a guest or a server chose, and the answers of
// the resolver: a name may lead anywhere, and elsewhere the next time. Promise:
// no connection to an address that is not public, in whatever form it is
// written, unless a rule names its range; none to a metadata service that no
// rule names alone; no proxy, and nothing of the process's environment, stands
// between; what failed is explained without the request's text.
package dialer
