// Multiplies two matrices of doubles as a textbook does, ten times.
#include "bench.h"

enum { N = 384, ROUNDS = 10 };
static double a[N][N], b[N][N], c[N][N];

static void work(void) {
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      a[i][j] = bench_random() % 1000;
      b[i][j] = bench_random() % 1000;
    }
  for (int round = 0; round < ROUNDS; round++)
    for (int i = 0; i < N; i++)
      for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int k = 0; k < N; k++)
          sum += a[i][k] * b[k][j];
        c[i][j] += sum;
      }
  uint64_t sum = 0;
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++)
      sum = sum * 31 + (uint64_t)c[i][j];
  answer(sum);
}
MAIN(work)
