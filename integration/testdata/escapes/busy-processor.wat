;; title: uses the processor beyond its time
;; of: busy loop
;; manifest:   resources: {cpu_time: 300ms}
;; status: 121
;; reason: cpu-time
;; says: the run's processor time of 300 ms is used up
(module (memory (export "memory") 1) (func (export "process") (result i32) (loop $again (br $again)) (i32.const 0)))
