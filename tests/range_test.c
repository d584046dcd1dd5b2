// SPDX-License-Identifier: GPL-2.0-only
/*
 * range_test.c - KSM_MERGE_RANGE: merged when the call is back, and counted
 *
 * The errors of its arguments are in abi_errors_test.c.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "ksm_harness.h"

/* What is merged in one call, by the count and by the frames. */
TEST_F(device, both_in_the_range)
{
	const size_t n = 700, zeroes = 100, single = 50;
	const size_t all = 2 * n + zeroes + single;
	char *mem = ksm_mmap(all), *zero = mem + 2 * n * PGSZ, *alone = zero + zeroes * PGSZ;
	uint64_t merged = 1;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ksm_fn_zero((long)zero, zeroes, 0, 0);
	ksm_fill(alone, single, 2);
	ASSERT_EQ(0, ksm_register(self->area, mem, all));
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, all, &merged));
	EXPECT_EQ(2 * n + zeroes, merged);
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
	EXPECT_EQ(n, ksm_distinct(0, mem, 2 * n));
	EXPECT_EQ(1, ksm_distinct(0, zero, zeroes));
	EXPECT_EQ(ksm_zero_pfn(), ksm_pfn(0, zero));
	EXPECT_EQ(single, ksm_distinct(0, alone, single));
	EXPECT_EQ(n, ksm_stat("pages_sharing"));
	EXPECT_EQ(zeroes, ksm_stat("zero_pages"));
	/* Nothing is left to be done. */
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, all, &merged));
	EXPECT_EQ(0, merged);
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(mem + n * PGSZ, n, 1));
	EXPECT_EQ(0, ksm_wrong_zero(zero, zeroes));
	EXPECT_EQ(0, ksm_wrong(alone, single, 2));

	/* Written to, they are merged once more. */
	ksm_fill(mem, 10, 3);
	ksm_fill(mem + n * PGSZ, 10, 3);
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, all, &merged));
	EXPECT_EQ(20, merged);
	EXPECT_EQ(0, ksm_wrong(mem, 10, 3));
}

/* Memory outside of the range is left alone, unless it is the equal that was known. */
TEST_F(device, one_in_the_range)
{
	const size_t n = 600;
	char *mem = ksm_mmap(3 * n);
	uint64_t merged = 1;

	for (int i = 0; i < 3; i++)
		ksm_fill(mem + i * n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 3 * n));
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, n, &merged));
	EXPECT_EQ(0, merged);
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	/* The count is that of the range: the others were known, and come along. */
	ASSERT_EQ(0, ksm_merge_range(self->area, mem + n * PGSZ, n, &merged));
	EXPECT_EQ(n, merged);
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
	EXPECT_EQ(n, ksm_stat("pages_sharing"));
	/* And the third to what is shared already. */
	ASSERT_EQ(0, ksm_merge_range(self->area, mem + 2 * n * PGSZ, n, &merged));
	EXPECT_EQ(n, merged);
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + 2 * n * PGSZ, n));
	EXPECT_EQ(2 * n, ksm_stat("pages_sharing"));
	for (int i = 0; i < 3; i++)
		EXPECT_EQ(0, ksm_wrong(mem + i * n * PGSZ, n, 1));
}

/* Ranges that begin and end anywhere in chunks, and single pages. */
TEST_F(device, any_range)
{
	const size_t n = 1500;
	char *mem = ksm_mmap(n);
	uint64_t merged, total = 0;
	size_t i, step;

	ksm_fill_same(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_merge_range(self->area, mem + 511 * PGSZ, 1, &merged));
	EXPECT_EQ(0, merged);
	for (i = 0, step = 1; i < n; i += step, step = step * 2 + 1) {
		if (step > n - i)
			step = n - i;
		ASSERT_EQ(0, ksm_merge_range(self->area, mem + i * PGSZ, step, &merged));
		EXPECT_GE(step, merged);
		total += merged;
	}
	/* All but those that were the equals of others when these came. */
	EXPECT_LE(n - DIV_UP(n, KSM_SHARE_LIMIT), total);
	EXPECT_GE(n, total);
	EXPECT_EQ(DIV_UP(n, KSM_SHARE_LIMIT), ksm_distinct(0, mem, n));
	EXPECT_EQ(0, ksm_wrong_same(mem, n, 1));
}

