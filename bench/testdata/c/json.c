// Reads a JSON text into a tree, adds up its numbers and strings, and writes it
// again, many times.
#include "bench.h"

enum { SIZE = 1 << 20, NODES = 1 << 18, ROUNDS = 100 };
static char text[SIZE], again[SIZE];
static size_t length, written;

enum kind { OBJECT, ARRAY, STRING, NUMBER, WORD };
struct node {
  enum kind kind;
  uint32_t next, child; // indexes of nodes, 0 for none
  uint32_t at, size;    // of a string or word, in text
  double number;
};
static struct node nodes[NODES];
static uint32_t used;

static void put(const char *s) {
  while (*s)
    text[length++] = *s++;
}

static void put_number(uint32_t n) {
  char digits[10];
  int i = 0;
  do
    digits[i++] = '0' + n % 10;
  while (n /= 10);
  while (i > 0)
    text[length++] = digits[--i];
}

static void generate(void) {
  put("[");
  while (length < SIZE - 1024) {
    if (length > 1)
      put(",");
    put("{\"id\":");
    put_number(bench_random() % 100000);
    put(",\"name\":\"agent ");
    for (uint32_t i = 4 + bench_random() % 12; i > 0; i--)
      text[length++] = 'a' + bench_random() % 26;
    put("\",\"score\":");
    put_number(bench_random() % 1000);
    put(".");
    put_number(bench_random() % 1000);
    put(",\"tags\":[\"x\",\"a \\\"quoted\\\" one\",null,true],\"nested\":{\"k\":[1,2,3]}}");
  }
  put("]");
}

static const char *p;

static void space(void) {
  while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')
    p++;
}

static uint32_t value(void);

static uint32_t string(void) {
  uint32_t n = ++used;
  nodes[n].kind = STRING;
  nodes[n].at = ++p - text;
  while (*p != '"')
    p += *p == '\\' ? 2 : 1;
  nodes[n].size = p++ - text - nodes[n].at;
  return n;
}

static uint32_t number(void) {
  uint32_t n = ++used;
  double v = 0, scale = 1;
  while (*p >= '0' && *p <= '9')
    v = v * 10 + (*p++ - '0');
  if (*p == '.')
    for (p++; *p >= '0' && *p <= '9'; p++)
      v += (*p - '0') * (scale /= 10);
  nodes[n].kind = NUMBER;
  nodes[n].number = v;
  return n;
}

static uint32_t list(enum kind kind, char end) {
  uint32_t n = ++used, *to = &nodes[n].child;
  nodes[n].kind = kind;
  for (p++; space(), *p != end;) {
    if (*p == ',') {
      p++;
      space();
    }
    *to = value();
    to = &nodes[*to].next;
    space();
    if (kind == OBJECT && *p == ':') {
      p++;
      space();
      *to = value();
      to = &nodes[*to].next;
    }
  }
  p++;
  return n;
}

static uint32_t value(void) {
  space();
  switch (*p) {
  case '{':
    return list(OBJECT, '}');
  case '[':
    return list(ARRAY, ']');
  case '"':
    return string();
  }
  if (*p >= '0' && *p <= '9')
    return number();
  uint32_t n = ++used;
  nodes[n].kind = WORD;
  nodes[n].at = p - text;
  while (*p >= 'a' && *p <= 'z')
    p++;
  nodes[n].size = p - text - nodes[n].at;
  return n;
}

static void write_number(double v) {
  uint64_t whole = (uint64_t)v;
  char digits[20];
  int i = 0;
  uint64_t part = (uint64_t)((v - whole) * 1000 + 0.5);
  do
    digits[i++] = '0' + whole % 10;
  while (whole /= 10);
  while (i > 0)
    again[written++] = digits[--i];
  if (part > 0) {
    again[written++] = '.';
    for (uint64_t scale = 100; scale > 0; scale /= 10)
      again[written++] = '0' + part / scale % 10;
  }
}

static void write_node(uint32_t n) {
  const struct node *v = &nodes[n];
  switch (v->kind) {
  case NUMBER:
    write_number(v->number);
    return;
  case STRING:
    again[written++] = '"';
    for (uint32_t i = 0; i < v->size; i++)
      again[written++] = text[v->at + i];
    again[written++] = '"';
    return;
  case WORD:
    for (uint32_t i = 0; i < v->size; i++)
      again[written++] = text[v->at + i];
    return;
  default:
    again[written++] = v->kind == OBJECT ? '{' : '[';
    int i = 0;
    for (uint32_t c = v->child; c != 0; c = nodes[c].next, i++) {
      if (i > 0)
        again[written++] = v->kind == OBJECT && i % 2 == 1 ? ':' : ',';
      write_node(c);
    }
    again[written++] = v->kind == OBJECT ? '}' : ']';
  }
}

static void work(void) {
  generate();
  uint64_t sum = 0;
  for (int round = 0; round < ROUNDS; round++) {
    for (uint32_t i = 1; i <= used; i++)
      nodes[i] = (struct node){0};
    used = 0;
    written = 0;
    p = text;
    write_node(value());
    for (size_t i = 0; i < written; i++)
      sum = sum * 31 + (uint8_t)again[i];
  }
  answer(sum);
}
MAIN(work)
