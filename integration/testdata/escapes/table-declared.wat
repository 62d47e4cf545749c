;; title: declares a table of the largest size
;; of: tables
;; refused: a table of 4294967295 elements
(module (table 4294967295 funcref) (memory (export "memory") 1) (func (export "process") (result i32) (i32.const 0)))
