// Package strictyaml decodes YAML that grants or refuses something: manifests
// and policies. It accepts the plain part of YAML – mappings, lists, scalars –
// and nothing that lets two readers disagree.
//
// Trusted: the Go type that is decoded into. Hostile: every byte of the text.
// Promise: an unknown or repeated key, a wrong type, an anchor, an alias, a
// merge key, a tag, an empty value or a second document is an error with file
// and line, and all of them are reported at once; nothing is guessed or
// ignored; work and memory are in proportion to the text.
package strictyaml
