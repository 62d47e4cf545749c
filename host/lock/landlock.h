// What the constructor did before Go started.
#ifndef MENTAT_LOCK_H
#define MENTAT_LOCK_H

typedef struct mt_lock {
  int asked;        // the command line has a lock
  int abi;          // Landlock's version, 0 without Landlock
  int abi_errno;    // why there is none
  int failed_errno; // why the lock is not as it was asked for, 0 if it is
  const char *failed_on;
} mt_lock;

extern mt_lock mt_locked;

#endif
