// Package node starts a private containerd and a private registry for tests and
// for the demo, and takes them away again without a trace.
//
// Trusted: everything; it runs what it is told to, as root, on the machine it
// is called on. Hostile: nothing, but whatever runs inside may crash or hang,
// and so may the caller. Promise: nothing outside [Config.Root] is read as
// configuration; every process that [Node.Close] ends belongs to this node (it
// was started here, or carries this node's socket or cgroup); what is left
// behind after a test is counted by [Node.Leaks], not guessed.
package node
