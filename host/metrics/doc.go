// Package metrics keeps what guests measure, in numbers that stay bounded
// whatever they do.
//
// Trusted: who reads the registry. Hostile: names, kinds, values and attributes,
// which are the guest's. Promise: a registry holds at most so many names and
// series; what does not fit is refused and changes nothing; what is read out of
// it is well-formed by the rules of the Prometheus text format, so that no name
// or value can pass for another line or for a metric of the host's.
package metrics
