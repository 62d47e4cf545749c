// Package launch is the shim's first step: containerd runs the shim's binary to
// start each task, and all that has to happen then is that a socket is made and
// another process is started to serve on it. It does that in a program with
// little else in it, since every start waits for it.
//
// Trusted: containerd, which runs it as root in the bundle's directory, and the
// directory of this program, from which it runs the serving one. Hostile: the
// bundle's annotations, which users set: one of them becomes part of a digest.
// Promise: what is out of the ordinary, and every action but "start", is left to
// the serving program, which replaces this one with the same arguments and input;
// a start that failed leaves no socket and no process behind.
package launch
