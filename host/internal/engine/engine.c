#include "engine.h"

#include <pthread.h>
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

// Memories that were used are kept for runs to come, up to so many and so many
// bytes. None is used again before it is zero. What is small is overwritten and
// keeps its pages: to get new ones costs many times as much. All else is given
// back to the system.
static struct {
  pthread_mutex_t lock; // guards all of it
  struct mt_memory *first;
  size_t count, bytes;
  size_t most, most_bytes;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

// What is kept of one memory.
static const size_t OVERWRITTEN = 2 << 20;

// The run that instantiates on this thread: the creator belongs to the engine
// and is not told for whom a memory is.
static _Thread_local mt_run *instantiating;

// in_use is what all runs' memories have together.
static _Atomic size_t in_use;

size_t mt_memory_in_use(void) { return atomic_load(&in_use); }

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
  if (size > m->opened) {
    if (mprotect(m->base + m->opened, size - m->opened, PROT_READ | PROT_WRITE) != 0)
      return refuse(run, "the system has no memory left");
    m->opened = size;
  }
  m->size = size;
  run->memory_used += more;
  atomic_fetch_add(&in_use, more);
  return NULL;
}

static void memory_unmap(struct mt_memory *m) {
  munmap(m->map, m->map_size);
  free(m);
}

// Zeroes a memory, keeping the pages of its first bytes; 0 if that cannot be.
static int memory_clean(struct mt_memory *m, size_t kept) {
  m->kept = kept;
  memset(m->base, 0, kept);
  return m->opened == kept || madvise(m->base + kept, m->opened - kept, MADV_DONTNEED) == 0;
}

// Takes a place for a memory in the pool; 0 if there is none. kept is how much of
// it may keep its pages.
static int pool_reserve(size_t opened, size_t *kept) {
  pthread_mutex_lock(&pool.lock);
  int room = pool.count < pool.most;
  if (room) {
    size_t left = pool.bytes < pool.most_bytes ? pool.most_bytes - pool.bytes : 0;
    *kept = opened < OVERWRITTEN ? opened : OVERWRITTEN;
    if (*kept > left)
      *kept = 0;
    pool.count++;
    pool.bytes += *kept;
  }
  pthread_mutex_unlock(&pool.lock);
  return room;
}

static void pool_add(struct mt_memory *m) {
  pthread_mutex_lock(&pool.lock);
  m->next = pool.first;
  pool.first = m;
  pthread_mutex_unlock(&pool.lock);
}

static void pool_forget(size_t kept) {
  pthread_mutex_lock(&pool.lock);
  pool.count--;
  pool.bytes -= kept;
  pthread_mutex_unlock(&pool.lock);
}

static struct mt_memory *pool_take(void) {
  pthread_mutex_lock(&pool.lock);
  struct mt_memory *m = pool.first;
  if (m != NULL) {
    pool.first = m->next;
    pool.count--;
    pool.bytes -= m->kept;
  }
  pthread_mutex_unlock(&pool.lock);
  return m;
}

static void memory_free(void *env) {
  struct mt_memory *m = env;
  m->run->memory_used -= m->size;
  atomic_fetch_sub(&in_use, m->size);
  m->run->memory = NULL;
  m->run = NULL;
  m->size = 0;
  size_t kept;
  if (!pool_reserve(m->opened, &kept)) {
    memory_unmap(m);
  } else if (!memory_clean(m, kept)) {
    pool_forget(kept);
    memory_unmap(m);
  } else {
    pool_add(m);
  }
}

// Sets how many memories and bytes of them are kept, and frees those that are
// more.
void mt_engine_keep(size_t memories, size_t bytes) {
  pthread_mutex_lock(&pool.lock);
  pool.most = memories;
  pool.most_bytes = bytes;
  int over = pool.count > memories || pool.bytes > bytes;
  pthread_mutex_unlock(&pool.lock);
  for (struct mt_memory *m; over && (m = pool_take()) != NULL;)
    memory_unmap(m);
}

