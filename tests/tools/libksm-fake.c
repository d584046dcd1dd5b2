// SPDX-License-Identifier: GPL-2.0-only
/*
 * libksm-fake - libksm against a kernel that the test plays
 *
 * The linker's --wrap puts our open(), ioctl() and close() in place of the C
 * library's. The descriptors that the fake kernel hands out are real ones (of
 * /dev/null), so that leaks, close-on-exec and fork() can be looked at.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm.h"
#include "libksm.h"

int __real_open(const char *path, int flags, ...);
int __real_close(int fd);
int __wrap_open(const char *path, int flags, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_close(int fd);

enum call { NONE, OPEN, VERSION, CREATE, REGISTER, REMOVE, UNMERGE, MERGE, PACE };

/* What the fake kernel does next, and what it saw last. */
static enum call fail_call;
static int fail_errno;
static int version = KSM_API_VERSION;
static int open_flags;
static struct ksm_memory_region region;
static struct ksm_merge_range range;
static struct ksm_pace pace = { .cpu_percent = 7, .threads = 3 };
static int removes, unmerges;
static int last_area, last_removed, last_unmerged, last_merged;

static int failures;

static void check(int good, const char *what)
{
	printf("%s - libksm against a fake kernel: %s\n", good ? "ok" : "not ok", what);
	if (!good)
		failures++;
}

/* The only files that the fake kernel knows are areas are of /dev/null. */
static int is_area(int fd)
{
	struct stat null, file;

	if (fstat(fd, &file))
		return 0;
	errno = ENOTTY;
	return !stat("/dev/null", &null) && file.st_rdev == null.st_rdev;
}

static int result(enum call call, int ret)
{
	if (fail_call != call)
		return ret;
	errno = fail_errno;
	return -1;
}

int __wrap_open(const char *path, int flags, ...)
{
	if (strcmp(path, "/dev/ksm"))
		abort();
	open_flags = flags;
	if (fail_call == OPEN)
		return result(OPEN, 0);
	return __real_open("/dev/null", flags);
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	void *arg;
	va_list ap;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	switch (request) {
	case KSM_GET_API_VERSION:
		return result(VERSION, version);
	case KSM_CREATE_SHARED_MEMORY_AREA:
		if (fail_call == CREATE)
			return result(CREATE, 0);
		last_area = __real_open("/dev/null", O_RDWR);
		return last_area;
	case KSM_REGISTER_MEMORY_REGION:
		region = *(struct ksm_memory_region *)arg;
		return result(REGISTER, 0);
	case KSM_REMOVE_MEMORY_REGION:
		if (!is_area(fd))
			return -1;
		removes++;
		last_removed = fd;
		return result(REMOVE, 0);
	case KSM_UNMERGE:
		unmerges++;
		last_unmerged = fd;
		return result(UNMERGE, 0);
	case KSM_MERGE_RANGE:
		if (!is_area(fd))
			return -1;
		if (((struct ksm_merge_range *)arg)->size < sizeof(range)) {
			errno = EINVAL;
			return -1;
		}
		range = *(struct ksm_merge_range *)arg;
		last_merged = fd;
		/* Written whether it fails or not. */
		((struct ksm_merge_range *)arg)->merged = 42;
		return result(MERGE, 0);
	case KSM_SET_PACE:
		pace = *(struct ksm_pace *)arg;
		return result(PACE, 0);
	case KSM_GET_PACE:
		if (((struct ksm_pace *)arg)->size != sizeof(pace) || fail_call == PACE)
			return result(PACE, -1);
		*(struct ksm_pace *)arg = pace;
		return 0;
	}
	abort();
}

/* errno of what went before must survive a close(): spoil it as one may. */
int __wrap_close(int fd)
{
	int ret = __real_close(fd);

	errno = EIO;
	return ret;
}

