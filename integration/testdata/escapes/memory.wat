;; title: takes memory until there is none
;; of: memory
;; status: 122
;; reason: out-of-memory
;; says: out of memory: more than 33554432 bytes were refused
(module
  (memory (export "memory") 1)
  (func (export "process") (result i32)
    (loop $more
      (memory.fill (i32.const 0) (i32.const 165) (i32.mul (memory.size) (i32.const 65536)))
      (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (unreachable)))
