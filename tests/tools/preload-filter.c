// SPDX-License-Identifier: GPL-2.0-only
/*
 * preload-filter - libksm-preload where system calls are forbidden
 *
 *	preload-filter no-close_range COMMAND...	close_range() is refused
 *	preload-filter no-scanner COMMAND...		the kernel has no scanner of its own
 *	preload-filter sandbox				this program forbids itself all it can
 *
 * The last is for LIBKSM_AUTO=1. It allows what libksm-preload(7) says must be, for all its threads,
 * and what it does itself after that: it prints the address of 32 MiB, makes memory of them, and waits
 * to be killed. What preload-fake.so does in the place of the driver is allowed, too.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload-fake.h"

#define SIZE (32ul << 20)

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
/* Pass over the next statement, or the next @n, unless it is @value. */
#define IF(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1)
#define IF_DO(value, n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, n)
#define ALLOW(name) IF(SYS_##name), RETURN(SECCOMP_RET_ALLOW)

static void forbid(struct sock_filter *code, unsigned short length, unsigned int flags)
{
	struct sock_fprog program = { .len = length, .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program)) {
		perror("preload-filter: seccomp");
		_exit(125);
	}
}

static void no_close_range(void)
{
	struct sock_filter code[] = {
		LOAD(nr),
		IF(SYS_close_range),
		RETURN(SECCOMP_RET_ERRNO | ENOSYS),
		RETURN(SECCOMP_RET_ALLOW),
	};

	forbid(code, sizeof(code) / sizeof(*code), 0);
}

static void no_scanner(void)
{
	struct sock_filter code[] = {
		LOAD(nr),
		IF_DO(SYS_madvise, 5),
		LOAD(args[2]),
		IF(MADV_MERGEABLE),
		RETURN(SECCOMP_RET_ERRNO | EINVAL),
		IF(MADV_UNMERGEABLE),
		RETURN(SECCOMP_RET_ERRNO | EINVAL),
		RETURN(SECCOMP_RET_ALLOW),
	};

	forbid(code, sizeof(code) / sizeof(*code), 0);
}

static void __attribute__((noreturn)) sandbox(void)
{
	struct sock_filter code[] = {
		LOAD(args[5]),
		IF(FAKE_CALL),
		RETURN(SECCOMP_RET_ALLOW),
		LOAD(nr),
		/* libksm-preload's */
		ALLOW(read), ALLOW(lseek), ALLOW(futex), ALLOW(ioctl), ALLOW(close), ALLOW(clock_gettime),
		/* ours */
		ALLOW(mprotect), ALLOW(rt_sigsuspend),
		RETURN(SECCOMP_RET_KILL_PROCESS),
	};
	sigset_t none;
	char *map;

	map = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED) {
		perror("preload-filter: mmap");
		_exit(125);
	}
	printf("%p\n", (void *)map);
	fflush(stdout);
	sigemptyset(&none);
	forbid(code, sizeof(code) / sizeof(*code), SECCOMP_FILTER_FLAG_TSYNC);
	mprotect(map, SIZE, PROT_READ | PROT_WRITE);
	for (;;)
		sigsuspend(&none);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "sandbox"))
		sandbox();
	if (argc > 2 && !strcmp(argv[1], "no-close_range"))
		no_close_range();
	else if (argc > 2 && !strcmp(argv[1], "no-scanner"))
		no_scanner();
	else
		return 125;
	execv(argv[2], argv + 2);
	perror("preload-filter: execv");
	return 125;
}
