// Package keyfile reads signing keys and certificate chains from PEM.
//
// Trusted: the person who names the file or variable. Hostile: nothing, but
// mistakes are: a key that does not belong to the certificate is refused before
// it signs. Promise: no error and no output holds key material.
package keyfile
