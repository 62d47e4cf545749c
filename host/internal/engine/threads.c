// Threads of the engine's making. Its WASI does what may block on a thread of a
// pool, and makes a new one whenever none is idle at that very moment: a guest
// that does nothing else has a dozen soon, and could have hundreds. The container
// has few, and the one that Go cannot make ends the host. So the engine's are
// bounded; refused another one, the pool goes on with those it has.

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "engine.h"

_Thread_local int mt_in_engine;

static atomic_int engine_threads, most_threads = 1;

void mt_limit_threads(int most) { atomic_store(&most_threads, most); }

int mt_engine_threads(void) { return atomic_load(&engine_threads); }

struct beginning {
  void *(*start)(void *);
  void *arg;
};

static void *begin(void *p) {
  struct beginning b = *(struct beginning *)p;
  free(p);
  mt_in_engine = 1;
  void *result = b.start(b.arg);
  atomic_fetch_sub(&engine_threads, 1);
  return result;
}

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

// The linker puts this in the place of pthread_create (see engine.go).
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                          void *arg) {
  if (!mt_in_engine)
    return __real_pthread_create(thread, attr, start, arg);
  struct beginning *b = malloc(sizeof *b);
  if (b == NULL)
    return EAGAIN;
  b->start = start;
  b->arg = arg;
  int err = EAGAIN;
  if (atomic_fetch_add(&engine_threads, 1) < atomic_load(&most_threads))
    err = __real_pthread_create(thread, attr, begin, b);
  if (err != 0) {
    atomic_fetch_sub(&engine_threads, 1);
    free(b);
  }
  return err;
}
