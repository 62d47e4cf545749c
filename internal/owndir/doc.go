// Package owndir keeps small files in a directory that belongs to the running
// user alone: what decides about code, and must not be another's to write.
//
// Trusted: whoever runs as the same user, root above all. Hostile: everybody
// else, who may have made the directory or planted links, pipes and devices in
// it before. Promise: a directory that others can enter is refused, only regular
// files of the running user are read, and a file appears whole or not at all.
package owndir
