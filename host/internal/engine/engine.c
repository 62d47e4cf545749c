#include "engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "_cgo_export.h"

// Linear memory. The engine's own allocator cannot tell a memory.grow that it
// refused from one that never happened, and an agent that ran out of memory
// must be told from one that merely trapped; so the memories are made here.
// Reservation and guards are the engine's defaults: with 4 GiB reserved a 32-bit
// memory never moves and needs no bounds checks.

static const size_t RESERVATION = (size_t)4 << 30;
static const size_t GUARD = (size_t)32 << 20;

struct mt_memory {
  uint8_t *map, *base;
  size_t map_size, size, capacity;
  mt_run *run;
};

// The run that instantiates on this thread: the creator belongs to the engine
// and is not told for whom a memory is.
static _Thread_local mt_run *instantiating;

static wasmtime_error_t *refuse(mt_run *run, const char *why) {
  atomic_store(&run->refused, 1);
  return wasmtime_error_new(why);
}

static uint8_t *memory_get(void *env, size_t *size, size_t *capacity) {
  struct mt_memory *m = env;
  *size = m->size;
  *capacity = m->capacity;
  return m->base;
}

static wasmtime_error_t *memory_grow(void *env, size_t size) {
  struct mt_memory *m = env;
  mt_run *run = m->run;
  if (size < m->size || size > m->capacity)
    return refuse(run, "memory cannot have that size");
  size_t more = size - m->size;
  if (more > run->memory_limit - run->memory_used)
    return refuse(run, "the run's memory limit is reached");
  if (more > 0 && mprotect(m->base + m->size, more, PROT_READ | PROT_WRITE) != 0)
    return refuse(run, "the system has no memory left");
  m->size = size;
  run->memory_used += more;
  return NULL;
}

static void memory_free(void *env) {
  struct mt_memory *m = env;
  m->run->memory_used -= m->size;
  munmap(m->map, m->map_size);
  free(m);
}

static wasmtime_error_t *memory_new(void *env, const wasm_memorytype_t *type, size_t minimum,
                                    size_t maximum, size_t reserved, size_t guard,
                                    wasmtime_linear_memory_t *out) {
  (void)env, (void)type, (void)maximum;
  mt_run *run = instantiating;
  if (run == NULL)
    return wasmtime_error_new("a memory outside of a run");
  if (minimum > reserved)
    return refuse(run, "memory is larger than its reservation");
  struct mt_memory *m = calloc(1, sizeof *m);
  if (m == NULL)
    return refuse(run, "the system has no memory left");
  m->map_size = guard + reserved + guard;
  m->map = mmap(NULL, m->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m->map == MAP_FAILED) {
    free(m);
    return refuse(run, "no address space for a memory");
  }
  m->base = m->map + guard;
  m->capacity = reserved;
  m->run = run;
  wasmtime_error_t *err = memory_grow(m, minimum);
  if (err != NULL) {
    memory_free(m);
    return err;
  }
  out->env = m;
  out->get_memory = memory_get;
  out->grow_memory = memory_grow;
  out->finalizer = memory_free;
  return NULL;
}

