// Package conformance says what every function of the `mentat` ABI does with good
// and bad arguments, as data, and checks it: cases/ has the calls and what comes
// of them, guests/ a guest in WebAssembly text and one in C that make whatever
// calls a case names, and [Host] runs a guest through a case in a mentat-host.
// SDKs bring guests of their own that make the same calls; see README.md.
//
// Trusted: the cases, the guests and the host program that is named. Hostile:
// nothing. Promise: a case passes only if every call gave what it says, everything
// the run emitted was expected, in that order, and the run ended as expected; what
// is made for it lies in the directory that was given.
package conformance
