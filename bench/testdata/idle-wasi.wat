;; The same as a WASI command.
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 17 32)
  (data (i32.const 1048576) "\00\80\10\00\00\10\00\00")
  (func (export "_start")
    (memory.fill (i32.const 1032192) (i32.const 1) (i32.const 16384))
    (memory.fill (i32.const 1048592) (i32.const 1) (i32.const 32752))
    (drop (call $fd_read (i32.const 0) (i32.const 1048576) (i32.const 1) (i32.const 1048584)))))
