// The simple task: count words and letters of a text, again and again.
#include "bench.h"

enum { SIZE = 1 << 20, ROUNDS = 200 };
static uint8_t text[SIZE];

static void work(void) {
  for (size_t i = 0; i < SIZE; i++) {
    uint32_t r = bench_random();
    text[i] = r % 6 == 0 ? ' ' : 'a' + r / 6 % 26;
  }
  uint64_t words = 0, sum = 0;
  uint32_t letters[26] = {0};
  for (int round = 0; round < ROUNDS; round++) {
    int inside = 0;
    for (size_t i = 0; i < SIZE; i++) {
      uint8_t c = text[i];
      if (c == ' ') {
        inside = 0;
        continue;
      }
      words += !inside;
      inside = 1;
      letters[c - 'a']++;
    }
  }
  for (int i = 0; i < 26; i++)
    sum = sum * 31 + letters[i];
  answer(words ^ sum);
}
MAIN(work)
