;; title: never ends
;; of: busy loop
;; manifest: deadline: 1s
;; status: 121
;; reason: deadline
;; says: the deadline of 1000 ms passed
(module (memory (export "memory") 1) (func (export "process") (result i32) (loop $again (br $again)) (i32.const 0)))
