// Package cli is mentatctl's commands: each file turns the flags of one verb
// into a call of the libraries and hands what comes back to package display.
//
// Trusted: flags, environment and configuration of the person who runs it.
// Hostile: the agents that commands are pointed at. Promise: nothing here
// decides about trust, the verifier does; flags that contradict each other are
// refused, never ranked; files appear whole or not at all.
package cli
