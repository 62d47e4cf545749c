// Package env serves env capabilities: the variables that a run was granted.
//
// Trusted: the variables, which the host document carries. Hostile: the guest's
// calls. Promise: a call yields the one variable that its capability names, or
// nothing.
package env
