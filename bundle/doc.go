// Package bundle makes one OCI bundle ready to run: it finds the container's
// image, reads and verifies it, decides between container and WASM, computes
// the effective grant and, for WASM, rewrites config.json so that the
// container's process is mentat-host.
//
// Trusted: containerd, which names the image and serves content, the node's
// configuration and policy, and the bundle directory (root's). Hostile: the
// image and everything in it, labels and annotations, and whatever a user put
// into the container's specification (arguments, environment, mounts,
// devices): it is data to be narrowed, never an instruction.
//
// Promise: [Preparer.Prepare] returns without an error only after the image
// was verified under the node's policy and found to be what the container's
// snapshot was made from. On any error config.json is untouched and nothing
// was started but, at most, the compiler child. The specification that a
// rewritten config.json was made from lies beside it, out of the container's
// sight, and a further Prepare starts from that one.
package bundle
