;; title: never ends before it was entered
;; of: busy loop
;; manifest: deadline: 1s
;; status: 121
;; reason: deadline
(module (memory (export "memory") 1) (func $forever (loop $again (br $again))) (start $forever) (func (export "process") (result i32) (i32.const 0)))
