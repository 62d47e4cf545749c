// Package backend is what the host asks to serve a capability: how a granted
// capability is opened and invoked, whoever serves it.
//
// Trusted: the implementations, which are part of the host, and the host
// document that configures them. Hostile: operation names, heads and bodies of
// calls, which are the guest's bytes; an implementation judges each against the
// grant it was opened with. Promise: nothing here blocks beyond the context it
// is given, and a refusal says which rule decided.
package backend
