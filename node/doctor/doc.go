// Package doctor finds out whether a node really verifies what it pulls and runs:
// it reads what the running containerd was started with, looks at every file that
// decides, and offers the node's own gates artifacts that they must refuse.
//
// Trusted: the node's kernel and whoever is root on it; the doctor runs as root and
// starts the programs that containerd would start. Hostile: nothing, but mistakes
// are: a setting, a file or a program that is not what it should be. Promise: what
// cannot be found out is a failure and never a silence, and nothing on the node is
// changed but for a namespace of its own, which is removed again, and for what every
// gate writes down: the latest time, and revocation data. A finding says what, why it
// matters and what to do.
package doctor
