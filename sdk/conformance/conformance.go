package conformance

import _ "embed"

// Modules are the guests that the suite has itself, by name. Both export process
// and _start.
var Modules = map[string][]byte{"wat": watGuest, "c": cGuest}

//go:embed guests/calls-wat.wasm
var watGuest []byte

//go:embed guests/calls-c.wasm
var cGuest []byte
