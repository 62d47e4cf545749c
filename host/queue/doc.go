// Package queue bounds the calls that a backend serves at once, those that wait
// for their turn, and the bytes that they hold.
//
// Trusted: the backend, which leaves every place it took. Hostile: how many
// calls a guest makes and how large they are. Promise: what is over a bound is
// refused at once and holds nothing; turns go in the order of entry; who waits
// gives up with its context.
package queue
