// Package engine is the one place that touches libwasmtime: its configuration,
// compiling, loading, one run of one instance, and the calls in both directions.
//
// Trusted: the caller, and compiled modules, which are native code and are
// loaded without question; whoever calls [Engine.Load] must know that the file
// came out of [Engine.Compile] and that nobody else could write it. Hostile:
// the guest, through every value that reaches [Host]. Promise: a guest reaches
// the host only through the imports it was given; memory never exceeds the
// run's limit; [Run.Stop] interrupts running guest code within one loop turn or
// call of it, and a transfer of a file after its current step.
package engine
