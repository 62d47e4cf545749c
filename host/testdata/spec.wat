;; The specification's example (§1.2) with the one drop that makes it valid.
(module
  ;; Import host functions
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32)))
  (import "mentat" "log" (func $log (param i32 i32)))

  ;; Memory for data exchange
  (memory (export "memory") 1 100) ;; 1-100 pages

  ;; Main entry point
  (func (export "process") (result i32)
    ;; Agent processing logic
    (drop (call $read_input))
    ;; Process data...
    (call $write_output (i32.const 0) (i32.const 100))
    (i32.const 0) ;; Success
  )

  ;; Metadata exports
  (export "agent_version" (global $version))
  (global $version i32 (i32.const 1))
)
