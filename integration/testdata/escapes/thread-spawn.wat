;; title: a fork bomb: asks for wasi.thread-spawn, of which there is no such thing
;; of: processes
;; refused: imports what the host does not provide: wasi.thread-spawn
(module
  (import "wasi" "thread-spawn" (func $more (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (loop $again (br $again)) (i32.const 0)))
