// SPDX-License-Identifier: GPL-2.0-only
/*
 * preload-fake.so - a /dev/ksm for where there is none, to be preloaded
 *
 * Takes the place of open(), ioctl() and close() for all libraries and the program. It knows
 * what a process has registered, and refuses what overlaps; as in the driver, that is nothing
 * in the child of a fork. The descriptors that it gives are real ones. With FAKE_LOG=FILE it
 * writes down what it is asked for, with FAKE_ERRNO=N the device cannot be opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm.h"
#include "preload-fake.h"

#define MAX_AREAS 1024

/* Threads may have tables of their own, so a number means something only in one. */
static struct area {
	pid_t pid, tid;
	int fd;
	struct ksm_memory_region region;
} areas[MAX_AREAS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int real_open(const char *path, int flags, int mode)
{
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* What the driver would not need: a filter can tell it from what the program does. */
static long own_call(long nr, long a, long b, long c, long d)
{
	return syscall(nr, a, b, c, d, 0, FAKE_CALL);
}

static int own_open(const char *path, int flags)
{
	return own_call(SYS_openat, AT_FDCWD, (long)path, flags, 0600);
}

static pid_t own_pid(void)
{
	return own_call(SYS_getpid, 0, 0, 0, 0);
}

static pid_t own_tid(void)
{
	return own_call(SYS_gettid, 0, 0, 0, 0);
}

/* The logs of several processes stay lines: each is one write to a file that is appended to. */
static void note(const char *what, const struct ksm_memory_region *region)
{
	const char *name = getenv("FAKE_LOG");
	char line[128];
	int fd, n;

	if (!name)
		return;
	n = snprintf(line, sizeof(line), "%d %s %#llx %llu\n", own_pid(), what,
		     (unsigned long long)region->addr, (unsigned long long)region->npages);
	fd = own_open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
	if (own_call(SYS_write, fd, (long)line, n, 0) != n)
		abort();
	own_call(SYS_close, fd, 0, 0, 0);
}

static struct area *find(int fd)
{
	pid_t pid = own_pid(), tid = own_tid();
	int i;

	for (i = 0; i < MAX_AREAS; i++)
		if (areas[i].pid == pid && areas[i].tid == tid && areas[i].fd == fd)
			return &areas[i];
	return NULL;
}

static int create(void)
{
	pid_t pid = own_pid();
	int i, fd;

	for (i = 0; i < MAX_AREAS; i++) {
		if (areas[i].pid == pid)
			continue;
		fd = own_open("/dev/null", O_RDWR);
		if (fd >= 0)
			areas[i] = (struct area) { .pid = pid, .tid = own_tid(), .fd = fd };
		return fd;
	}
	errno = ENFILE;
	return -1;
}

static int overlaps(const struct ksm_memory_region *a, const struct ksm_memory_region *b)
{
	return a->addr < b->addr + b->npages * 4096 && b->addr < a->addr + a->npages * 4096;
}

static int add(struct area *area, const struct ksm_memory_region *region)
{
	pid_t pid = own_pid();
	int i;

	for (i = 0; i < MAX_AREAS; i++) {
		if (areas[i].pid == pid && overlaps(&areas[i].region, region)) {
			errno = EEXIST;
			return -1;
		}
	}
	area->region = *region;
	note("register", region);
	return 0;
}

int open(const char *path, int flags, ...)
{
	const char *refuse = getenv("FAKE_ERRNO");
	va_list ap;
	int mode;

	va_start(ap, flags);
	mode = flags & O_CREAT ? va_arg(ap, int) : 0;
	va_end(ap);
	if (strcmp(path, "/dev/ksm"))
		return real_open(path, flags, mode);
	if (!refuse)
		return real_open("/dev/null", flags, 0);
	errno = atoi(refuse);
	return -1;
}

int close(int fd)
{
	struct area *area;

	pthread_mutex_lock(&lock);
	area = find(fd);
	if (area)
		area->pid = 0;
	pthread_mutex_unlock(&lock);
	return syscall(SYS_close, fd);
}

int ioctl(int fd, unsigned long request, ...)
{
	struct area *area;
	int ret = -1;
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (_IOC_TYPE(request) != KSMIO)
		return syscall(SYS_ioctl, fd, request, arg);
	if (request == KSM_GET_API_VERSION)
		return KSM_API_VERSION;
	pthread_mutex_lock(&lock);
	area = find(fd);
	if (request == KSM_CREATE_SHARED_MEMORY_AREA) {
		ret = create();
	} else if (!area || own_call(SYS_fcntl, fd, F_GETFD, 0, 0) < 0) {
		errno = EBADF;
	} else if (request == KSM_REGISTER_MEMORY_REGION) {
		ret = add(area, arg);
	} else if (request == KSM_UNMERGE) {
		note("unmerge", &area->region);
		ret = 0;
	} else {
		errno = ENOTTY;
	}
	pthread_mutex_unlock(&lock);
	return ret;
}
