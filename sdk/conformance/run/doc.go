// Command run checks a mentat-host, or an SDK's own guest in it, against the
// conformance suite.
//
// Trusted: its command line. Hostile: nothing. Promise: it exits with 0 only if
// every case passed; what it makes lies in a temporary directory that it removes.
//
//	go run ./sdk/conformance/run -host bin/mentat-host [GUEST.wasm...]
package main