// The configuration. Every setting is spelled out, the engine's defaults too:
// they change between versions.
wasm_engine_t *mt_engine_new(size_t max_stack) {
  wasm_config_t *c = wasm_config_new();
  wasmtime_config_strategy_set(c, MT_STRATEGY_CRANELIFT);
  wasmtime_config_cranelift_opt_level_set(c, MT_OPT_LEVEL_SPEED);
  wasmtime_config_parallel_compilation_set(c, true);
  wasmtime_config_debug_info_set(c, false);
  wasmtime_config_consume_fuel_set(c, false);
  wasmtime_config_epoch_interruption_set(c, true);
  wasmtime_config_signals_based_traps_set(c, true);
  wasmtime_config_native_unwind_info_set(c, false);
  wasmtime_config_max_wasm_stack_set(c, max_stack);

  wasmtime_config_memory_reservation_set(c, RESERVATION);
  wasmtime_config_memory_guard_size_set(c, GUARD);
  wasmtime_config_memory_may_move_set(c, false);
  wasmtime_config_memory_init_cow_set(c, false); // not possible with own memories
  wasmtime_memory_creator_t creator = {.env = NULL, .new_memory = memory_new, .finalizer = NULL};
  wasmtime_config_host_memory_creator_set(c, &creator);

  wasmtime_config_wasm_multi_value_set(c, true);
  wasmtime_config_wasm_bulk_memory_set(c, true);
  wasmtime_config_wasm_reference_types_set(c, true);
  wasmtime_config_wasm_simd_set(c, true);
  wasmtime_config_wasm_tail_call_set(c, true);
  // Relaxed SIMD is off; should it ever be on, its results are the same everywhere.
  wasmtime_config_wasm_relaxed_simd_set(c, false);
  wasmtime_config_wasm_relaxed_simd_deterministic_set(c, true);
  wasmtime_config_wasm_threads_set(c, false);
  wasmtime_config_wasm_memory64_set(c, false);
  wasmtime_config_wasm_multi_memory_set(c, false);
  wasmtime_config_wasm_function_references_set(c, false);
  wasmtime_config_wasm_gc_set(c, false);
  wasmtime_config_wasm_exceptions_set(c, false);
  wasmtime_config_wasm_wide_arithmetic_set(c, false);
  wasmtime_config_wasm_custom_page_sizes_set(c, false);
  wasmtime_config_wasm_stack_switching_set(c, false);
  wasmtime_config_wasm_component_model_set(c, false);
  return wasm_engine_new_with_config(c);
}

wasmtime_error_t *mt_compile(wasm_engine_t *engine, const uint8_t *wasm, size_t n,
                             wasm_byte_vec_t *out) {
  wasmtime_module_t *module = NULL;
  wasmtime_error_t *err = wasmtime_module_new(engine, wasm, n, &module);
  if (err != NULL)
    return err;
  err = wasmtime_module_serialize(module, out);
  wasmtime_module_delete(module);
  return err;
}

static size_t kinds(const wasm_valtype_vec_t *types, wasm_valkind_t *out) {
  for (size_t i = 0; i < types->size && i < MT_MAX_TYPES; i++)
    out[i] = wasm_valtype_kind(types->data[i]);
  return types->size;
}

void mt_import_at(const wasm_importtype_vec_t *imports, size_t i, mt_import *out) {
  const wasm_importtype_t *im = imports->data[i];
  const wasm_name_t *module = wasm_importtype_module(im), *name = wasm_importtype_name(im);
  const wasm_externtype_t *type = wasm_importtype_type(im);
  memset(out, 0, sizeof *out);
  out->module = module->data;
  out->module_len = module->size;
  out->name = name->data;
  out->name_len = name->size;
  out->is_func = wasm_externtype_kind(type) == MT_WASM_EXTERN_FUNC;
  if (out->is_func) {
    const wasm_functype_t *func = wasm_externtype_as_functype_const(type);
    out->nparams = kinds(wasm_functype_params(func), out->params);
    out->nresults = kinds(wasm_functype_results(func), out->results);
  }
}

int mt_export_at(const wasm_exporttype_vec_t *exports, size_t i, const char **name, size_t *len) {
  const wasm_exporttype_t *ex = exports->data[i];
  *name = wasm_exporttype_name(ex)->data;
  *len = wasm_exporttype_name(ex)->size;
  return wasm_externtype_kind(wasm_exporttype_type(ex));
}

// The epoch moves when some run is to stop; every other run goes on.
static wasmtime_error_t *on_epoch(wasmtime_context_t *ctx, void *env, uint64_t *delta,
                                  wasmtime_update_deadline_kind_t *kind) {
  (void)ctx;
  mt_run *run = env;
  if (atomic_load(&run->stop))
    return wasmtime_error_new("interrupted");
  *delta = 1;
  *kind = MT_UPDATE_DEADLINE_CONTINUE;
  return NULL;
}

mt_run *mt_run_new(wasm_engine_t *engine, uintptr_t handle, size_t memory_limit,
                   int64_t table_elements, size_t nimports) {
  mt_run *run = calloc(1, sizeof *run);
  if (run == NULL)
    return NULL;
  run->funcs = calloc(nimports + 1, sizeof *run->funcs);
  run->imports = calloc(nimports + 1, sizeof *run->imports);
  if (run->funcs == NULL || run->imports == NULL) {
    free(run->funcs);
    free(run->imports);
    free(run);
    return NULL;
  }
  run->handle = handle;
  run->engine = engine;
  run->memory_limit = memory_limit;
  run->nimports = nimports;
  run->store = wasmtime_store_new(engine, NULL, NULL);
  run->ctx = wasmtime_store_context(run->store);
  // Bytes of memory are counted above; one instance, one memory, two tables.
  wasmtime_store_limiter(run->store, -1, table_elements, 1, 2, 1);
  wasmtime_store_epoch_deadline_callback(run->store, on_epoch, run, NULL);
  wasmtime_context_set_epoch_deadline(run->ctx, 1);
  return run;
}