static int count_fds(void)
{
	int fd, n = 0;

	for (fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static int fails_with(int ret, int err)
{
	return ret == -1 && errno == err;
}

static void test_rounding(char *p)
{
	static const struct {
		size_t offset, len, start, npages;
	} cases[] = {
		{ 0, 4096, 0, 1 },
		{ 0, 8191, 0, 1 },
		{ 0, 8192, 0, 2 },
		{ 1, 8191, 4096, 1 },
		{ 1, 8190 + 4096, 4096, 1 },
		{ 4095, 4097, 4096, 1 },
		{ 4095, 8192, 4096, 1 },
		{ 4095, 8193, 4096, 2 },
	};
	static const struct {
		size_t offset, len;
	} none[] = { { 0, 0 }, { 0, 4095 }, { 1, 100 }, { 1, 4095 }, { 1, 4096 }, { 1, 8190 }, { 4095, 4096 } };
	size_t i;
	int good = 1;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(&region, 0xff, sizeof(region));
		good &= !ksm_share(p + cases[i].offset, cases[i].len);
		good &= region.addr == (uintptr_t)p + cases[i].start &&
			region.npages == cases[i].npages;
		good &= !ksm_unshare(p + cases[i].offset);
	}
	check(good, "the whole pages inside the buffer are registered");

	good = 1;
	for (i = 0; i < sizeof(none) / sizeof(none[0]); i++)
		good &= fails_with(ksm_share(p + none[i].offset, none[i].len), EINVAL);
	check(good, "no whole page inside is EINVAL");

	good = !ksm_share(p, (size_t)1 << 45);
	check(good && region.npages == 1ULL << 33, "more than 2^32 pages reach the kernel as they are");
	ksm_unshare(p);
}

static void test_errors(char *p)
{
	static const struct {
		enum call call;
		int err;
		const char *what;
	} cases[] = {
		{ OPEN, ENOENT, "open() fails" },
		{ VERSION, ENOTTY, "it is another device" },
		{ CREATE, EMFILE, "no area can be created" },
		{ REGISTER, EEXIST, "the region is refused" },
	};
	int before = count_fds(), good;
	char what[100];
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fail_call = cases[i].call;
		fail_errno = cases[i].err;
		good = fails_with(ksm_share(p, 4096), cases[i].err);
		fail_call = NONE;
		good &= count_fds() == before && fails_with(ksm_unshare(p), EINVAL);
		snprintf(what, sizeof(what), "%s: errno is kept, nothing is left over", cases[i].what);
		check(good, what);
	}

	version = KSM_API_VERSION + 1;
	good = fails_with(ksm_share(p, 4096), EPROTONOSUPPORT) && count_fds() == before;
	version = KSM_API_VERSION;
	check(good, "another version is EPROTONOSUPPORT");

	ksm_share(p, 4096);
	fail_call = UNMERGE;
	fail_errno = ENOMEM;
	check(fails_with(ksm_unmerge(p), ENOMEM), "ksm_unmerge() hands ENOMEM on");
	fail_call = REMOVE;
	check(fails_with(ksm_unshare(p), ENOMEM) && count_fds() == before,
	      "ksm_unshare() hands an error on, and forgets the buffer");
	fail_call = NONE;
}

static void test_merge(char *p)
{
	unsigned long long merged = 1;
	int good;

	good = !ksm_share(p + 100, 3 * 4096) && !ksm_merge(p + 100, &merged);
	check(good && merged == 42 && last_merged == last_area &&
	      range.addr == (uintptr_t)p + 4096 && range.npages == 2 && range.flags == 0 &&
	      range.size == sizeof(range), "ksm_merge() merges the buffer's whole pages");
	check(!ksm_merge(p + 100, NULL), "ksm_merge() without a count");
	merged = 1;
	fail_call = MERGE;
	fail_errno = EINTR;
	check(fails_with(ksm_merge(p + 100, &merged), EINTR) && merged == 42,
	      "ksm_merge() hands EINTR on, and what was merged");
	check(!!strstr(ksm_hint(EINTR), "again"), "and ksm_hint() says to call it again");
	fail_call = NONE;
	check(fails_with(ksm_merge(p, &merged), EINVAL) && !merged,
	      "ksm_merge() of no buffer is EINVAL");
	ksm_unshare(p + 100);
}

static void test_pace(void)
{
	unsigned int cpu_percent = 1, threads = 1;
	int before = count_fds();

	check(!ksm_get_pace(&cpu_percent, &threads) && cpu_percent == 7 && threads == 3 &&
	      !ksm_get_pace(NULL, NULL), "ksm_get_pace()");
	check(!ksm_set_pace(50, 2) && pace.cpu_percent == 50 && pace.threads == 2 &&
	      pace.size == sizeof(pace) && !pace.flags, "ksm_set_pace()");
	fail_call = PACE;
	fail_errno = EPERM;
	check(fails_with(ksm_set_pace(50, 2), EPERM) &&
	      fails_with(ksm_get_pace(&cpu_percent, &threads), EPERM) &&
	      cpu_percent == 7 && threads == 3, "both hand an error on");
	fail_call = OPEN;
	fail_errno = ENOENT;
	check(fails_with(ksm_set_pace(50, 2), ENOENT) &&
	      fails_with(ksm_get_pace(NULL, NULL), ENOENT), "both say if there is no device");
	fail_call = NONE;
	check(count_fds() == before, "both leave nothing open");
}

