;; title: gives the host names, texts and lists as large as its memory, and thousands of small ones
;; of: host memory
;; status: 7
;; reason: none
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
  (import "mentat" "record_metric" (func $metric (param i32 i32 i32 f64 i32 i32) (result i32)))
  (import "mentat" "set_error" (func $error (param i32 i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "start_stream" (func $stream (param i32 i32) (result i32)))
  (import "mentat" "write_stream" (func $chunk (param i32 i32 i32) (result i32)))
  (import "mentat" "upload_media" (func $upload (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 500)
  (data (i32.const 16) "00000000")
  (func $count (param $at i32) (local $digit i32) ;; the next number in its eight digits
    (loop $carry
      (local.set $digit (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))
      (if (i32.gt_u (local.get $digit) (i32.const 122)) (then
        (i32.store8 (local.get $at) (i32.const 97))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $carry)))
      (i32.store8 (local.get $at) (local.get $digit))))
  (func (export "process") (result i32) (local $n i32) (local $big i32)
    (local.set $big (i32.const 31000000))
    (memory.fill (i32.const 65536) (i32.const 97) (local.get $big))
    ;; Lists as long as memory can hold: of buffers without length.
    (memory.fill (i32.const 65536) (i32.const 0) (local.get $big))
    (drop (call $write (i32.const 1) (i32.const 65536) (i32.const 3800000) (i32.const 0)))
    (drop (call $read (i32.const 0) (i32.const 65536) (i32.const 3800000) (i32.const 0)))
    ;; Names.
    (memory.fill (i32.const 65536) (i32.const 97) (local.get $big))
    (drop (call $readdir (i32.const 3) (i32.const 65536) (local.get $big) (i64.const 0) (i32.const 0)))
    (drop (call $renumber (i32.const 3) (i32.const 0x7fffffff)))
    (drop (call $request (i32.const 65536) (local.get $big) (i32.const 65536) (local.get $big)))
    (drop (call $stream (i32.const 65536) (local.get $big)))
    (drop (call $metric (i32.const 65536) (local.get $big) (i32.const 0) (f64.const 1) (i32.const 65536) (local.get $big)))
    (drop (call $upload (i32.const 65536) (i32.const 10) (i32.const 65536) (local.get $big)))
    (drop (call $error (i32.const 1) (i32.const 65536) (local.get $big)))
    ;; Many of what is small.
    (loop $again
      (call $count (i32.const 16))
      (drop (call $metric (i32.const 16) (i32.const 8) (i32.const 2) (f64.const 1) (i32.const 0) (i32.const 0)))
      (drop (call $chunk (call $stream (i32.const 16) (i32.const 8)) (i32.const 65536) (i32.const 100)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 20000))))
    (i32.const 7)))
