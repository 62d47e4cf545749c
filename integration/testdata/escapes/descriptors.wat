;; title: opens files until there are no descriptors
;; of: descriptors
;; status: 7
;; reason: none
(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "file")
  (data (i32.const 64) "still here\n")
  (func (export "process") (result i32) (local $n i32) (local $e i32)
    (loop $again
      (local.set $e (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.and (i32.eqz (local.get $e)) (i32.lt_u (local.get $n) (i32.const 100000)))))
    (if (i32.eqz (local.get $e)) (then (return (i32.const 1))))
    (if (i32.gt_u (local.get $n) (i32.const 256)) (then (return (i32.const 2))))
    ;; The host goes on, and can still say how it ended.
    (call $write (i32.const 64) (i32.const 11))
    (i32.const 7)))
