// Package nodeconfig reads the node's configuration file, config.toml.
//
// Trusted: the file's owner; its path comes from the environment of a
// privileged process or from a flag. Hostile: nothing, but typing errors are:
// unknown keys and wrong types are refused. Promise: a file that was named and
// cannot be read is an error, never the defaults.
package nodeconfig
