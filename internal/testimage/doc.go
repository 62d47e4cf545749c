// Package testimage builds small container images for tests and demos, so that
// neither needs a registry or a builder.
//
// Trusted: the caller and the busybox binary that it names. Hostile: nothing;
// this package is not part of the product. Promise: equal inputs give equal
// images.
package testimage
