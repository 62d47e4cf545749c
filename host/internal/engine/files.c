// WASI's reading and writing of regular files, which are what guests call most:
// straight between the file and the guest's memory. Everything else, and all that
// goes wrong, is Go's.
#include "engine.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

// A system call moves no more than this, so that the end of a run waits no longer.
static const size_t MOST = (size_t)8 << 20;

enum {
  BATCH = 64,        // buffers of one system call
  MAX_VECTORS = 1024 // buffers of one call of the guest's
};

// inside returns the n bytes of the guest's memory at ptr, NULL out of range.
static uint8_t *inside(mt_run *run, uint32_t ptr, uint64_t n) {
  if (run->memory == NULL || ptr + n > run->memory->size)
    return NULL;
  return run->memory->base + ptr;
}

// vectors are the buffers that a call of the guest's names: n pairs of a pointer
// and a length. What is read may overwrite them, so that each is checked when it is
// used.
struct vectors {
  mt_run *run;
  const uint8_t *list;
  uint32_t n;
};

static uint8_t *vector(const struct vectors *v, uint32_t i, size_t *n) {
  uint32_t pair[2];
  memcpy(pair, v->list + (size_t)i * sizeof pair, sizeof pair);
  *n = pair[1];
  return inside(v->run, pair[0], pair[1]);
}

// vectors_at finds the buffers; 0 if one of them, or the list, is out of range.
static int vectors_at(mt_run *run, uint32_t ptr, uint32_t n, struct vectors *v) {
  *v = (struct vectors){run, inside(run, ptr, (uint64_t)n * 8), n};
  if (v->list == NULL || n > MAX_VECTORS)
    return 0;
  size_t len;
  for (uint32_t i = 0; i < n; i++)
    if (vector(v, i, &len) == NULL)
      return 0;
  return 1;
}

// place is where the next byte of the buffers goes to or comes from.
struct place {
  uint32_t i;
  size_t pos;
};

// gather lists buffers from the place on, no more than room bytes, and moves it
// behind them. It returns how many there are.
static int gather(const struct vectors *v, struct place *at, size_t room, struct iovec *out, size_t *bytes) {
  int count = 0;
  *bytes = 0;
  while (at->i < v->n && count < BATCH && room > 0) {
    size_t n;
    uint8_t *base = vector(v, at->i, &n);
    if (base == NULL || n < at->pos)
      break;
    n -= at->pos;
    base += at->pos;
    if (n > room) {
      n = room;
      at->pos += n;
    } else {
      at->i++;
      at->pos = 0;
    }
    if (n == 0)
      continue;
    out[count++] = (struct iovec){base, n};
    room -= n;
    *bytes += n;
  }
  return count;
}

static ssize_t move(int fd, int kind, const struct iovec *batch, int n, off_t offset) {
  switch (kind) {
  case MT_FD_READ:
    return readv(fd, batch, n);
  case MT_FD_WRITE:
    return writev(fd, batch, n);
  case MT_FD_PREAD:
    return preadv(fd, batch, n, offset);
  default:
    return pwritev(fd, batch, n, offset);
  }
}

// transfer reads or writes; -1 when nothing was moved and the system says why.
static int64_t transfer(const struct vectors *v, int fd, int kind, off_t offset) {
  struct iovec batch[BATCH];
  struct place at = {0, 0};
  mt_run *run = v->run;
  int64_t done = 0;
  while (!atomic_load_explicit(&run->stop, memory_order_relaxed)) {
    // A count must fit into the result.
    size_t bytes, room = (size_t)(INT32_MAX - done);
    struct place next = at;
    int n = gather(v, &next, room < MOST ? room : MOST, batch, &bytes);
    if (n == 0)
      break;
    ssize_t moved = move(fd, kind, batch, n, offset + done);
    if (moved < 0 && errno == EINTR)
      continue;
    if (moved < 0) {
      if (done > 0)
        break; // it comes again
      run->io_error = errno;
      return -1;
    }
    done += moved;
    at = next;
    if ((size_t)moved < bytes)
      break;
  }
  if (done == 0 && atomic_load(&run->stop)) {
    run->io_error = EINTR; // nothing moved is not the end of the file
    return -1;
  }
  return done;
}

static int serve_transfer(mt_run *run, int fd, int kind, wasmtime_val_raw_t *values) {
  int positioned = kind == MT_FD_PREAD || kind == MT_FD_PWRITE;
  off_t offset = positioned ? values[3].i64 : 0;
  struct vectors v;
  uint32_t result = (uint32_t)values[positioned ? 4 : 3].i32;
  if (inside(run, result, 4) == NULL || offset < 0 || offset > INT64_MAX - INT32_MAX ||
      !vectors_at(run, (uint32_t)values[1].i32, (uint32_t)values[2].i32, &v))
    return 0;
  int64_t done = transfer(&v, fd, kind, offset);
  if (done < 0)
    return 0;
  uint32_t count = (uint32_t)done;
  memcpy(run->memory->base + result, &count, sizeof count);
  return 1;
}

static int serve_position(mt_run *run, int fd, int kind, wasmtime_val_raw_t *values) {
  int64_t offset = 0;
  uint32_t whence = 1, result = (uint32_t)values[1].i32;
  if (kind == MT_FD_SEEK) {
    offset = values[1].i64;
    whence = (uint32_t)values[2].i32;
    result = (uint32_t)values[3].i32;
  }
  static const int whences[] = {SEEK_SET, SEEK_CUR, SEEK_END};
  if (whence >= 3 || inside(run, result, 8) == NULL)
    return 0;
  int64_t now = lseek(fd, offset, whences[whence]);
  if (now < 0) {
    run->io_error = errno;
    return 0;
  }
  memcpy(run->memory->base + result, &now, sizeof now);
  return 1;
}

// mt_serve_file serves a call for a regular file; 0 leaves it to Go, which finds
// in io_error what the system said, if it said anything.
int mt_serve_file(mt_run *run, int kind, wasmtime_val_raw_t *values) {
  uint32_t number = (uint32_t)values[0].i32;
  if (number >= MT_FILES || run->files[number].may == 0)
    return 0;
  const struct mt_file *f = &run->files[number];
  int ok;
  switch (kind) {
  case MT_FD_READ:
  case MT_FD_PREAD:
    ok = f->may & MT_MAY_READ && serve_transfer(run, f->fd, kind, values);
    break;
  case MT_FD_WRITE:
  case MT_FD_PWRITE:
    ok = f->may & MT_MAY_WRITE && serve_transfer(run, f->fd, kind, values);
    break;
  default:
    ok = serve_position(run, f->fd, kind, values);
  }
  if (ok)
    values[0].i32 = 0; // WASI's success
  return ok;
}
