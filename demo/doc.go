// Command demo shows the main job on real parts, as a transcript: an agent is
// written, built, signed and published, pulled by containerd under the eyes of
// the verifier, and run beside ordinary containers; what must not run is
// refused twice.
//
// Trusted: the binaries of this source tree. Hostile: what the demo itself
// plays as attacker; it must be refused, and the demo fails when it is not.
// Promise: every command is really run and its real output shown (long lines
// folded or cut, long outputs cut, and marked so); what does not hold ends the
// demo with the full output and an exit status; processes, mounts, cgroups and
// files are gone afterwards, also after an interrupt.
package main
