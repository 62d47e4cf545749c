// Package agentdir is an agent's directory: manifest.yaml, the module, and
// below .mentat the packed artifact with its lock file.
//
// Trusted: the directory's owner, and the lock file as a note of what was built
// from which sources. Hostile: the manifest, the module and the layout, which
// may come from a stranger's repository: paths must stay in the directory and
// what the lock file says never replaces a digest that was computed. Promise:
// manifest, lock and layout are replaced whole, never edited in place.
package agentdir
