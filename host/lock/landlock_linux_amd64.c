// O_PATH and the like.
#define _GNU_SOURCE

#include "landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// Landlock binds the thread that asks for it and those that it starts later. So
// this runs as a constructor, before Go's runtime makes its first thread. It
// uses the stack alone.

// The kernel's interface (linux/landlock.h), which many build machines' headers
// do not have yet in this form.
enum {
  CREATE_RULESET = 444,
  ADD_RULE = 445,
  RESTRICT_SELF = 446,
  CREATE_RULESET_VERSION = 1,
  RULE_PATH_BENEATH = 1,
  OPENAT2 = 437,
};

struct ruleset_attr {
  uint64_t handled_fs, handled_net, scoped;
};

struct path_attr {
  uint64_t allowed;
  int32_t parent;
} __attribute__((packed));

struct how {
  uint64_t flags, mode, resolve;
};

#define RESOLVE_NO_LINKS (0x02 | 0x04) // neither magic nor symbolic ones

#define FS_EXECUTE (1ULL << 0)
#define FS_WRITE_FILE (1ULL << 1)
#define FS_READ_FILE (1ULL << 2)
#define FS_READ_DIR (1ULL << 3)
#define FS_REMOVE_DIR (1ULL << 4)
#define FS_REMOVE_FILE (1ULL << 5)
#define FS_MAKE_DIR (1ULL << 7)
#define FS_MAKE_REG (1ULL << 8)
#define FS_MAKE_SYM (1ULL << 12)
#define FS_REFER (1ULL << 13)
#define FS_TRUNCATE (1ULL << 14)

#define NET_BIND (1ULL << 0)
#define NET_CONNECT (1ULL << 1)

#define SCOPE_ALL 3ULL // abstract sockets and signals

// What may be said of a file that is no directory.
#define FS_OF_FILES (FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE)

#define READ (FS_READ_FILE | FS_READ_DIR)
#define WRITE                                                                                      \
  (READ | FS_WRITE_FILE | FS_TRUNCATE | FS_REMOVE_DIR | FS_REMOVE_FILE | FS_MAKE_DIR |            \
   FS_MAKE_REG | FS_MAKE_SYM | FS_REFER)
#define EXECUTE (READ | FS_EXECUTE)

mt_lock mt_locked;

// What each version of Landlock can hold: one right more a version, mostly.
static uint64_t handled_fs(int abi) {
  int rights = abi >= 5 ? 16 : abi >= 3 ? 15 : abi >= 2 ? 14 : 13;
  return (1ULL << rights) - 1;
}

static void fail(const char *on) {
  if (mt_locked.failed_errno != 0)
    return;
  mt_locked.failed_errno = errno;
  mt_locked.failed_on = on;
}

// add adds a rule for an open file.
static int add(int ruleset, uint64_t handled, int fd, uint64_t rights) {
  struct stat st;
  if (fd < 0 || fstat(fd, &st) != 0)
    return -1;
  if (!S_ISDIR(st.st_mode))
    rights &= FS_OF_FILES;
  struct path_attr attr = {.allowed = rights & handled, .parent = fd};
  return (int)syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, &attr, 0);
}

// allow opens one path without following a link: one grant's place can lie in
// another's, where guests make links.
static int allow(int ruleset, uint64_t handled, const char *path, uint64_t rights) {
  struct how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_LINKS};
  int fd = (int)syscall(OPENAT2, AT_FDCWD, path, &how, sizeof how);
  int result = add(ruleset, handled, fd, rights);
  int err = errno;
  if (fd >= 0)
    close(fd);
  errno = err;
  return result;
}

// allow_kernel_file lets a file of the kernel's be read that this process can do
// without. The descriptor stays open: the kernel knows the file by an inode that
// it would otherwise make anew.
static void allow_kernel_file(int ruleset, uint64_t handled, const char *path) {
  add(ruleset, handled, open(path, O_PATH | O_CLOEXEC), FS_READ_FILE);
}

static uint64_t rights_of(const char *arg, const char **path) {
  static const struct {
    const char *word;
    uint64_t rights;
  } words[] = {{"read=", READ}, {"write=", WRITE}, {"execute=", EXECUTE}};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    size_t n = strlen(words[i].word);
    if (strncmp(arg, words[i].word, n) == 0) {
      *path = arg + n;
      return words[i].rights;
    }
  }
  return 0;
}

static void enter_landlock(char **rules) {
  int abi = (int)syscall(CREATE_RULESET, NULL, 0, CREATE_RULESET_VERSION);
  if (abi < 1) {
    mt_locked.abi_errno = abi < 0 ? errno : ENOSYS;
    return;
  }
  mt_locked.abi = abi;
  struct ruleset_attr attr = {.handled_fs = handled_fs(abi)};
  // A program that the host starts (a plugin) inherits this and has a network of
  // its own kind: then the filter alone holds the host back.
  uint64_t net = NET_BIND | NET_CONNECT;
  int listens = 0;
  for (char **r = rules; *r != NULL; r++) {
    if (strcmp(*r, "dial") == 0)
      net &= ~NET_CONNECT;
    else if (strcmp(*r, "listen") == 0)
      net &= ~NET_BIND, listens = 1;
    else if (strncmp(*r, "execute=", 8) == 0)
      net = 0;
  }
  if (abi >= 4)
    attr.handled_net = net;
  if (abi >= 6)
    attr.scoped = SCOPE_ALL;
  int ruleset = (int)syscall(CREATE_RULESET, &attr, sizeof attr, 0);
  if (ruleset < 0) {
    fail("the ruleset");
    return;
  }
  for (char **r = rules; *r != NULL; r++) {
    const char *path = NULL;
    uint64_t rights = rights_of(*r, &path);
    if (rights != 0 && allow(ruleset, attr.handled_fs, path, rights) != 0)
      fail(path);
  }
  // Go opens it in the place of a stream that is closed; where it is not there, or
  // is a link, that fails.
  allow(ruleset, attr.handled_fs, "/dev/null", FS_READ_FILE | FS_WRITE_FILE);
  // The C library reads the main thread's map of memory when Go starts, Go how
  // many connections may wait when it listens.
  allow_kernel_file(ruleset, attr.handled_fs, "/proc/self/maps");
  if (listens)
    allow_kernel_file(ruleset, attr.handled_fs, "/proc/sys/net/core/somaxconn");
  if (syscall(RESTRICT_SELF, ruleset, 0) != 0)
    fail("the process");
  close(ruleset);
}

// The command line is PROGRAM run --document PATH lock RULE…, word for word.
__attribute__((constructor)) static void lock_before_go(int argc, char **argv) {
  if (argc < 5 || strcmp(argv[1], "run") != 0 || strcmp(argv[2], "--document") != 0 ||
      strcmp(argv[4], "lock") != 0)
    return;
  mt_locked.asked = 1;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
    fail("no_new_privs");
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
    fail("dumpable");
  enter_landlock(argv + 5);
}
