;; title: grows its tables until they do not grow any more
;; of: tables
;; status: 7
;; reason: none
(module (table $a 0 funcref) (table $b 0 externref) (memory (export "memory") 1)
  (func (export "process") (result i32)
    (if (i32.ne (table.grow $a (ref.null func) (i32.const -1)) (i32.const -1)) (then (return (i32.const 1))))
    (loop $more (br_if $more (i32.ne (table.grow $a (ref.null func) (i32.const 50000)) (i32.const -1))))
    (loop $more (br_if $more (i32.ne (table.grow $b (ref.null extern) (i32.const 50000)) (i32.const -1))))
    (if (i32.gt_u (table.size $a) (i32.const 1000000)) (then (return (i32.const 2))))
    (if (i32.gt_u (table.size $b) (i32.const 1000000)) (then (return (i32.const 3))))
    (i32.const 7)))
