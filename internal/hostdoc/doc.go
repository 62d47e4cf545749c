// Package hostdoc is the document with which a WASM run is described: the
// shim or mentatctl writes it, mentat-host reads it. It is the only thing that
// passes between the two.
//
// Trusted: the writer, which is root or the operator; the document is mounted
// read-only. Hostile: values inside that come from an agent's manifest (they
// were validated, but the host treats paths and names as data). Promise:
// [Read] takes exactly what [Document.Marshal] writes: an unknown version, an
// unknown or repeated field and an oversized document are refused, so that a
// host of another build never guesses.
package hostdoc
