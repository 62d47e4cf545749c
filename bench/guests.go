package main

import _ "embed" // the guests

// The guests, assembled: their sources lie beside them, and a test holds the
// two against each other.
var (
	//go:embed testdata/first.wasm
	guestFirst []byte
	//go:embed testdata/idle.wasm
	guestIdle []byte
	//go:embed testdata/idle-wasi.wasm
	guestIdleWASI []byte
)
