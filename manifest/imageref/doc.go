// Package imageref reads image references and the patterns by which policies
// name many of them.
//
// Trusted: patterns, which the node's owner wrote. Hostile: references, which
// come from whoever creates containers: spelling one otherwise must not lead
// out of a pattern, or into one. Promise: what cannot be read as a reference is
// unknown, and no pattern but "*" covers it.
package imageref
