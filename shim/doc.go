// Package shim is containerd's task service for MentatLab: the runc shim's
// service, with every bundle made ready by package bundle before it is created.
//
// Trusted: containerd, which talks to the shim over a socket only root can
// reach, and the OCI runtime. Hostile: options and specifications that users
// reach through containerd; they are translated or refused, never passed on in
// a form that the runc code would panic on. Promise: no task is created from a
// bundle that package bundle refused, and a refusal leaves nothing running.
package shim
