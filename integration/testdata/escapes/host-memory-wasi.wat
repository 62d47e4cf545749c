;; title: names names and lists as large as its memory, for the host to copy (CVE-2026-27204): each is refused
;; of: host memory
;; status: 7
;; reason: none
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 500)
  (func (export "process") (result i32) (local $big i32)
    (local.set $big (i32.const 31000000))
    (if (i32.eqz (call $poll (i32.const 65536) (i32.const 24000000) (i32.const 400000) (i32.const 0))) (then (return (i32.const 1))))
    (memory.fill (i32.const 65536) (i32.const 97) (local.get $big))
    (if (i32.eqz (call $symlink (i32.const 65536) (local.get $big) (i32.const 4) (i32.const 65536) (local.get $big))) (then (return (i32.const 2))))
    (i32.const 7)))
