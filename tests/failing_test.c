// SPDX-License-Identifier: GPL-2.0-only
/*
 * failing_test.c - calls for which there is no descriptor left, or no memory
 *
 * Each allocation of each call fails once. The call says so or does without, and leaves
 * nothing behind. That takes a kernel that can make allocations fail: the debug kernel can.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ksm_limit.h"

/* No fd left for the new object: nothing of it may stay. */
TEST_F(limit, no_fd_left)
{
	struct rlimit old, none = { 3, 3 };
	long long areas = ksm_stat("areas"), metadata = ksm_stat("metadata_bytes");

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	none.rlim_max = old.rlim_max;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	for (int i = 0; i < 100; i++) {
		EXPECT_EQ(-1, ioctl(self->k.dev, KSM_CREATE_SHARED_MEMORY_AREA));
		EXPECT_EQ(EMFILE, errno);
		EXPECT_EQ(-1, ioctl(self->k.dev, KSM_CREATE_SCAN));
		EXPECT_EQ(EMFILE, errno);
	}
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	EXPECT_EQ(areas, ksm_stat("areas"));
	/* What was freed a moment ago may not have been counted at first. */
	EXPECT_GE(metadata, ksm_stat("metadata_bytes"));
}

/* ---- allocations that fail, where the kernel can make them ---- */

#define DEBUGFS "/sys/kernel/debug/"

/* /proc/thread-self/fail-nth, held open: to open it would take an allocation. */
static int fail_nth_fd = -1;

/* The n-th allocation of this thread from now on fails; 0: none. */
static void fail_nth(unsigned int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", n);

	if (pwrite(fail_nth_fd, text, len, 0) != len)
		ksm_die("cannot write fail-nth: %s", strerror(errno));
}

/* Did the failure that was asked for happen? Switches it off in any case. */
static bool failed_nth(void)
{
	char buf[16] = "";

	if (pread(fail_nth_fd, buf, sizeof(buf) - 1, 0) <= 0)
		ksm_die("cannot read fail-nth: %s", strerror(errno));
	fail_nth(0);
	return atoi(buf) == 0;
}

static long try_area(struct ksm *k, int area, char *mem)
{
	int fd = ioctl(k->dev, KSM_CREATE_SHARED_MEMORY_AREA);
	int err = errno;

	(void)area;
	(void)mem;
	if (fd < 0)
		return -err;
	close(fd);
	return 0;
}

static long try_scan_fd(struct ksm *k, int area, char *mem)
{
	int fd = ioctl(k->dev, KSM_CREATE_SCAN);
	int err = errno;

	(void)area;
	(void)mem;
	if (fd < 0)
		return -err;
	close(fd);
	return 0;
}

static long try_register(struct ksm *k, int area, char *mem)
{
	(void)k;
	return ksm_register(area, mem, 64);
}

static long try_scan(struct ksm *k, int area, char *mem)
{
	struct ksm_user_scan s = { .pages_to_scan = 4 * 64 };

	(void)area;
	(void)mem;
	return ioctl(k->scan, KSM_SCAN, &s) ? -errno : 0;
}

static long try_unmerge(struct ksm *k, int area, char *mem)
{
	(void)k;
	(void)mem;
	return ksm_unmerge(area);
}

static long try_merge_range(struct ksm *k, int area, char *mem)
{
	(void)k;
	return ksm_merge_range(area, mem, 64, NULL);
}

TEST_F(limit, failing_allocations)
{
	static long (*const calls[])(struct ksm *k, int area, char *mem) = {
		try_area, try_scan_fd, try_register, try_scan, try_unmerge, try_merge_range,
	};
	static const char *const setup[][2] = {
		{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
		{ DEBUGFS "failslab/verbose", "0" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ DEBUGFS "fail_page_alloc/min-order", "0" },
		{ DEBUGFS "fail_page_alloc/verbose", "0" },
	};
	char *mem = ksm_mmap(64);
	unsigned int injected = 0;

	if (access(DEBUGFS "failslab", F_OK))
		SKIP(return, "this kernel has no fault injection; the debug kernel has");
	for (size_t i = 0; i < sizeof(setup) / sizeof(setup[0]); i++)
		ksm_write_file(setup[i][0], setup[i][1]);
	ksm_fill_same(mem, 64, 1);
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fail_nth_fd);

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		const long long areas = ksm_stat("areas");
		unsigned int n;
		bool hit = true;
		long ret;

		for (n = 1; hit && n < 300; n++) {
			/* Each call finds what it needs: regions, merged pages. */
			ksm_remove(self->area);
			if (calls[i] != try_register)
				ASSERT_EQ(0, ksm_register(self->area, mem, 64));
			if (calls[i] == try_unmerge)
				ksm_merge_all(&self->k);
			/* What the last try has merged would want nothing. */
			if (calls[i] == try_scan || calls[i] == try_merge_range) {
				ASSERT_EQ(0, ksm_unmerge(self->area));
				/* And a window that has to grow. */
				ASSERT_EQ(0, madvise(ksm_page(mem, 8), 56 * PGSZ, MADV_DONTNEED));
				ASSERT_EQ(0, ksm_merge_range(self->area, mem, 8, NULL));
				ksm_fill_same(ksm_page(mem, 8), 56, 1);
			}
			fail_nth(n);
			ret = calls[i](&self->k, self->area, mem);
			hit = failed_nth();
			injected += hit;
			/* Scans do without; for the others it is an error of theirs. */
			EXPECT_TRUE(ret == 0 || (ret == -ENOMEM && hit)) {
				TH_LOG("call %zu, allocation %u: %s", i, n, strerror(-ret));
			}
			EXPECT_EQ(areas, ksm_stat("areas"));
			if (calls[i] == try_register && ret)
				EXPECT_EQ(0, ksm_stat("regions"));
			EXPECT_EQ(0, ksm_wrong_same(mem, 64, 1));
		}
		/* In the end one call went through without being hit. */
		EXPECT_FALSE(hit);
	}
	close(fail_nth_fd);
	TH_LOG("%u failures were injected", injected);
	EXPECT_LT(10, injected);
	ksm_merge_all(&self->k);
	EXPECT_EQ(1, ksm_distinct(0, mem, 64));
}

TEST_HARNESS_MAIN
