;; An agent that waits for its input, laid out as Rust's and C's linkers do:
;; 1 MiB of stack below the data, of which a little was used.
(module
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (memory (export "memory") 17 32)
  (func (export "process") (result i32)
    (memory.fill (i32.const 1032192) (i32.const 1) (i32.const 16384))
    (memory.fill (i32.const 1048576) (i32.const 1) (i32.const 32768))
    (drop (call $read_input))
    (drop (call $read (i32.const 0) (i32.const 1081344) (i32.const 4096)))
    (i32.const 0)))
