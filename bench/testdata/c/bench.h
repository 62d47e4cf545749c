// What the programs that are measured share. Each is one source, compiled by
// the same compiler with the same flags for wasm32 and for this machine, without
// a C library on the one side and with what start-up needs of it on the other.
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __wasm__
#define MENTAT(name) __attribute__((import_module("mentat"), import_name(#name)))
MENTAT(write_output) void mentat_write_output(const void *p, uint32_t n);
static void output(const void *p, size_t n) { mentat_write_output(p, n); }
#define MAIN(work)                                                                                 \
  __attribute__((export_name("process"))) int32_t process(void) {                                 \
    work();                                                                                        \
    return 0;                                                                                      \
  }
// Without a C library the compiler's own calls need a place to go.
void *memcpy(void *to, const void *from, size_t n) { return __builtin_memcpy(to, from, n); }
void *memset(void *to, int c, size_t n) { return __builtin_memset(to, c, n); }
#else
#include <string.h>
#include <unistd.h>
static void output(const void *p, size_t n) {
  if (write(1, p, n) != (ssize_t)n)
    _exit(1);
}
#define MAIN(work)                                                                                 \
  int main(void) {                                                                                 \
    work();                                                                                        \
    return 0;                                                                                      \
  }
#endif

// A small generator: both sides must see the same data.
static uint64_t bench_state = 0x9e3779b97f4a7c15u;
static inline uint32_t bench_random(void) {
  bench_state = bench_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(bench_state >> 32);
}

// answer prints what came out, so that nothing is left out by the compiler and
// the two sides can be held against each other.
static void answer(uint64_t v) {
  char text[17];
  for (int i = 15; i >= 0; i--, v >>= 4)
    text[i] = "0123456789abcdef"[v & 15];
  text[16] = '\n';
  output(text, sizeof text);
}

#endif
