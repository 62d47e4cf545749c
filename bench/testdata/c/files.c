// Reads files, changes every byte and writes them again: 64 files of 1 MiB, from
// the directory "in" to the directory "out" of the one that is given (WASI's
// first preopen) or that the program is started in.
#include <stddef.h>
#include <stdint.h>

#ifndef BLOCK
#define BLOCK (1 << 20) // a file whole
#endif
enum { FILES = 64 };
static uint8_t block[BLOCK];

#ifdef __wasm__
#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))
struct vec {
  void *p;
  uint32_t n;
};
WASI(path_open)
int32_t wasi_path_open(int32_t dir, int32_t lookup, const char *path, uint32_t n, int32_t oflags,
                       uint64_t rights, uint64_t inheriting, int32_t flags, int32_t *fd);
WASI(fd_read) int32_t wasi_fd_read(int32_t fd, const struct vec *v, uint32_t n, uint32_t *done);
WASI(fd_write) int32_t wasi_fd_write(int32_t fd, const struct vec *v, uint32_t n, uint32_t *done);
WASI(fd_close) int32_t wasi_fd_close(int32_t fd);
WASI(proc_exit) _Noreturn void wasi_proc_exit(int32_t status);

static _Noreturn void fail(void) { wasi_proc_exit(1); }
static int open_file(const char *path, size_t n, int writing) {
  int32_t fd;
  // Rights: fd_read 2, fd_write 64; flags: create 1 and truncate 8.
  if (wasi_path_open(3, 0, path, n, writing ? 1 | 8 : 0, writing ? 64 : 2, 0, 0, &fd) != 0)
    fail();
  return fd;
}
static size_t read_file(int fd, void *p, size_t n) {
  struct vec v = {p, n};
  uint32_t done;
  if (wasi_fd_read(fd, &v, 1, &done) != 0)
    fail();
  return done;
}
static void write_file(int fd, void *p, size_t n) {
  struct vec v = {p, n};
  uint32_t done;
  if (wasi_fd_write(fd, &v, 1, &done) != 0 || done != n)
    fail();
}
static void close_file(int fd) {
  if (wasi_fd_close(fd) != 0)
    fail();
}
#define MAIN __attribute__((export_name("_start"))) void _start(void)
#define END
#else
#include <fcntl.h>
#include <unistd.h>
static _Noreturn void fail(void) { _exit(1); }
static int open_file(const char *path, size_t n, int writing) {
  (void)n;
  int fd = writing ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644) : open(path, O_RDONLY);
  if (fd < 0)
    fail();
  return fd;
}
static size_t read_file(int fd, void *p, size_t n) {
  ssize_t done = read(fd, p, n);
  if (done < 0)
    fail();
  return done;
}
static void write_file(int fd, void *p, size_t n) {
  if (write(fd, p, n) != (ssize_t)n)
    fail();
}
static void close_file(int fd) {
  if (close(fd) != 0)
    fail();
}
#define MAIN int main(void)
#define END return 0
#endif

MAIN {
  char in[] = "in/00", out[] = "out/00";
  uint64_t sum = 0;
  for (int i = 0; i < FILES; i++) {
    in[3] = out[4] = '0' + i / 10;
    in[4] = out[5] = '0' + i % 10;
    int from = open_file(in, sizeof in - 1, 0), to = open_file(out, sizeof out - 1, 1);
    for (size_t n; (n = read_file(from, block, BLOCK)) > 0;) {
      for (size_t j = 0; j < n; j++) {
        uint8_t c = block[j];
        block[j] = c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c;
        sum = sum * 31 + c;
      }
      write_file(to, block, n);
    }
    close_file(from);
    close_file(to);
  }
  char text[17];
  for (int i = 15; i >= 0; i--, sum >>= 4)
    text[i] = "0123456789abcdef"[sum & 15];
  text[16] = '\n';
  write_file(1, text, sizeof text);
  END;
}
