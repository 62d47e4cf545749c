// Package tsa answers requests for time stamps as RFC 3161 has it, with a key and
// a serial number that it is given.
//
// Trusted: the key, and whoever tells time and serial number. Hostile: the
// request.
//
// Promise: what is not a request for a stamp over a hash that is still good, under
// the authority's own policy, is refused by RFC 3161's failure for it, and takes no
// serial number; a stamp says nothing that the request did not ask for; a token
// leaves after its serial number was given.
package tsa
