;; title: calls itself without end through a table and the host's own calls
;; of: recursion
;; status: 120
;; reason: trap
(module
  (import "mentat" "abi_version" (func $host (result i32)))
  (memory (export "memory") 1)
  (type $t (func (result i32)))
  (table 1 funcref) (elem (i32.const 0) $deeper)
  (func $deeper (type $t) (i32.add (call $host) (call_indirect (type $t) (i32.const 0))))
  (func (export "process") (result i32) (call $deeper)))