/* Holes, other mappings, and nothing at all are no errors. */
TEST_F(device, holes)
{
	const size_t n = 1024;
	char *mem = ksm_mmap(n);
	uint64_t merged = 1;

	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, n, &merged));
	EXPECT_EQ(0, merged);
	ksm_fill_same(mem, 100, 1);
	ksm_fill_same(mem + 900 * PGSZ, 100, 1);
	ASSERT_EQ(0, munmap(mem + 200 * PGSZ, 300 * PGSZ));
	ASSERT_NE(MAP_FAILED, mmap(mem + 600 * PGSZ, 10 * PGSZ, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	ksm_fill_same(mem + 600 * PGSZ, 10, 1);
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, n, &merged));
	EXPECT_EQ(200, merged);
	EXPECT_EQ(1, ksm_distinct(0, mem, 100));
	EXPECT_EQ(ksm_pfn(0, mem), ksm_pfn(0, mem + 999 * PGSZ));
	EXPECT_EQ(10, ksm_distinct(0, mem + 600 * PGSZ, 10));
	EXPECT_EQ(0, ksm_wrong_same(mem, 100, 1));
}

TEST_F(device, outside_of_regions)
{
	const size_t n = 64;
	int other = ksm_area(&self->k);
	char *mem = ksm_mmap(n);
	uint64_t merged;

	ksm_fill_same(mem, n, 1);
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem, n, NULL));
	/* Pages 8 to 15, 16 to 23 and 32 to 39 here, 24 to 31 in the other area. */
	ASSERT_EQ(0, ksm_register(self->area, mem + 16 * PGSZ, 8));
	ASSERT_EQ(0, ksm_register(self->area, mem + 8 * PGSZ, 8));
	ASSERT_EQ(0, ksm_register(self->area, mem + 32 * PGSZ, 8));
	ASSERT_EQ(0, ksm_register(other, mem + 24 * PGSZ, 8));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem, 1, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 7 * PGSZ, 2, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 15 * PGSZ, 10, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 24 * PGSZ, 8, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 8 * PGSZ, 32, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 39 * PGSZ, 2, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(other, mem + 8 * PGSZ, 1, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem, UINT64_MAX >> 12, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 8 * PGSZ, UINT64_MAX, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 8 * PGSZ, 1ULL << 52, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, (void *)-PGSZ, 1, NULL));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, NULL, 1, NULL));
	EXPECT_EQ(n, ksm_distinct(0, mem, n));
	/* Two regions that touch are as good as one. */
	ASSERT_EQ(0, ksm_merge_range(self->area, mem + 9 * PGSZ, 14, &merged));
	EXPECT_EQ(14, merged);
	ASSERT_EQ(0, ksm_remove(self->area));
	EXPECT_EQ(-ENOENT, ksm_merge_range(self->area, mem + 8 * PGSZ, 1, NULL));
	EXPECT_EQ(0, ksm_wrong_same(mem, n, 1));
	close(other);
}

TEST_F(device, other_processes)
{
	const size_t n = 300;
	char *mem = ksm_mmap(n);
	struct ksm_child c;

	ksm_spawn(&c);
	ksm_fill(mem, n, 1);
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	/* The child's region in our area is not ours to merge by our addresses. */
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, n));
	EXPECT_EQ(-ENOENT, ksm_fn_merge_range(self->area, (long)mem, n, 0));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_merge_range, self->area, mem, n));
	/* Ours goes to the child's pages, which are known by now, and not the reverse. */
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	EXPECT_EQ((long)n, ksm_fn_merge_range(self->area, (long)mem, n, 0));
	EXPECT_EQ(n, ksm_same_frames(0, mem, c.pid, mem, n));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_merge_range, self->area, mem, n));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
	EXPECT_EQ(0, ksm_end(&c));
}

/* The child's memory is no region; the parent's is one still, and is shared with it. */
TEST_F(device, after_fork)
{
	const size_t n = 300;
	char *mem = ksm_mmap(2 * n);
	struct ksm_child c;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ksm_spawn(&c);
	EXPECT_EQ(-ENOENT, ksm_call(&c, ksm_fn_merge_range, self->area, mem, 2 * n));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 1));
	/* Its own copies, so that the parent's have one mapping again. */
	ksm_call(&c, ksm_fn_fill, mem, 2 * n, 5);
	EXPECT_EQ((long)(2 * n), ksm_fn_merge_range(self->area, (long)mem, 2 * n, 0));
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
	/* Who registers may merge, by the area it was left. */
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, 2 * n));
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	EXPECT_EQ((long)n, ksm_call(&c, ksm_fn_merge_range, self->area, mem, 2 * n));
	EXPECT_EQ(n, ksm_same_frames(0, mem, c.pid, mem, n));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(mem + n * PGSZ, n, 1));
	EXPECT_EQ(0, ksm_end(&c));
}

static void on_alarm(int sig)
{
	(void)sig;
}

