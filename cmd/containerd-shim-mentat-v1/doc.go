// Command containerd-shim-mentat-v1 is the program that containerd runs for the
// runtime type io.containerd.mentat.v1. It starts mentat-shim, which does the
// work, and is that for every other action.
//
// Trusted: containerd, which starts it as root. Hostile: what package launch
// treats as hostile. Promise: package launch's; this only calls it.
package main
