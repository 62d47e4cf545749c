package process

/*
#define _GNU_SOURCE
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)

// What the thread works on lies in one page with the code that it runs.
struct settling {
	struct timespec delay;
	struct {
		void *begin;
		size_t len;
	} ranges[16]; // up to one without a length
	char code[128];
};

// Sleeps, drops each range and ends its thread, by the kernel alone.
__asm__(".pushsection .text\n"
        "settle_code:\n"
        "  mov %rdi, %rbx\n"
        "  xor %esi, %esi\n"
        "  mov $35, %eax\n" // nanosleep
        "  syscall\n"
        "  lea 16(%rbx), %r12\n"
        "1: mov 8(%r12), %rsi\n"
        "  test %rsi, %rsi\n"
        "  jz 2f\n"
        "  mov (%r12), %rdi\n"
        "  mov $4, %edx\n" // MADV_DONTNEED
        "  mov $28, %eax\n" // madvise
        "  syscall\n"
        "  add $16, %r12\n"
        "  jmp 1b\n"
        "2: xor %edi, %edi\n"
        "  mov $60, %eax\n" // exit
        "  syscall\n"
        "settle_code_end:\n"
        ".popsection\n");
extern const char settle_code[], settle_code_end[];

static int collect(struct dl_phdr_info *info, size_t size, void *to) {
	(void)size;
	struct settling *s = to;
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	size_t n = 0;
	for (int i = 0; i < info->dlpi_phnum && n + 1 < sizeof s->ranges / sizeof *s->ranges; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type != PT_LOAD || (p->p_flags & PF_W) != 0)
			continue;
		uintptr_t begin = (info->dlpi_addr + p->p_vaddr) & ~(page - 1);
		uintptr_t end = (info->dlpi_addr + p->p_vaddr + p->p_memsz + page - 1) & ~(page - 1);
		s->ranges[n].begin = (void *)begin;
		s->ranges[n++].len = end - begin;
	}
	return 1; // the program itself comes first and is all
}

static void settle(void) {
	size_t len = settle_code_end - settle_code;
	struct settling *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s == MAP_FAILED)
		return;
	// Short runs are over before, and none is slowed down.
	s->delay.tv_nsec = 300 * 1000 * 1000;
	dl_iterate_phdr(collect, s);
	sigset_t all, before;
	sigfillset(&all);
	pthread_attr_t attr;
	pthread_t thread;
	if (len > sizeof s->code || memcpy(s->code, settle_code, len) == NULL ||
	    mprotect(s, sizeof *s, PROT_READ | PROT_EXEC) != 0 || pthread_attr_init(&attr) != 0)
		return;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN + 64 * 1024);
	// Signals are the Go runtime's.
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_create(&thread, &attr, (void *(*)(void *))(void *)s->code, s); // without it nothing is lost but memory
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
}

#else

static void settle(void) {}

#endif
*/
import "C"

// settle unmaps, a little later, the program's own unchanged pages. Starting maps
// 10 MB of them, which would count as this process's for as long as it idles;
// what is still in use comes back from the page cache. A thread of C's does it,
// for the Go scheduler would map half of it again to wake up and go to sleep; and
// it runs a few instructions in a page of their own, for a single one of the
// program's brings back the whole piece of the page cache that it lies in, which
// may be 2 MB.
func settle() { C.settle() }
