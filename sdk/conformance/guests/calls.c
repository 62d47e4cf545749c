// The guest of the conformance suite in C: it reads a script and makes the calls
// that it names. README.md has the script's form.
//
//   clang --target=wasm32 -O2 -nostdlib -Wl,--no-entry -Wl,--strip-all calls.c -o calls-c.wasm

typedef unsigned char byte;
typedef unsigned int word;

#define MENTAT(name) __attribute__((import_module("mentat"), import_name(name)))

MENTAT("abi_version") int mt_abi_version(void);
MENTAT("read_input") int mt_read_input(void);
MENTAT("read") int mt_read(int, int, int);
MENTAT("size") long long mt_size(int);
MENTAT("close") int mt_close(int);
MENTAT("write_output") int mt_write_output(int, int);
MENTAT("write_output") void mt_write_output_void(int, int);
MENTAT("set_error") int mt_set_error(int, int, int);
MENTAT("last_error") int mt_last_error(void);
MENTAT("log") void mt_log(int, int);
MENTAT("log") void mt_log_level(int, int, int);
MENTAT("start_stream") int mt_start_stream(int, int);
MENTAT("write_stream") int mt_write_stream(int, int, int);
MENTAT("end_stream") int mt_end_stream(int, int);
MENTAT("download_media") int mt_download_media(int, int);
MENTAT("upload_media") int mt_upload_media(int, int, int, int);
MENTAT("record_metric") int mt_record_metric(int, int, int, double, int, int);
MENTAT("request_capability") int mt_request_capability(int, int, int, int);
MENTAT("invoke_capability") int mt_invoke_capability(int, int, int, int, int);
MENTAT("get_config") int mt_get_config(int, int);

static byte script[1 << 19], scratch[4096];
static int results[1024];
static const byte *at = script;
static int calls;

static word take(int n) {
  word v = 0;
  for (int i = 0; i < n; i++)
    v |= (word)*at++ << (8 * i);
  return v;
}

// An argument: a value, bytes of the script, scratch, or an earlier result.
static int arg(void) {
  switch (take(1)) {
  case 1:
    return (int)(script + take(4));
  case 2:
    return (int)scratch;
  case 3:
    return results[take(4)];
  }
  return (int)take(4);
}

static double argf(void) {
  union {
    word half[2];
    double all;
  } v;
  take(1);
  v.half[0] = take(4);
  v.half[1] = take(4);
  return v.all;
}

// Says what a call gave: '#' and 16 digits, or '#' alone.
static void gave(long long v) {
  char line[17] = "#";
  results[calls++] = (int)v;
  for (int i = 16; i > 0; i--, v >>= 4)
    line[i] = "0123456789abcdef"[v & 15];
  mt_log_level(0, (int)line, sizeof line);
}

static void gave_nothing(void) {
  calls++;
  mt_log_level(0, (int)"#", 1);
}

static int digit(byte c) { return c < 58 ? c - 48 : c - 87; }

// Reads the script and turns its digits into bytes, in place.
static void load(void) {
  static const char key[] = "conformance.script";
  int h = mt_get_config((int)key, sizeof key - 1), n, end = 0;
  while ((n = mt_read(h, (int)(script + end), sizeof script - end)) > 0)
    end += n;
  mt_close(h);
  for (int i = 0; i < end; i += 2)
    script[i / 2] = digit(script[i]) << 4 | digit(script[i + 1]);
}

__attribute__((export_name("process"))) int process(void) {
  int a, b, c, d, e;
  double f;
  load();
  for (;;) {
    switch (take(1)) {
    case 255:
      return (int)take(4);
    case 254:
      mt_write_output_void((int)scratch, results[calls - 1]);
      break;
    case 0:
      gave(mt_abi_version());
      break;
    case 1:
      gave(mt_read_input());
      break;
    case 2:
      a = arg(), b = arg(), c = arg();
      gave(mt_read(a, b, c));
      break;
    case 3:
      a = arg();
      gave(mt_size(a));
      break;
    case 4:
      a = arg();
      gave(mt_close(a));
      break;
    case 5:
      a = arg(), b = arg();
      gave(mt_write_output(a, b));
      break;
    case 6:
      a = arg(), b = arg();
      mt_write_output_void(a, b);
      gave_nothing();
      break;
    case 7:
      a = arg(), b = arg(), c = arg();
      gave(mt_set_error(a, b, c));
      break;
    case 8:
      gave(mt_last_error());
      break;
    case 9:
      a = arg(), b = arg();
      mt_log(a, b);
      gave_nothing();
      break;
    case 10:
      a = arg(), b = arg(), c = arg();
      mt_log_level(a, b, c);
      gave_nothing();
      break;
    case 11:
      a = arg(), b = arg();
      gave(mt_start_stream(a, b));
      break;
    case 12:
      a = arg(), b = arg(), c = arg();
      gave(mt_write_stream(a, b, c));
      break;
    case 13:
      a = arg(), b = arg();
      gave(mt_end_stream(a, b));
      break;
    case 14:
      a = arg(), b = arg();
      gave(mt_download_media(a, b));
      break;
    case 15:
      a = arg(), b = arg(), c = arg(), d = arg();
      gave(mt_upload_media(a, b, c, d));
      break;
    case 16:
      a = arg(), b = arg(), c = arg(), f = argf(), d = arg(), e = arg();
      gave(mt_record_metric(a, b, c, f, d, e));
      break;
    case 17:
      a = arg(), b = arg(), c = arg(), d = arg();
      gave(mt_request_capability(a, b, c, d));
      break;
    case 18:
      a = arg(), b = arg(), c = arg(), d = arg(), e = arg();
      gave(mt_invoke_capability(a, b, c, d, e));
      break;
    case 19:
      a = arg(), b = arg();
      gave(mt_get_config(a, b));
      break;
    default:
      __builtin_trap(); // an operation that it does not know
    }
  }
}

__attribute__((export_name("_start"))) void _start(void) { process(); }
