;; title: a fork bomb: asks for wasi_snapshot_preview1.sock_open, of which there is no such thing
;; of: processes
;; refused: imports what the host does not provide: wasi_snapshot_preview1.sock_open
(module
  (import "wasi_snapshot_preview1" "sock_open" (func $more (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (loop $again (br $again)) (i32.const 0)))
