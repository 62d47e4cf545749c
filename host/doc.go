// Package host is the WASM side of MentatLab: it compiles modules, loads one that
// a document describes, and runs it, once or any number of times, with the
// `mentat` ABI and WASI preview 1.
//
// Trusted: the host document and the compiled module, which the shim or the
// operator wrote. Hostile: the guest, in everything it does: the pointers and
// lengths it passes, the texts it logs, how long it runs and how much it asks
// for; likewise the bytes of a module that is to be compiled.
//
// Promise: a pointer or length outside of the guest's memory traps and is never
// followed; nothing the guest does ends the host other than by an [hostdoc.Exit];
// a run ends at its deadline or when its context does, also while the guest
// waits in a host function; what is not granted is answered, not run. Runs of one
// program share nothing that a guest can see, and leave nothing behind. Only a
// guest that is stuck in a WASI call that blocks (a pipe in a granted directory,
// the standard streams of [Once]), or in a sink that does not give way
// ([output.Interrupter]), is left behind when its time is over: what it holds is
// freed when it comes back.
//
// The native engine is reached through internal/engine alone.
package host
