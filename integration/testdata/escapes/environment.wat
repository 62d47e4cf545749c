;; title: prints every variable and argument that it can see
;; of: environment
;; status: 0
;; reason: none
;; says: GREETING=hello
;; says: agent.wasm
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (data (i32.const 64) "env:TOKEN")
  (data (i32.const 96) "env:AWS_SECRET_ACCESS_KEY")
  (data (i32.const 128) "ESCAPE by the capability")
  (func $say (param $at i32) (param $n i32)
    (i32.store (i32.const 16) (local.get $at))
    (i32.store (i32.const 20) (local.get $n))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))))
  (func (export "_start")
    (drop (call $environ_sizes (i32.const 0) (i32.const 4)))
    (drop (call $environ (i32.const 1024) (i32.const 65536)))
    (call $say (i32.const 65536) (i32.load (i32.const 4)))
    (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 1024) (i32.const 65536)))
    (call $say (i32.const 65536) (i32.load (i32.const 4)))
    (if (i32.ge_s (call $request (i32.const 64) (i32.const 9) (i32.const 0) (i32.const 0)) (i32.const 0)) (then (call $say (i32.const 128) (i32.const 24))))
    (if (i32.ge_s (call $request (i32.const 96) (i32.const 25) (i32.const 0) (i32.const 0)) (i32.const 0)) (then (call $say (i32.const 128) (i32.const 24))))))
