// Package network opens the services of a document that use a network: network
// and llm capabilities, and media in S3.
//
// Trusted: the document and its secrets. Hostile: whatever these services meet,
// as their packages say. Promise: everything that is read of the machine
// (addresses of interfaces, certificate authorities) is read here, before the
// host locks itself; what cannot be opened leaves nothing open.
package network