static void test_fds(char *p)
{
	int before = count_fds(), a, b, good;

	good = !ksm_share(p, 4096);
	a = last_area;
	good &= !ksm_share(p + 4096, 4096);
	b = last_area;
	check(good && a != b && count_fds() == before + 2, "each buffer has one descriptor");
	check(open_flags == (O_RDWR | O_CLOEXEC) && fcntl(a, F_GETFD) == FD_CLOEXEC &&
	      fcntl(b, F_GETFD) == FD_CLOEXEC, "all are closed on exec");

	check(!ksm_unmerge(p) && last_unmerged == a &&
	      !ksm_unmerge(p + 4096) && last_unmerged == b,
	      "ksm_unmerge() takes the buffer's own area");
	check(!ksm_unshare(p) && last_removed == a && fcntl(a, F_GETFD) < 0 && fcntl(b, F_GETFD) >= 0,
	      "ksm_unshare() removes and closes the buffer's own area");
	check(fails_with(ksm_unshare(p), EINVAL), "once");
	check(!ksm_unshare(p + 4096) && count_fds() == before, "nothing is left at the end");
}

/* Run in the child of a fork; the exit status is a bit for each failure. */
static int child(char *p, int area, int before)
{
	int bad = 0;

	if (fcntl(area, F_GETFD) >= 0 || count_fds() != before)
		bad |= 1;
	removes = 0;
	unmerges = 0;
	if (!fails_with(ksm_unshare(p), EINVAL) || !fails_with(ksm_unmerge(p), EINVAL) ||
	    removes || unmerges)
		bad |= 2;
	if (ksm_share(p, 4096) || ksm_unshare(p) || removes != 1)
		bad |= 4;
	return bad;
}

static void test_fork(char *p)
{
	int before = count_fds(), area, status;
	pid_t pid;

	ksm_share(p, 4096);
	area = last_area;
	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(child(p, area, before));
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		status = 0xff00;
	status = WEXITSTATUS(status);
	check(!(status & 1), "a child does not keep the parent's descriptors");
	check(!(status & 2), "a child cannot remove what the parent registered");
	check(!(status & 4), "a child registers for itself");
	check(fcntl(area, F_GETFD) >= 0 && !ksm_unshare(p), "the parent keeps its own");
}

/* The number of an area of ours is another file's by now. */
static void test_closed(char *p)
{
	int before = count_fds(), areas[2], i, fds[2], status;
	pid_t pid;

	for (i = 0; i < 2; i++) {
		ksm_share(p + i * 4096, 4096);
		areas[i] = last_area;
	}
	if (pipe(fds) || dup2(fds[0], areas[0]) < 0 || dup2(fds[0], areas[1]) < 0)
		abort();
	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(fcntl(areas[0], F_GETFD) < 0 || fcntl(areas[1], F_GETFD) < 0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		status = -1;
	check(!status, "a child does not close a file that was opened in the place of an area");
	check(fails_with(ksm_unshare(p), ENOTTY) && fails_with(ksm_unshare(p), EINVAL) &&
	      fcntl(areas[0], F_GETFD) >= 0, "nor does ksm_unshare(), which forgets the buffer");
	__real_close(fds[0]);
	__real_close(fds[1]);
	__real_close(areas[0]);
	__real_close(areas[1]);
	check(fails_with(ksm_unshare(p + 4096), EBADF) && count_fds() == before,
	      "or there is none");
}

static void *churn(void *arg)
{
	char *p = arg;
	long bad = 0;
	int i;

	for (i = 0; i < 2000; i++)
		bad += !!ksm_share(p, 4096) + !!ksm_unmerge(p) + !!ksm_unshare(p);
	return (void *)bad;
}

static void test_threads(char *p)
{
	int before = count_fds(), i, status, good = 1;
	pthread_t threads[4];
	void *bad;
	pid_t pid;

	for (i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, churn, p + i * 4096))
			abort();
	/* A child that is made in the midst of it must not find the lock taken. */
	fflush(stdout);
	for (i = 0; i < 20; i++) {
		pid = fork();
		if (!pid) {
			alarm(30);
			_exit(count_fds() > before || ksm_share(p, 4096));
		}
		good &= waitpid(pid, &status, 0) == pid && !status;
	}
	for (i = 0; i < 4; i++) {
		pthread_join(threads[i], &bad);
		good &= !bad;
	}
	check(good && count_fds() == before, "threads share and unshare while the process forks");
}

int main(void)
{
	char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap: free some memory");
		return 1;
	}
	test_rounding(p);
	test_errors(p);
	test_merge(p);
	test_pace();
	test_fds(p);
	test_fork(p);
	test_closed(p);
	test_threads(p);
	return failures != 0;
}
