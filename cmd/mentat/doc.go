// Command mentat is an OCI runtime with runc's command line. It makes bundles
// ready exactly as the shim does and hands everything to runc, so that tools
// that only know how to name a runc binary run agents too:
//
//	nerdctl run --runtime mentat IMAGE
//	ctr run --runc-binary mentat IMAGE ID
//
// Trusted: its caller (containerd's runc shim), its environment, and the runc
// it hands over to. Hostile: the bundle's specification and the image.
// Promise: create and run reach runc only after package bundle accepted the
// bundle; every other command passes through unchanged, but exec into a WASM
// agent is refused.
package main
