;; title: needs more memory than it gets before its first instruction
;; of: memory
;; status: 124
;; reason: resource-limit
;; says: the module needs more memory to start than its limit
(module (memory (export "memory") 60000) (func (export "process") (result i32) (i32.const 0)))
