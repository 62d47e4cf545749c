// Package memory remembers verdicts and manifests from one process of a node to
// the next, so that the second start of an agent neither checks its signatures nor
// asks for its manifests again.
//
// Trusted: the directory, which is the running user's alone, and this program's
// own file. Hostile: everything a verdict is about; what is remembered is found
// by the artifact's digest, which whoever asks has checked. Promise: a verdict
// is used again only while everything it rests on is as it was: artifact,
// reference, policy, trust stores, revocation data, program and time. Only what
// was allowed without a warning is kept; a refusal is always judged anew. A
// memory that fails costs time and changes no verdict.
package memory
