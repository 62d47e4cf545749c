// Package remote moves artifacts between an image layout and a registry.
//
// Trusted: the options, docker's credential configuration and its helpers, and
// the node's hosts.toml files. Hostile: the registry, everything between it and
// us, and every redirect it sends. Promise: whatever is returned has the digest
// that was asked for; credentials go to no other host than the one that they
// are for; plain HTTP is spoken to loopback addresses and where the caller or
// hosts.toml says so, nowhere else; a certificate is always checked. Errors say
// whether the registry refused (AccessDenied), lacks it (NotFound), answered
// with other content (DigestMismatch) or did not answer properly (Unavailable).
package remote
