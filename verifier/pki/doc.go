// Package pki is the certificate authority for agent signing, kept in a
// directory: the hierarchy of specification §2.4 with its two revocation lists.
//
//	ca.json                     what the CA is, nothing secret
//	root.crt      root.key      10 years, RSA 4096; the key encrypted unless that was refused by name
//	agent-ca.crt  agent-ca.key  5 years, RSA 3072, path length 0
//	crl/root.crl                what the root revoked: months
//	crl/agent.crl               what the agent CA revoked: hours
//	time/root.*   time/tsa.*    the time stamp authority: its root, 10 years, and itself, a year
//	ca.db                       every certificate issued and revoked, tokens, the lists
//
// The database is the one place of truth: a certificate is given out after the
// transaction that remembers it, a list is published after the transaction that
// made it. The files of crl/ are copies for whoever fetches them.
//
// Trusted: the directory and who may write to it, the clock. Hostile: requests
// for certificates: of one only the public key is taken, and only after it
// proved possession of the private one; every extension is ours.
//
// Promise: nothing is overwritten; files appear whole or not at all; keys are
// readable by their owner only; a process that is killed loses no serial number
// that left it and repeats none; CRL numbers only grow; processes take turns; a
// change to the log before a hash that was kept elsewhere is noticed.
package pki
