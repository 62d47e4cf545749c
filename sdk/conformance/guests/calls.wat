;; The guest of the conformance suite in WebAssembly text: it reads a script and
;; makes the calls that it names. README.md has the script's form.
(module
  (import "mentat" "abi_version" (func $abi_version (result i32)))
  (import "mentat" "read_input" (func $read_input (result i32)))
  (import "mentat" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "mentat" "size" (func $size (param i32) (result i64)))
  (import "mentat" "close" (func $close (param i32) (result i32)))
  (import "mentat" "write_output" (func $write_output (param i32 i32) (result i32)))
  (import "mentat" "write_output" (func $write_output_void (param i32 i32)))
  (import "mentat" "set_error" (func $set_error (param i32 i32 i32) (result i32)))
  (import "mentat" "last_error" (func $last_error (result i32)))
  (import "mentat" "log" (func $log (param i32 i32)))
  (import "mentat" "log" (func $log_level (param i32 i32 i32)))
  (import "mentat" "start_stream" (func $start_stream (param i32 i32) (result i32)))
  (import "mentat" "write_stream" (func $write_stream (param i32 i32 i32) (result i32)))
  (import "mentat" "end_stream" (func $end_stream (param i32 i32) (result i32)))
  (import "mentat" "download_media" (func $download_media (param i32 i32) (result i32)))
  (import "mentat" "upload_media" (func $upload_media (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "record_metric" (func $record_metric (param i32 i32 i32 f64 i32 i32) (result i32)))
  (import "mentat" "request_capability" (func $request_capability (param i32 i32 i32 i32) (result i32)))
  (import "mentat" "invoke_capability" (func $invoke_capability (param i32 i32 i32 i32 i32) (result i32)))
  (import "mentat" "get_config" (func $get_config (param i32 i32) (result i32)))

  ;; 0: the results, i32 each; 4096: scratch; 8192: a line for the log; 8448: the
  ;; script's key; 16384: the script
  (memory (export "memory") 8)
  (data (i32.const 8192) "#")
  (data (i32.const 8448) "conformance.script")
  (global $at (mut i32) (i32.const 16384))
  (global $calls (mut i32) (i32.const 0))

  (func $byte (result i32)
    (i32.load8_u (global.get $at))
    (global.set $at (i32.add (global.get $at) (i32.const 1))))

  (func $word (result i32)
    (i32.load (global.get $at))
    (global.set $at (i32.add (global.get $at) (i32.const 4))))

  ;; an argument: a value, bytes of the script, scratch, or an earlier result
  (func $arg (result i32) (local $tag i32)
    (local.set $tag (call $byte))
    (if (i32.eq (local.get $tag) (i32.const 1)) (then (return (i32.add (i32.const 16384) (call $word)))))
    (if (i32.eq (local.get $tag) (i32.const 2)) (then (return (i32.const 4096))))
    (if (i32.eq (local.get $tag) (i32.const 3)) (then (return (i32.load (i32.shl (call $word) (i32.const 2))))))
    (call $word))

  (func $argf (result f64)
    (drop (call $byte))
    (f64.load (global.get $at))
    (global.set $at (i32.add (global.get $at) (i32.const 8))))

  ;; says what a call gave: '#' and 16 digits, or '#' alone
  (func $gave (param $v i64) (local $i i32) (local $d i32)
    (i32.store (i32.shl (global.get $calls) (i32.const 2)) (i32.wrap_i64 (local.get $v)))
    (local.set $i (i32.const 16))
    (loop $digits
      (local.set $d (i32.and (i32.wrap_i64 (local.get $v)) (i32.const 15)))
      (i32.store8 (i32.add (i32.const 8192) (local.get $i))
        (i32.add (local.get $d) (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $d) (i32.const 10)))))
      (local.set $v (i64.shr_u (local.get $v) (i64.const 4)))
      (br_if $digits (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
    (call $log_level (i32.const 0) (i32.const 8192) (i32.const 17))
    (global.set $calls (i32.add (global.get $calls) (i32.const 1))))

  (func $gave_nothing
    (call $log_level (i32.const 0) (i32.const 8192) (i32.const 1))
    (global.set $calls (i32.add (global.get $calls) (i32.const 1))))

  (func $digit (param $p i32) (result i32) (local $c i32)
    (local.set $c (i32.load8_u (local.get $p)))
    (i32.sub (local.get $c) (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $c) (i32.const 58)))))

  ;; reads the script and turns its digits into bytes, in place
  (func $load (local $h i32) (local $end i32) (local $n i32) (local $i i32)
    (local.set $end (i32.const 16384))
    (local.set $h (call $get_config (i32.const 8448) (i32.const 18)))
    (loop $more
      (local.set $n (call $read (local.get $h) (local.get $end) (i32.const 65536)))
      (local.set $end (i32.add (local.get $end) (local.get $n)))
      (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
    (drop (call $close (local.get $h)))
    (local.set $n (i32.const 16384))
    (local.set $i (i32.const 16384))
    (loop $bytes
      (i32.store8 (local.get $n) (i32.or
        (i32.shl (call $digit (local.get $i)) (i32.const 4))
        (call $digit (i32.add (local.get $i) (i32.const 1)))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $bytes (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 2))) (local.get $end)))))

  (func (export "_start") (drop (call $process)))

  (func $process (export "process") (result i32) (local $op i32)
    (call $load)
    (loop $next
      (local.set $op (call $byte))
      (if (i32.eq (local.get $op) (i32.const 255)) (then (return (call $word))))
      (if (i32.eq (local.get $op) (i32.const 254)) (then
        (call $write_output_void (i32.const 4096) (i32.load (i32.shl (i32.sub (global.get $calls) (i32.const 1)) (i32.const 2))))
        (br $next)))
      (if (i32.eq (local.get $op) (i32.const 0)) (then (call $gave (i64.extend_i32_s (call $abi_version))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 1)) (then (call $gave (i64.extend_i32_s (call $read_input))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 2)) (then (call $gave (i64.extend_i32_s (call $read (call $arg) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 3)) (then (call $gave (call $size (call $arg))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 4)) (then (call $gave (i64.extend_i32_s (call $close (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 5)) (then (call $gave (i64.extend_i32_s (call $write_output (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 6)) (then (call $write_output_void (call $arg) (call $arg)) (call $gave_nothing) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 7)) (then (call $gave (i64.extend_i32_s (call $set_error (call $arg) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 8)) (then (call $gave (i64.extend_i32_s (call $last_error))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 9)) (then (call $log (call $arg) (call $arg)) (call $gave_nothing) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 10)) (then (call $log_level (call $arg) (call $arg) (call $arg)) (call $gave_nothing) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 11)) (then (call $gave (i64.extend_i32_s (call $start_stream (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 12)) (then (call $gave (i64.extend_i32_s (call $write_stream (call $arg) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 13)) (then (call $gave (i64.extend_i32_s (call $end_stream (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 14)) (then (call $gave (i64.extend_i32_s (call $download_media (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 15)) (then (call $gave (i64.extend_i32_s (call $upload_media (call $arg) (call $arg) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 16)) (then (call $gave (i64.extend_i32_s (call $record_metric (call $arg) (call $arg) (call $arg) (call $argf) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 17)) (then (call $gave (i64.extend_i32_s (call $request_capability (call $arg) (call $arg) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 18)) (then (call $gave (i64.extend_i32_s (call $invoke_capability (call $arg) (call $arg) (call $arg) (call $arg) (call $arg)))) (br $next)))
      (if (i32.eq (local.get $op) (i32.const 19)) (then (call $gave (i64.extend_i32_s (call $get_config (call $arg) (call $arg)))) (br $next)))
      unreachable) ;; an operation that it does not know
    unreachable))