// Takes a memory out of the pool that fits and of which no more than minimum is
// open: what a guest does not have is out of its reach.
static struct mt_memory *memory_kept(size_t minimum, size_t map_size, size_t reserved) {
  struct mt_memory *m = pool_take();
  if (m == NULL)
    return NULL;
  if (m->map_size == map_size && m->capacity == reserved) {
    if (m->opened <= minimum)
      return m;
    if (mprotect(m->base + minimum, m->opened - minimum, PROT_NONE) == 0) {
      m->opened = minimum;
      return m;
    }
  }
  memory_unmap(m);
  return NULL;
}

static struct mt_memory *memory_map(size_t map_size, size_t reserved, size_t guard) {
  struct mt_memory *m = calloc(1, sizeof *m);
  if (m == NULL)
    return NULL;
  m->map_size = map_size;
  m->map = mmap(NULL, map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m->map == MAP_FAILED) {
    free(m);
    return NULL;
  }
  m->base = m->map + guard;
  m->capacity = reserved;
  return m;
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
  size_t map_size = guard + reserved + guard;
  struct mt_memory *m = memory_kept(minimum, map_size, reserved);
  if (m == NULL)
    m = memory_map(map_size, reserved, guard);
  if (m == NULL)
    return refuse(run, "no address space for a memory");
  m->run = run;
  run->memory = m;
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

static wasm_trap_t *on_call(void *, wasmtime_caller_t *, wasmtime_val_raw_t *, size_t);

mt_program *mt_program_new(wasm_engine_t *engine, wasmtime_module_t *module,
                           const wasm_importtype_vec_t *imports, int32_t abi_version) {
  mt_program *p = calloc(1, sizeof *p);
  if (p == NULL)
    return NULL;
  p->funcs = calloc(imports->size + 1, sizeof *p->funcs);
  if (p->funcs == NULL) {
    free(p);
    return NULL;
  }
  p->engine = engine;
  p->module = module;
  p->imports = imports;
  p->abi_version = abi_version;
  p->linker = wasmtime_linker_new(engine);
  // A module may import a function twice.
  wasmtime_linker_allow_shadowing(p->linker, true);
  return p;
}

// Import i is served by the host under that number.
wasmtime_error_t *mt_program_host(mt_program *p, size_t i, int number, int kind) {
  const wasm_importtype_t *im = p->imports->data[i];
  const wasm_name_t *module = wasm_importtype_module(im), *name = wasm_importtype_name(im);
  p->funcs[i].number = number;
  p->funcs[i].kind = kind;
  return wasmtime_linker_define_func_unchecked(
      p->linker, module->data, module->size, name->data, name->size,
      wasm_externtype_as_functype_const(wasm_importtype_type(im)), on_call, &p->funcs[i], NULL);
}

// To be called when all imports are served. A linker knows a function by its name
// alone, so that a module which imports one under two types cannot be prepared.
wasmtime_error_t *mt_program_ready(mt_program *p, int named_twice) {
  if (named_twice)
    return NULL;
  return wasmtime_linker_instantiate_pre(p->linker, p->module, &p->pre);
}

void mt_program_delete(mt_program *p) {
  if (p->pre != NULL)
    wasmtime_instance_pre_delete(p->pre);
  wasmtime_linker_delete(p->linker);
  free(p->funcs);
  free(p);
}

mt_run *mt_run_new(const mt_program *program, uintptr_t handle, size_t memory_limit,
                   int64_t table_elements) {
  mt_run *run = calloc(1, sizeof *run);
  if (run == NULL)
    return NULL;
  run->handle = handle;
  run->program = program;
  run->memory_limit = memory_limit;
  run->store = wasmtime_store_new(program->engine, run, NULL);
  run->ctx = wasmtime_store_context(run->store);
  // Bytes of memory are counted above; one instance, one memory, two tables.
  wasmtime_store_limiter(run->store, -1, table_elements, 1, 2, 1);
  wasmtime_store_epoch_deadline_callback(run->store, on_epoch, run, NULL);
  wasmtime_context_set_epoch_deadline(run->ctx, 1);
  return run;
}

uint8_t *mt_run_memory(mt_run *run, size_t *size) {
  // A module has one memory at most, and it is exported.
  *size = run->memory != NULL ? run->memory->size : 0;
  return run->memory != NULL ? run->memory->base : NULL;
}

static int serve_read(mt_run *run, wasmtime_val_raw_t *values) {
  struct mt_window *w = &run->window;
  uint32_t ptr = (uint32_t)values[1].i32, cap = (uint32_t)values[2].i32;
  size_t n = w->end - w->pos;
  if (w->data == NULL || values[0].i32 != w->handle || n == 0 || cap == 0 ||
      run->memory == NULL || (uint64_t)ptr + cap > run->memory->size)
    return 0;
  if (n > cap)
    n = cap;
  memcpy(run->memory->base + ptr, w->data + w->pos, n);
  w->pos += n;
  values[0].i32 = (int32_t)n;
  return 1;
}

// fast serves what needs nothing of Go: 0 leaves it to [goHostCall], as it does
// with all that fails.
static int fast(mt_run *run, int kind, wasmtime_val_raw_t *values) {
  if (kind == MT_VERSION) {
    values[0].i32 = run->program->abi_version;
    return 1;
  }
  return kind == MT_READ ? serve_read(run, values) : mt_serve_file(run, kind, values);
}

static wasm_trap_t *on_call(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values,
                            size_t n) {
  const struct mt_func *func = env;
  wasmtime_context_t *ctx = wasmtime_caller_context(caller);
  mt_run *run = wasmtime_context_get_data(ctx);
  // A run that is over gets no more of the host.
  if (func->kind != MT_OTHER && !atomic_load_explicit(&run->stop, memory_order_relaxed) &&
      fast(run, func->kind, values))
    return NULL;
  run->ctx = ctx;
  size_t size;
  uint8_t *base = mt_run_memory(run, &size);
  int trapped = goHostCall(run->handle, func->number, values, n, base, size);
  if (trapped == 0)
    return NULL;
  static const char text[] = "trap raised by the host";
  return wasmtime_trap_new(text, sizeof text - 1);
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

// instantiate_each makes the instance of a module that could not be prepared, out
// of functions of its own store.
static wasmtime_error_t *instantiate_each(mt_run *run, wasm_trap_t **trap) {
  const mt_program *p = run->program;
  size_t n = p->imports->size;
  wasmtime_extern_t *externs = calloc(n + 1, sizeof *externs);
  if (externs == NULL)
    return wasmtime_error_new("the system has no memory left");
  for (size_t i = 0; i < n; i++) {
    const wasm_importtype_t *im = p->imports->data[i];
    externs[i].kind = WASMTIME_EXTERN_FUNC;
    wasmtime_func_new_unchecked(run->ctx, wasm_externtype_as_functype_const(wasm_importtype_type(im)),
                                on_call, &p->funcs[i], NULL, &externs[i].of.func);
  }
  wasmtime_error_t *err =
      wasmtime_instance_new(run->ctx, p->module, externs, n, &run->instance, trap);
  free(externs);
  return err;
}

int mt_run_instantiate(mt_run *run, mt_failure *failure) {
  wasm_trap_t *trap = NULL;
  const mt_program *p = run->program;
  run->ctx = wasmtime_store_context(run->store);
  instantiating = run;
  wasmtime_error_t *err =
      p->pre != NULL ? wasmtime_instance_pre_instantiate(p->pre, run->ctx, &run->instance, &trap)
                     : instantiate_each(run, &trap);
  instantiating = NULL;
  run->ctx = wasmtime_store_context(run->store);
  if (describe(trap, err, failure))
    return -1;
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
  wasmtime_engine_increment_epoch(run->program->engine);
}

size_t mt_run_memory_used(mt_run *run) { return run->memory_used; }

int mt_run_refused(mt_run *run) { return atomic_load(&run->refused); }

void mt_run_delete(mt_run *run) {
  wasmtime_store_delete(run->store);
  free(run);
}
