// Command containerd-shim-mentat-v1 is containerd's shim for MentatLab agents
// and ordinary containers (runtime type io.containerd.mentat.v1).
//
// Trusted: containerd, which starts it as root. Hostile: what package shim
// treats as hostile. Promise: package shim's; this only calls it.
package main
