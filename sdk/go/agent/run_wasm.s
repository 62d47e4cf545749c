// This file lets run_wasm.go declare a function without a body.
