// Command containerd-shim-mentat-v1 is containerd's shim for MentatLab agents
// and ordinary containers (runtime type io.containerd.mentat.v1).
//
// Trusted, Hostile, Promise: see package shim, which this only calls.
package main
