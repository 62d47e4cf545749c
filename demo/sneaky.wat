;; Prints its marker as soon as it runs. sneaky.wasm is this, assembled.
(module
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "THE-GUEST-RAN\n")
  (func (export "process") (result i32)
    (call $write_output (i32.const 0) (i32.const 14))
    (i32.const 0)))
