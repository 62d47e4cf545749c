// Command runtests runs `go test` several times and adds the results up.
//
//	runtests [-skips FILE] ARGS… [-- ARGS…]…
//
// Every ARGS is what would follow `go test`. Output is that of plain `go test`:
// a line for each package, and everything a failed test said. The last line
// counts tests; a subtest counts as a test. It fails when a test fails, when no
// test ran, and when a test is skipped that the file of allowed skips does not
// name: a skipped test looks green and proves nothing.
//
// Trusted: the source tree. Hostile: a test that hides what it did. Promise: the
// last line counts every test, and no skip passes unnamed.
package main
