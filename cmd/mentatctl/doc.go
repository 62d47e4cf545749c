// Command mentatctl is the tool that people hold in their hands: it makes,
// builds, signs, verifies, publishes, pulls, inspects and runs agents, and it
// keeps a small certificate authority.
//
// Trusted: the person at the keyboard, the flags, ~/.mentat and the node's
// configuration. Hostile: manifests, modules and artifacts, wherever they come
// from, and every text in them: it is printed on one line without control
// characters. Promise: what is refused leaves no output behind and ends with
// the exit code that the error table gives it; a result goes to stdout, as text
// or as one versioned JSON document; everything else goes to stderr.
package main
