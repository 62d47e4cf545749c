// Package policy reads the node's capability policy, capabilities.yaml: the
// rules by which agents are granted and denied capabilities, and what the node
// serves them with.
//
// Trusted: the file's owner. Hostile: nothing, but typing errors are: a key that
// is unknown, there twice or without effect is refused with file and line, for
// a denial that was misspelled would deny nothing. Promise: a policy that was
// named and cannot be read is an error and never the defaults; what no rule
// allows is denied, and a denial wins wherever it stands. The references of
// secrets are read here, their values never.
package policy
