// Command probe stands in the host's place and says what can be done from
// inside. It locks itself as the host does, as its command line and document
// say, and then tries what the document's arguments name, one line each:
//
//	probe run --document PATH [lock …]
//	probe compile
//
// Without a lock it is the control: the same attempts, with nothing but what
// stands around the process.
//
// Trusted: whoever runs the test. Hostile: nothing, it plays the part of a guest
// that has taken its host over. Promise: an attempt that gets through harms
// nothing but the process, and files that the argument names.
package main
