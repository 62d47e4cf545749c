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

// mt_memory is a guest's linear memory.
struct mt_memory {
  uint8_t *map, *base;
  size_t map_size, capacity;
  size_t size;   // what the guest has
  size_t opened; // what is not PROT_NONE; at least size
  size_t kept;   // in the pool, what may have pages
  mt_run *run;
  struct mt_memory *next; // in the pool
};

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

// mt_func is one imported function that the host serves.
struct mt_func {
  int number;
  int kind; // MT_OTHER or what is served without Go
};

#define MT_OTHER 0
#define MT_VERSION 1
#define MT_READ 2
#define MT_FD_READ 3
#define MT_FD_WRITE 4
#define MT_FD_PREAD 5
#define MT_FD_PWRITE 6
#define MT_FD_SEEK 7
#define MT_FD_TELL 8

// mt_window is what is there to be read of a handle. The bytes are Go's, which
// keeps them in their place as long as they are here; pos is moved on both sides,
// by the thread that runs the guest.
struct mt_window {
  int32_t handle;
  const uint8_t *data; // NULL when there is none
  size_t pos, end;
};

// The descriptors that a run may have open.
#define MT_FILES 512

// mt_file is a regular file under a descriptor of the guest's. Go opens and
// closes it, on the thread that runs the guest.
struct mt_file {
  int fd;
  int may; // MT_MAY_READ and MT_MAY_WRITE; 0 when there is none
};

#define MT_MAY_READ 1
#define MT_MAY_WRITE 2

// mt_program is what the runs of a module share: its imports, resolved once.
typedef struct mt_program {
  wasm_engine_t *engine;
  wasmtime_module_t *module;
  wasmtime_linker_t *linker;
  wasmtime_instance_pre_t *pre; // NULL when the linker cannot tell its imports apart
  struct mt_func *funcs;
  const wasm_importtype_vec_t *imports;
  int32_t abi_version;
} mt_program;

// mt_run is one store with one instance. Only mt_run_stop may be called from a
// second thread.
struct mt_run {
  uintptr_t handle; // the Go side's
  const mt_program *program;
  wasmtime_store_t *store;
  wasmtime_context_t *ctx;
  wasmtime_instance_t instance;
  struct mt_memory *memory; // NULL before the instance has one
  struct mt_window window;
  struct mt_file files[MT_FILES];
  int io_error; // the errno of a call that the system refused
  size_t memory_limit, memory_used;
  atomic_int refused; // a memory did not get the size it asked for
  atomic_int stop;
};

wasm_engine_t *mt_engine_new(size_t max_stack);
void mt_engine_keep(size_t memories, size_t bytes);
wasmtime_error_t *mt_compile(wasm_engine_t *, const uint8_t *, size_t, wasm_byte_vec_t *);
void mt_import_at(const wasm_importtype_vec_t *, size_t, mt_import *);
int mt_export_at(const wasm_exporttype_vec_t *, size_t, const char **, size_t *);

mt_program *mt_program_new(wasm_engine_t *, wasmtime_module_t *, const wasm_importtype_vec_t *,
                           int32_t abi_version);
wasmtime_error_t *mt_program_host(mt_program *, size_t import, int number, int kind);
wasmtime_error_t *mt_program_ready(mt_program *, int named_twice);
void mt_program_delete(mt_program *);

mt_run *mt_run_new(const mt_program *, uintptr_t handle, size_t memory_limit, int64_t table_elements);
int mt_run_instantiate(mt_run *, mt_failure *);
int mt_run_call(mt_run *, const char *, size_t, const int32_t *arg, int32_t *result, mt_failure *);
int mt_run_global(mt_run *, const char *, size_t, int64_t *);
uint8_t *mt_run_memory(mt_run *, size_t *);
void mt_run_stop(mt_run *);
size_t mt_run_memory_used(mt_run *);
size_t mt_memory_in_use(void);
int mt_run_refused(mt_run *);
void mt_run_delete(mt_run *);
int mt_serve_file(mt_run *, int kind, wasmtime_val_raw_t *);
char *mt_error_text(wasmtime_error_t *, size_t *);

#endif // MENTAT_ENGINE_H
