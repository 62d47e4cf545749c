// Command mentat-shim is containerd's shim for MentatLab agents and ordinary
// containers. containerd-shim-mentat-v1 starts it.
//
// Trusted: containerd, which starts it as root. Hostile: what package shim
// treats as hostile. Promise: package shim's; this only calls it.
package main
