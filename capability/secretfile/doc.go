// Package secretfile reads the secrets that a node's policy injects, when a run
// is prepared.
//
// Trusted: a file that the policy names. Hostile: a directory that whoever
// created the container made, with the links in it. Promise: no error says
// anything of a value; what is read is one line that can stand in a header, and
// nothing outside of the directory.
package secretfile
