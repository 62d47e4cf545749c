// What engine.go calls: libwasmtime's own functions and, for whatever needs a
// callback or a loop in C, the mt_ functions below.
#ifndef MENTAT_ENGINE_H
#define MENTAT_ENGINE_H

#include <stdatomic.h>

#include "wasmtime_abi.h"

// The most parameters and results of an imported function that are reported;
// no function of the host has as many.
#define MT_MAX_TYPES 16

typedef struct mt_run mt_run;

// mt_import is one import of a module. The pointers live as long as the list.
typedef struct mt_import {
  const char *module, *name;
  size_t module_len, name_len;
  int is_func;
  size_t nparams, nresults; // more than MT_MAX_TYPES are counted, not listed
  wasm_valkind_t params[MT_MAX_TYPES], results[MT_MAX_TYPES];
} mt_import;

// mt_failure tells a trap or error in plain values. The strings are malloc'ed.
typedef struct mt_failure {
  int code; // a wasmtime_trap_code_t, or -1 when the engine did not raise it
  int has_frame;
  uint32_t func_index;
  char *func_name;
  size_t func_name_len;
  char *message;
  size_t message_len;
} mt_failure;

struct mt_func {
  mt_run *run;
  int number;
};

// mt_run is one store with one instance. Only mt_stop may be called from a
// second thread.
struct mt_run {
  uintptr_t handle; // the Go side's
  wasm_engine_t *engine;
  wasmtime_store_t *store;
  wasmtime_context_t *ctx;
  wasmtime_linker_t *linker; // WASI, or NULL
  wasmtime_instance_t instance;
  wasmtime_memory_t memory;
  int has_memory;
  struct mt_func *funcs;
  wasmtime_extern_t *imports;
  size_t nimports;
  size_t memory_limit, memory_used;
  atomic_int refused; // a memory did not get the size it asked for
  atomic_int stop;
};

wasm_engine_t *mt_engine_new(size_t max_stack);
wasmtime_error_t *mt_compile(wasm_engine_t *, const uint8_t *, size_t, wasm_byte_vec_t *);
void mt_import_at(const wasm_importtype_vec_t *, size_t, mt_import *);
int mt_export_at(const wasm_exporttype_vec_t *, size_t, const char **, size_t *);

mt_run *mt_run_new(wasm_engine_t *, uintptr_t handle, size_t memory_limit, int64_t table_elements,
                   size_t nimports);
wasmtime_error_t *mt_run_wasi(mt_run *, wasi_config_t *);
void mt_run_import_host(mt_run *, const wasm_importtype_vec_t *, size_t, int number);
int mt_run_import_wasi(mt_run *, const wasm_importtype_vec_t *, size_t);
int mt_run_instantiate(mt_run *, wasmtime_module_t *, mt_failure *);
int mt_run_call(mt_run *, const char *, size_t, const int32_t *arg, int32_t *result, mt_failure *);
int mt_run_global(mt_run *, const char *, size_t, int64_t *);
uint8_t *mt_run_memory(mt_run *, size_t *);
void mt_run_stop(mt_run *);
size_t mt_run_memory_used(mt_run *);
int mt_run_refused(mt_run *);
void mt_run_delete(mt_run *);
void mt_wasi_outputs(wasi_config_t *, uintptr_t handle, int custom_out, int custom_err);
char *mt_error_text(wasmtime_error_t *, size_t *);

#endif // MENTAT_ENGINE_H
