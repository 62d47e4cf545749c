;; title: a fork bomb: asks for env.fork, of which there is no such thing
;; of: processes
;; refused: imports what the host does not provide: env.fork
(module
  (import "env" "fork" (func $more (result i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (loop $again (br $again)) (i32.const 0)))