/* Nothing is lost, and nothing counted twice. */
TEST_F(device, interrupted)
{
	const size_t n = 8192;
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { 0 };
	char *mem = ksm_mmap(2 * n);
	uint64_t merged, total = 0;
	int interrupted = 0;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < 20; i++) {
		int ret;

		merged = 2 * n + 1;
		ret = ksm_merge_range(self->area, mem, 2 * n, &merged);
		EXPECT_TRUE(!ret || ret == -EINTR) {
			TH_LOG("%s", strerror(-ret));
		}
		interrupted += ret == -EINTR;
		ASSERT_GE(2 * n, merged);
		total += merged;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	/* 16384 pages take more than 2 ms when none of them is known. */
	EXPECT_LT(0, interrupted);
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, 2 * n, &merged));
	EXPECT_EQ(2 * n, total + merged);
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(mem + n * PGSZ, n, 1));
}

/*
 * Two pages that equal a third: one has just tried and could not merge with the other,
 * which knows nothing of it. The third takes the first one; the other must follow.
 */
TEST_F(device, left_behind)
{
	enum { N = 64 };
	/* The lower one of two candidates is tried first. */
	char *low = ksm_mmap(2 * N), *high = ksm_page(low, N), *third = ksm_mmap(N);
	uint64_t merged;
	int uffd;

	ksm_fill(low, N, 1);
	ksm_fill(high, N, 2);
	ASSERT_EQ(0, ksm_register(self->area, low, 2 * N));
	ASSERT_EQ(0, ksm_register(self->area, third, N));
	ASSERT_EQ(0, ksm_merge_range(self->area, low, N, &merged));
	ASSERT_EQ(0, ksm_merge_range(self->area, high, N, &merged));

	/* As long as a userfaultfd has it write-protected, memory is not merged. */
	uffd = ksm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	ksm_uffd_register(uffd, high, N, UFFDIO_REGISTER_MODE_WP);
	ksm_uffd_protect(uffd, high, N);
	ksm_fill(low, N, 2);
	ASSERT_EQ(0, ksm_merge_range(self->area, low, N, &merged));
	EXPECT_EQ(0, merged);
	close(uffd);

	ksm_fill(third, N, 2);
	ASSERT_EQ(0, ksm_merge_range(self->area, third, N, &merged));
	EXPECT_EQ(N, merged);
	EXPECT_EQ(N, ksm_same_frames(0, low, 0, third, N));
	ASSERT_EQ(0, ksm_merge_range(self->area, high, N, &merged));
	EXPECT_EQ(N, merged);
	EXPECT_EQ(N, ksm_same_frames(0, high, 0, third, N));
}

/* With threads that scan the same memory all the while, and with other callers. */
TEST_F(device, among_others)
{
	const size_t n = 1024;
	char *mem = ksm_mmap(n);
	struct ksm_child c[3];
	long merged;

	for (int i = 0; i < 3; i++)
		ksm_spawn(&c[i]);
	for (int i = 0; i < 3; i++) {
		ksm_call(&c[i], ksm_fn_fill, mem, n, 1);
		ASSERT_EQ(0, ksm_call(&c[i], ksm_fn_register, self->area, mem, n));
	}
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 2));
	ASSERT_EQ(0, ksm_start(self->k.dev, 100, 0, 1000));
	for (int round = 0; round < 10; round++) {
		for (int i = 0; i < 3; i++)
			ksm_call_start(&c[i], ksm_fn_merge_range, self->area, (long)mem, n, 0);
		for (int i = 0; i < 3; i++) {
			merged = ksm_call_finish(&c[i]);
			EXPECT_LE(0, merged);
			EXPECT_GE((long)n, merged);
		}
		for (int i = 0; i < 3; i++)
			EXPECT_EQ(0, ksm_call(&c[i], ksm_fn_wrong, mem, n, 1 + round));
		for (int i = 0; i < 3; i++)
			ksm_call(&c[i], ksm_fn_fill, mem, n, 2 + round);
	}
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	/* Twice: whose page was somebody's partner too late merges it when he asks again. */
	for (int i = 0; i < 6; i++)
		EXPECT_LE(0, ksm_call(&c[i % 3], ksm_fn_merge_range, self->area, mem, n));
	EXPECT_EQ(n, ksm_same_frames(c[0].pid, mem, c[1].pid, mem, n));
	EXPECT_EQ(n, ksm_same_frames(c[0].pid, mem, c[2].pid, mem, n));
	for (int i = 0; i < 3; i++)
		EXPECT_EQ(0, ksm_end(&c[i]));
}

TEST_HARNESS_MAIN
