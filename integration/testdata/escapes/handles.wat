;; title: opens handles until there are none
;; of: handles
;; status: 7
;; reason: none
(module
  (import "mentat" "get_config" (func $config (param i32 i32) (result i32)))
  (import "mentat" "start_stream" (func $stream (param i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "last_error" (func $last (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "filesystem:read:/data")
  (func (export "process") (result i32) (local $n i32) (local $h i32)
    (loop $again
      (local.set $h (call $request (i32.const 0) (i32.const 21) (i32.const 0) (i32.const 0)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.and (i32.ge_s (local.get $h) (i32.const 0)) (i32.lt_u (local.get $n) (i32.const 100000)))))
    (if (i32.ne (local.get $h) (i32.const -4)) (then (return (i32.const 1)))) ;; LIMIT
    (if (i32.gt_u (local.get $n) (i32.const 257)) (then (return (i32.const 2))))
    (if (i32.ge_s (call $stream (i32.const 0) (i32.const 4)) (i32.const 0)) (then (return (i32.const 3))))
    (loop $again
      (local.set $h (call $last))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 100000))))
    (i32.const 7)))
