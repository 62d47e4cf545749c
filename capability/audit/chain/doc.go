// Package chain keeps audit records in a log in which each entry holds the hash
// of the one before it, so that one that was removed, changed or put elsewhere
// shows. The log is a directory of segments, and a head that says where it ends.
//
// Trusted: whoever can write the directory, while they do; the chain is for what
// is found later. Hostile: the records, which are data. Promise: what [Log.Append]
// returned for survives the death of the process at any moment, each record of a
// spool is taken once, and [Verify] reports every entry that is not as it was
// written. Whoever rewrites all that follows, the head included, is found by an
// anchor that is kept elsewhere.
package chain
