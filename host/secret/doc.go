// Package secret holds the values that the host uses on a guest's behalf and
// the guest must not see: it reads them, and takes them out of what comes back.
//
// Trusted: the file of secrets, which only the host may read. Hostile: the
// servers whose answers may repeat a secret, and the guest that asks them to.
// Promise: no error of this package holds a value, or a part of one. A [Mask] is
// the last line and not the wall: it finds a secret as it is, in its escaped and
// its base64 forms, however the answer is cut into pieces; a server that turns
// it into something else gives it away.
package secret