wasmtime_error_t *mt_run_wasi(mt_run *run, wasi_config_t *config) {
  wasmtime_error_t *err = wasmtime_context_set_wasi(run->ctx, config);
  if (err != NULL)
    return err;
  run->linker = wasmtime_linker_new(run->engine);
  return wasmtime_linker_define_wasi(run->linker);
}

uint8_t *mt_run_memory(mt_run *run, size_t *size) {
  *size = 0;
  if (!run->has_memory)
    return NULL;
  *size = wasmtime_memory_data_size(run->ctx, &run->memory);
  return wasmtime_memory_data(run->ctx, &run->memory);
}

static wasm_trap_t *on_call(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values,
                            size_t n) {
  struct mt_func *func = env;
  mt_run *run = func->run;
  run->ctx = wasmtime_caller_context(caller);
  wasmtime_extern_t memory;
  // A start function may call before there is an instance to ask.
  if (!run->has_memory && wasmtime_caller_export_get(caller, "memory", 6, &memory) &&
      memory.kind == WASMTIME_EXTERN_MEMORY) {
    run->memory = memory.of.memory;
    run->has_memory = 1;
  }
  size_t size;
  uint8_t *base = mt_run_memory(run, &size);
  if (goHostCall(run->handle, func->number, values, n, base, size) == 0)
    return NULL;
  static const char text[] = "trap raised by the host";
  return wasmtime_trap_new(text, sizeof text - 1);
}

void mt_run_import_host(mt_run *run, const wasm_importtype_vec_t *imports, size_t i, int number) {
  const wasm_externtype_t *type = wasm_importtype_type(imports->data[i]);
  run->funcs[i].run = run;
  run->funcs[i].number = number;
  run->imports[i].kind = WASMTIME_EXTERN_FUNC;
  wasmtime_func_new_unchecked(run->ctx, wasm_externtype_as_functype_const(type), on_call,
                              &run->funcs[i], NULL, &run->imports[i].of.func);
}

int mt_run_import_wasi(mt_run *run, const wasm_importtype_vec_t *imports, size_t i) {
  const wasm_name_t *module = wasm_importtype_module(imports->data[i]);
  const wasm_name_t *name = wasm_importtype_name(imports->data[i]);
  return run->linker != NULL && wasmtime_linker_get(run->linker, run->ctx, module->data, module->size,
                                                    name->data, name->size, &run->imports[i]);
}

static char *copy(const char *data, size_t n) {
  char *out = malloc(n + 1);
  if (out != NULL && n > 0)
    memcpy(out, data, n);
  return out;
}

char *mt_error_text(wasmtime_error_t *err, size_t *n) {
  wasm_name_t text = {0};
  wasmtime_error_message(err, &text);
  wasmtime_error_delete(err);
  char *out = copy(text.data, text.size);
  *n = out != NULL ? text.size : 0;
  wasm_byte_vec_delete(&text);
  return out;
}

// describe takes a trap or an error apart and deletes it; 0 if there is none.
static int describe(wasm_trap_t *trap, wasmtime_error_t *err, mt_failure *out) {
  memset(out, 0, sizeof *out);
  out->code = -1;
  if (trap == NULL && err == NULL)
    return 0;
  wasm_frame_vec_t frames = {0};
  if (trap != NULL)
    wasm_trap_trace(trap, &frames);
  else
    wasmtime_error_wasm_trace(err, &frames);
  if (frames.size > 0) {
    out->has_frame = 1;
    out->func_index = wasm_frame_func_index(frames.data[0]);
    const wasm_name_t *name = wasmtime_frame_func_name(frames.data[0]);
    if (name != NULL) {
      out->func_name = copy(name->data, name->size);
      out->func_name_len = out->func_name != NULL ? name->size : 0;
    }
  }
  wasm_frame_vec_delete(&frames);
  if (trap != NULL) {
    wasmtime_trap_code_t code;
    if (wasmtime_trap_code(trap, &code))
      out->code = code;
    wasm_byte_vec_t text = {0};
    wasm_trap_message(trap, &text);
    size_t n = text.size > 0 ? text.size - 1 : 0; // ends in a NUL
    out->message = copy(text.data, n);
    out->message_len = out->message != NULL ? n : 0;
    wasm_byte_vec_delete(&text);
    wasm_trap_delete(trap);
  } else {
    out->message = mt_error_text(err, &out->message_len);
  }
  return 1;
}

