package process

/*
#define _GNU_SOURCE
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static struct {
	void *begin;
	size_t len;
} code;

static int drop(struct dl_phdr_info *info, size_t size, void *unused) {
	(void)size, (void)unused;
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type != PT_LOAD || (p->p_flags & PF_W) != 0)
			continue;
		uintptr_t begin = (info->dlpi_addr + p->p_vaddr) & ~(page - 1);
		uintptr_t end = (info->dlpi_addr + p->p_vaddr + p->p_memsz + page - 1) & ~(page - 1);
		if ((p->p_flags & PF_X) != 0) {
			code.begin = (void *)begin;
			code.len = end - begin;
		}
		madvise((void *)begin, end - begin, MADV_DONTNEED);
	}
	return 1; // the program itself comes first and is all
}

__attribute__((noinline)) static void drop_later(void) {
	// Short runs are over before, and none is slowed down.
	struct timespec t = {.tv_nsec = 300 * 1000 * 1000};
	nanosleep(&t, NULL);
	dl_iterate_phdr(drop, NULL);
}

static void *settled(void *unused) {
	(void)unused;
	drop_later();
	// This code came back by that, and with it the whole unit of the page cache that
	// it lies in, which may be 2 MB. So it goes once more, by a call in the place of
	// the return: what comes back then is the C library's, with little around it.
	void *(*last)(void *, size_t, int) = (void *(*)(void *, size_t, int))madvise;
	return last(code.begin, code.len, MADV_DONTNEED);
}

static void settle(void) {
	sigset_t all, before;
	sigfillset(&all);
	pthread_attr_t attr;
	pthread_t thread;
	if (pthread_attr_init(&attr) != 0)
		return;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN + 64 * 1024);
	// Signals are the Go runtime's.
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_create(&thread, &attr, settled, NULL); // without it nothing is lost but memory
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
}
*/
import "C"

// settle unmaps, a little later, the program's own unchanged pages. Starting maps
// 10 MB of them, which would count as this process's for as long as it idles;
// what is still in use comes back from the page cache. A thread of C's does it,
// for the Go scheduler would map half of it again to wake up and go to sleep.
func settle() { C.settle() }
