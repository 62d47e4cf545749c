;; title: never ends within single instructions that take long
;; of: busy loop
;; manifest: deadline: 1s
;; status: 121
;; reason: deadline
(module (memory (export "memory") 400)
  (func (export "process") (result i32)
    (loop $again (memory.fill (i32.const 0) (i32.const 1) (i32.const 26214400)) (memory.copy (i32.const 1) (i32.const 0) (i32.const 26214399)) (br $again)) (i32.const 0)))
