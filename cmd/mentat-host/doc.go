// Command mentat-host is the process of a WASM agent's container, and the child
// in which modules are compiled.
//
// Trusted: its command line and the host document. Hostile: the guest it runs
// and the module it compiles. Promise: it gains no privileges after its start;
// as root, `compile` gives up root, the file tree and most resources before it
// reads the module's first byte.
//
//	mentat-host run [--document FILE]   run what the document describes
//	mentat-host compile                 module on stdin, compiled code on descriptor 3
//	mentat-host version
//
// `run` exits with the agent's status or MentatLab's own (120 to 124, 128+n by
// a signal); the others with the code that mentatctl has for the error (4: not a
// module that can be run, 22: cannot be compiled).
package main
