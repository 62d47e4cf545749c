// Quicksort and heapsort of two million numbers.
#include "bench.h"

enum { N = 2000000 };
static uint32_t data[N], copy[N];

static void quick(uint32_t *v, size_t n) {
  while (n > 16) {
    uint32_t pivot = v[n / 2];
    size_t i = 0, j = n - 1;
    for (;;) {
      while (v[i] < pivot)
        i++;
      while (v[j] > pivot)
        j--;
      if (i >= j)
        break;
      uint32_t t = v[i];
      v[i++] = v[j];
      v[j--] = t;
    }
    size_t left = j + 1;
    if (left < n - left) {
      quick(v, left);
      v += left;
      n -= left;
    } else {
      quick(v + left, n - left);
      n = left;
    }
  }
  for (size_t i = 1; i < n; i++) {
    uint32_t x = v[i];
    size_t j = i;
    for (; j > 0 && v[j - 1] > x; j--)
      v[j] = v[j - 1];
    v[j] = x;
  }
}

static void sift(uint32_t *v, size_t at, size_t n) {
  uint32_t x = v[at];
  for (size_t child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && v[child + 1] > v[child])
      child++;
    if (v[child] <= x)
      break;
    v[at] = v[child];
  }
  v[at] = x;
}

static void heap(uint32_t *v, size_t n) {
  for (size_t i = n / 2; i-- > 0;)
    sift(v, i, n);
  for (size_t i = n; i-- > 1;) {
    uint32_t x = v[0];
    v[0] = v[i];
    v[i] = x;
    sift(v, 0, i);
  }
}

static void work(void) {
  for (size_t i = 0; i < N; i++)
    data[i] = copy[i] = bench_random();
  quick(data, N);
  heap(copy, N);
  uint64_t sum = 0, same = 0;
  for (size_t i = 0; i < N; i++) {
    sum = sum * 31 + data[i];
    same += data[i] == copy[i];
  }
  answer(same == N ? sum : 0);
}
MAIN(work)
