// Package process is what the host programs have in common: the command line,
// signals, frugality, and one document from reading to reporting.
//
// Trusted: the command line, the document, the file of secrets, and the program
// that adds its services. Hostile: the guest, whom [host] holds. Promise: a
// document that asks for what this program does not have is refused, as is one
// with a lock that nobody can put on; how a run ended is reported also where it
// could not begin; secrets are read before anything of the guest's is, into a
// process that leaves no core and that its user's other processes cannot read.
package process
