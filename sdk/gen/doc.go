// Command gen writes the embedded copies of the SDKs. Run it from sdk/, as
// `go generate ./sdk` does.
//
// Trusted: this repository. Hostile: nothing. Promise: a failure leaves the old
// copy as it was.
package main
