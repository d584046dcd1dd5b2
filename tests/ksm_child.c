// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_child.c - other processes, which execute calls. See ksm_child.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_child.h"
#include "ksm_device.h"
#include "ksm_memory.h"
#include "ksm_program.h"

struct call {
	ksm_fn fn;
	long arg[4];
};

static bool read_all(int fd, void *buf, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t len = read(fd, (char *)buf + done, size - done);

		if (len < 0 && errno == EINTR)
			continue;
		if (len <= 0)
			return false;
		done += len;
	}
	return true;
}

static void __attribute__((noreturn)) serve(int calls, int answers)
{
	struct call call;
	long result = 0;

	/*
	 * The first answer is to nothing. The pipe keeps the page that it takes, so those that
	 * follow need no memory, which a full cgroup has none of: who sends by a socket there is
	 * killed for it.
	 */
	while (write(answers, &result, sizeof(result)) == sizeof(result) &&
	       read_all(calls, &call, sizeof(call)))
		result = call.fn(call.arg[0], call.arg[1], call.arg[2], call.arg[3]);
	_exit(0);
}

void ksm_spawn(struct ksm_child *c)
{
	pid_t parent = getpid();
	int calls[2], answers[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, calls))
		ksm_die("socketpair: %s", strerror(errno));
	if (pipe2(answers, O_CLOEXEC))
		ksm_die("pipe: %s", strerror(errno));
	fflush(stdout);
	fflush(stderr);
	c->pid = fork();
	if (c->pid < 0)
		ksm_die("fork: %s", strerror(errno));
	if (!c->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		close(calls[0]);
		close(answers[0]);
		serve(calls[1], answers[1]);
	}
	close(calls[1]);
	close(answers[1]);
	c->calls = calls[0];
	c->answers = answers[0];
	ksm_call_finish(c);
}

void ksm_call_start(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e)
{
	struct call call = { .fn = fn, .arg = { a, b, d, e } };

	if (write(c->calls, &call, sizeof(call)) != sizeof(call))
		ksm_die("helper process %d is gone; see the kernel log", c->pid);
}

long ksm_call_finish(struct ksm_child *c)
{
	long result;

	if (!read_all(c->answers, &result, sizeof(result)))
		ksm_die("helper process %d died at work; see the kernel log", c->pid);
	return result;
}

long ksm_call4(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e)
{
	ksm_call_start(c, fn, a, b, d, e);
	return ksm_call_finish(c);
}

static int reap(struct ksm_child *c)
{
	int status = -1;

	while (waitpid(c->pid, &status, 0) < 0) {
		if (errno != EINTR)
			ksm_die("waitpid(%d): %s", c->pid, strerror(errno));
	}
	c->pid = -1;
	return status;
}

int ksm_end(struct ksm_child *c)
{
	/*
	 * Children made later hold a copy of this fd, so close() alone would not
	 * give the child its end of file.
	 */
	shutdown(c->calls, SHUT_RDWR);
	close(c->calls);
	close(c->answers);
	return reap(c);
}

int ksm_kill(struct ksm_child *c)
{
	kill(c->pid, SIGKILL);
	close(c->calls);
	close(c->answers);
	return reap(c);
}

long ksm_fn_fill(long addr, long npages, long seed, long unused)
{
	(void)unused;
	ksm_fill((void *)addr, npages, seed);
	return 0;
}

long ksm_fn_fill_same(long addr, long npages, long seed, long unused)
{
	(void)unused;
	ksm_fill_same((void *)addr, npages, seed);
	return 0;
}

long ksm_fn_wrong(long addr, long npages, long seed, long unused)
{
	(void)unused;
	return ksm_wrong((void *)addr, npages, seed);
}

long ksm_fn_wrong_same(long addr, long npages, long seed, long unused)
{
	(void)unused;
	return ksm_wrong_same((void *)addr, npages, seed);
}

long ksm_fn_zero(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	/* Not zero first, so that each page gets a frame of its own. */
	memset((void *)addr, 1, npages * PGSZ);
	memset((void *)addr, 0, npages * PGSZ);
	return 0;
}

long ksm_fn_wrong_zero(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_wrong_zero((void *)addr, npages);
}

long ksm_fn_register(long area, long addr, long npages, long unused)
{
	(void)unused;
	return ksm_register(area, (void *)addr, npages);
}

long ksm_fn_merge_range(long area, long addr, long npages, long unused)
{
	uint64_t merged = 0;
	long ret = ksm_merge_range(area, (void *)addr, npages, &merged);

	(void)unused;
	return ret ? ret : (long)merged;
}

long ksm_fn_unmerge(long area, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return ksm_unmerge(area);
}

long ksm_fn_area_register(long dev, long addr, long npages, long unused)
{
	int area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA), ret;

	(void)unused;
	if (area < 0)
		return -errno;
	ret = ksm_register(area, (void *)addr, npages);
	if (ret) {
		close(area);
		return ret;
	}
	return area;
}

long ksm_fn_close(long fd, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return close(fd) ? -errno : 0;
}

long ksm_fn_scan(long scan, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_scan(scan, npages);
}

long ksm_fn_become(long uid, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return ksm_become(uid);
}