int mt_run_instantiate(mt_run *run, wasmtime_module_t *module, mt_failure *failure) {
  wasm_trap_t *trap = NULL;
  run->ctx = wasmtime_store_context(run->store);
  instantiating = run;
  wasmtime_error_t *err = wasmtime_instance_new(run->ctx, module, run->imports, run->nimports,
                                                &run->instance, &trap);
  instantiating = NULL;
  run->ctx = wasmtime_store_context(run->store);
  if (describe(trap, err, failure))
    return -1;
  wasmtime_extern_t memory;
  if (!run->has_memory && wasmtime_instance_export_get(run->ctx, &run->instance, "memory", 6, &memory) &&
      memory.kind == WASMTIME_EXTERN_MEMORY) {
    run->memory = memory.of.memory;
    run->has_memory = 1;
  }
  return 0;
}

// Calls an exported function with at most one i32 parameter and result. Returns
// 1 when it is not exported, -1 on a failure.
int mt_run_call(mt_run *run, const char *name, size_t len, const int32_t *arg, int32_t *result,
                mt_failure *failure) {
  wasmtime_extern_t func;
  memset(failure, 0, sizeof *failure);
  if (!wasmtime_instance_export_get(run->ctx, &run->instance, name, len, &func) ||
      func.kind != WASMTIME_EXTERN_FUNC)
    return 1;
  wasmtime_val_t in = {.kind = WASMTIME_I32}, out = {.kind = WASMTIME_I32};
  if (arg != NULL)
    in.of.i32 = *arg;
  wasm_trap_t *trap = NULL;
  wasmtime_context_t *ctx = run->ctx;
  wasmtime_error_t *err = wasmtime_func_call(ctx, &func.of.func, &in, arg != NULL, &out,
                                             result != NULL, &trap);
  run->ctx = ctx;
  if (describe(trap, err, failure))
    return -1;
  if (result != NULL)
    *result = out.of.i32;
  return 0;
}

int mt_run_global(mt_run *run, const char *name, size_t len, int64_t *value) {
  wasmtime_extern_t global;
  if (!wasmtime_instance_export_get(run->ctx, &run->instance, name, len, &global) ||
      global.kind != WASMTIME_EXTERN_GLOBAL)
    return 0;
  wasmtime_val_t v = {0};
  wasmtime_global_get(run->ctx, &global.of.global, &v);
  switch (v.kind) {
  case WASMTIME_I32:
    *value = v.of.i32;
    return 1;
  case WASMTIME_I64:
    *value = v.of.i64;
    return 1;
  }
  return 0;
}

void mt_run_stop(mt_run *run) {
  atomic_store(&run->stop, 1);
  wasmtime_engine_increment_epoch(run->engine);
}

size_t mt_run_memory_used(mt_run *run) { return run->memory_used; }

int mt_run_refused(mt_run *run) { return atomic_load(&run->refused); }

void mt_run_delete(mt_run *run) {
  if (run->linker != NULL)
    wasmtime_linker_delete(run->linker);
  wasmtime_store_delete(run->store);
  free(run->funcs);
  free(run->imports);
  free(run);
}

static ptrdiff_t write_out(void *env, const unsigned char *data, size_t n) {
  return goWrite((uintptr_t)env, 1, (void *)data, n);
}

static ptrdiff_t write_err(void *env, const unsigned char *data, size_t n) {
  return goWrite((uintptr_t)env, 2, (void *)data, n);
}

void mt_wasi_outputs(wasi_config_t *config, uintptr_t handle, int custom_out, int custom_err) {
  if (custom_out)
    wasi_config_set_stdout_custom(config, write_out, (void *)handle, NULL);
  else
    wasi_config_inherit_stdout(config);
  if (custom_err)
    wasi_config_set_stderr_custom(config, write_err, (void *)handle, NULL);
  else
    wasi_config_inherit_stderr(config);
}
