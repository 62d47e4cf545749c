;; title: a fork bomb: asks for mentat.exec, of which there is no such thing
;; of: processes
;; refused: imports what the host does not provide: mentat.exec
(module
  (import "mentat" "exec" (func $more (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "process") (result i32) (loop $again (br $again)) (i32.const 0)))
