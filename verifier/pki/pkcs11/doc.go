// Package pkcs11 is keys that stay in a PKCS #11 token: their names, and a
// crypto.Signer over the program mentat-pkcs11, which loads the token's library.
// The library is native code of somebody else's; in a program of its own it is
// not in ours, and ours needs no C compiler.
//
// Trusted: the program and the library that the user names. Hostile: names of
// keys from elsewhere; what the program says, beyond the signatures that the
// caller checks.
//
// Promise: a PIN is neither in a name, nor in arguments or the environment of the
// program; answers are bounded; a signer whose program is gone fails and does not
// hang.
package pkcs11
