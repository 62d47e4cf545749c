;; title: calls itself without end
;; of: recursion
;; status: 120
;; reason: trap
;; says: the call stack is exhausted in deeper
(module (memory (export "memory") 1)
  (func $deeper (param i64 i64 i64 i64) (result i64)
    (i64.add (call $deeper (local.get 3) (local.get 2) (local.get 1) (i64.add (local.get 0) (i64.const 1))) (local.get 1)))
  (func (export "process") (result i32) (i32.wrap_i64 (call $deeper (i64.const 0) (i64.const 1) (i64.const 2) (i64.const 3)))))
