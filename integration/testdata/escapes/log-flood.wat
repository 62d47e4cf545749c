;; title: logs more than anybody reads
;; of: log flood
;; status: 7
;; reason: none
(module
  (import "mentat" "log" (func $log (param i32 i32 i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "process") (result i32) (local $n i32)
    (memory.fill (i32.const 1024) (i32.const 120) (i32.const 65536))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 60000))
    (loop $again
      (call $log (i32.const 2) (i32.const 1024) (i32.const 60000))
      (call $log (i32.const 4) (i32.const 1024) (i32.const 1))
      (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 2000))))
    (i32.const 7)))
