// Command mentat-pkcs11 signs with keys in a PKCS #11 token, for mentatctl, which
// starts it. It loads the token's library, native code that mentatctl itself does
// not load.
//
// Trusted: whoever starts it, the library. Hostile: nothing that it reads comes
// from elsewhere. Promise: one line is answered by one line; a key is removed only
// in the session that made it; it ends when its input does.
package main
