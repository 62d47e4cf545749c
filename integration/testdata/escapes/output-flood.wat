;; title: writes more than anybody reads
;; of: output flood
;; status: 124
;; reason: resource-limit
;; says: output limit
(module
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 17)
  (func (export "process") (result i32) (loop $again (call $write (i32.const 0) (i32.const 1048576)) (br $again)) (i32.const 0)))
