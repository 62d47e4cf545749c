// Package pack makes the archive of an SDK that package sdk embeds, since an
// embed directive does not reach into another module.
//
// Trusted: the SDK's directory in this repository. Hostile: nothing. Promise:
// the same files give the same bytes, and a file that the archive's format
// would change is refused.
package pack
