// What the served agent does for a request: it counts the words of its input.
#include <stdint.h>

#define MENTAT(name) __attribute__((import_module("mentat"), import_name(#name)))
MENTAT(read_input) int32_t read_input(void);
MENTAT(read) int32_t read_handle(int32_t handle, void *p, int32_t size);
MENTAT(write_output) void write_output(const void *p, uint32_t n);

static char input[64 << 10], text[64];

static char *put(char *to, const char *s) {
  while (*s)
    *to++ = *s++;
  return to;
}

static char *put_number(char *to, uint32_t n) {
  char digits[10];
  int i = 0;
  do
    digits[i++] = '0' + n % 10;
  while (n /= 10);
  while (i > 0)
    *to++ = digits[--i];
  return to;
}

__attribute__((export_name("process"))) int32_t process(void) {
  uint32_t words = 0, bytes = 0;
  int inside = 0;
  read_input();
  for (int32_t n; (n = read_handle(0, input, sizeof input)) > 0; bytes += n)
    for (int32_t i = 0; i < n; i++) {
      int space = input[i] == ' ' || input[i] == '\n';
      words += !space && !inside;
      inside = !space;
    }
  char *end = put_number(put(text, "{\"words\":"), words);
  end = put_number(put(end, ",\"bytes\":"), bytes);
  end = put(end, "}\n");
  write_output(text, end - text);
  return 0;
}
