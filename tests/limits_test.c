// SPDX-License-Identifier: GPL-2.0-only
/*
 * limits_test.c - max_kernel_pages: how many shared pages there are, and that they come back
 *
 * Reaching the limit is no error and loses nothing: pages stay unmerged, and all of it
 * comes back when the users are gone.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_limit.h"
#include "ksm_scanner.h"

/* ---- max_kernel_pages ---- */

TEST_F(limit, default_is_a_quarter_of_memory)
{
	/* MemTotal lacks what the kernel took while booting, that is all. */
	EXPECT_LE(ksm_meminfo("MemTotal") / 5, self->old);
	EXPECT_GE(ksm_meminfo("MemTotal") / 3, self->old);
}

TEST_F(limit, reached_and_raised)
{
	const size_t n = 100;
	char *a = ksm_mmap(n), *b = ksm_mmap(n), *z = ksm_mmap(8);

	ksm_fill(a, n, 1);
	ksm_fill(b, n, 1);
	ksm_fn_zero((long)z, 8, 0, 0);
	ASSERT_EQ(0, ksm_register(self->area, a, n));
	ASSERT_EQ(0, ksm_register(self->area, b, n));
	ASSERT_EQ(0, ksm_register(self->area, z, 8));

	/* None: nothing but zero pages, which cost no page. */
	set_limit(0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, ksm_stat("kernel_pages"));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	EXPECT_EQ(8, ksm_stat("zero_pages"));
	EXPECT_EQ(0, ksm_same_frames(0, a, 0, b, n));

	/* Ten: exactly ten pairs, although 100 wait. */
	set_limit(10);
	ksm_merge_all(&self->k);
	EXPECT_EQ(10, ksm_stat("kernel_pages"));
	EXPECT_EQ(10, ksm_stat("pages_shared"));
	EXPECT_EQ(10, ksm_same_frames(0, a, 0, b, n));
	ksm_merge_all(&self->k);
	EXPECT_EQ(10, ksm_same_frames(0, a, 0, b, n));

	/* Lowered beneath what is there: it stays, nothing comes. */
	set_limit(5);
	ksm_merge_all(&self->k);
	EXPECT_EQ(10, ksm_stat("kernel_pages"));
	EXPECT_EQ(10, ksm_same_frames(0, a, 0, b, n));

	/* Raised: the rest, without any further ado. */
	set_limit(1000);
	ksm_merge_all(&self->k);
	EXPECT_EQ(n, ksm_stat("kernel_pages"));
	EXPECT_EQ(n, ksm_same_frames(0, a, 0, b, n));
	EXPECT_EQ(0, ksm_wrong(a, n, 1));
	EXPECT_EQ(0, ksm_wrong(b, n, 1));
}

/* A further copy of what is shared already needs no new page. */
TEST_F(limit, joins_at_the_limit)
{
	char *a = ksm_mmap(16), *b = ksm_mmap(16);

	ksm_fill_same(a, 16, 1);
	ASSERT_EQ(0, ksm_register(self->area, a, 16));
	set_limit(1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(1, ksm_distinct(0, a, 16));
	ksm_fill_same(b, 16, 1);
	ASSERT_EQ(0, ksm_register(self->area, b, 16));
	ksm_merge_all(&self->k);
	EXPECT_EQ(16, ksm_same_frames(0, a, 0, b, 16));
	EXPECT_EQ(1, ksm_stat("kernel_pages"));
}

/* Not beyond it whenever it is counted, though three look for room at once. */
TEST_F(limit, never_beyond_it)
{
	const size_t n = 4096;
	char *a = ksm_mmap(n), *b = ksm_mmap(n);
	struct ksm_scanner scanner[2];
	long long most = 0;
	double end;

	ksm_fill(a, n, 1);
	ksm_fill(b, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, a, n));
	ASSERT_EQ(0, ksm_register(self->area, b, n));
	set_limit(700);
	for (int i = 0; i < 2; i++)
		ksm_scanner_start(&scanner[i], self->k.dev, 256);
	ASSERT_EQ(0, ksm_start(self->k.dev, 256, 0, 0));
	end = ksm_now() + KSM_PATIENCE;
	while (most < 700 && ksm_now() < end) {
		long long v = ksm_stat("kernel_pages");

		if (v > most)
			most = v;
	}
	end = ksm_now() + 1;
	while (ksm_now() < end) {
		long long v = ksm_stat("kernel_pages");

		if (v > most)
			most = v;
	}
	for (int i = 0; i < 2; i++)
		ksm_scanner_stop(&scanner[i]);
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	EXPECT_GE(700, most);
	/*
	 * They may have left a pair half done: one page has the shared page already, and the
	 * other was just held by another scan, or its merge is to be tried again some passes
	 * later. Now that nobody is in the way the limit is used up.
	 */
	ksm_merge_held(&self->k);
	EXPECT_EQ(700, ksm_stat("kernel_pages"));
	EXPECT_EQ(700, ksm_same_frames(0, a, 0, b, n));
	EXPECT_EQ(0, ksm_wrong(a, n, 1));
	EXPECT_EQ(0, ksm_wrong(b, n, 1));
}

/* ---- what comes back ---- */

TEST_F(limit, all_comes_back)
{
	const size_t n = 4096;
	char *mem = ksm_mmap(n);
	struct ksm_child c[2];
	long before, shared, after;
	double end;

	for (int i = 0; i < 2; i++)
		ksm_spawn(&c[i]);
	before = ksm_memfree();
	for (int i = 0; i < 2; i++) {
		ksm_call(&c[i], ksm_fn_fill, mem, n, 1);
		ASSERT_EQ(0, ksm_call(&c[i], ksm_fn_register, self->area, mem, n));
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(n, ksm_stat("kernel_pages"));
	shared = ksm_memfree();
	/* Two times n less n is n, give or take what tables and slabs take. */
	EXPECT_GE(before - (long)n + 512, shared);
	EXPECT_LE(before - (long)n - 512, shared);

	/* One leaves: every page has one user left and so no longer a reason. */
	EXPECT_EQ(0, ksm_end(&c[0]));
	EXPECT_EQ(0, ksm_call(&c[1], ksm_fn_wrong, mem, n, 1));
	end = ksm_now() + KSM_PATIENCE;
	do {
		ksm_merge_all(&self->k);
	} while (ksm_stat("pages_shared") && ksm_now() < end);
	EXPECT_EQ(0, ksm_call(&c[1], ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));

	EXPECT_EQ(0, ksm_kill(&c[1]) >> 8);
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	end = ksm_now() + KSM_PATIENCE;
	do {
		after = ksm_memfree();
	} while (after < before - 256 && ksm_now() < end);
	EXPECT_LE(before - 256, after);
}

/*
 * Pages that nobody maps any more are free at once, whoever unmapped them, though nobody
 * scans, asks or is short of memory. What is looked at is the machine's free memory.
 */
TEST_F(limit, free_at_once)
{
	const size_t n = 8192, slack = 1024;
	char *mem = ksm_mmap(2 * n);
	long shared;

	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	for (int round = 0; round < 4; round++) {
		ksm_fill(mem, n, 10 * round);
		ksm_fill(mem + n * PGSZ, n, 10 * round);
		ksm_merge_all(&self->k);
		ASSERT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
		shared = ksm_memfree();
		switch (round) {
		case 0:
			/* Each page has its own again: that takes no more than the second half. */
			ksm_fill(mem, 2 * n, 10 * round + 1);
			EXPECT_LE(shared - (long)n - (long)slack, ksm_memfree());
			break;
		case 1:
			ASSERT_EQ(0, madvise(mem, 2 * n * PGSZ, MADV_DONTNEED));
			EXPECT_LE(shared + (long)n - (long)slack, ksm_memfree());
			break;
		case 2:
			/* Nobody knows of it any more. */
			close(self->area);
			ASSERT_EQ(0, madvise(mem, 2 * n * PGSZ, MADV_DONTNEED));
			EXPECT_LE(shared + (long)n - (long)slack, ksm_memfree());
			self->area = ksm_area(&self->k);
			ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
			break;
		default:
			ASSERT_EQ(0, munmap(mem, 2 * n * PGSZ));
			EXPECT_LE(shared + (long)n - (long)slack, ksm_memfree());
		}
	}
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));
}

/* And those of a process that is killed. */
TEST_F(limit, free_when_killed)
{
	const size_t n = 8192, slack = 1024;
	char *mem = ksm_mmap(2 * n);
	struct ksm_child c;
	long shared;

	ksm_spawn(&c);
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	ksm_call(&c, ksm_fn_fill, mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, 2 * n));
	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_same_frames(c.pid, mem, c.pid, mem + n * PGSZ, n));
	shared = ksm_memfree();
	ksm_kill(&c);
	EXPECT_TRUE(ksm_wait_memfree(shared + (long)n - (long)slack));
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));
}

/* A job after the other, each with contents of its own: what they leave is in nobody's way. */
TEST_F(limit, jobs)
{
	enum { JOBS = 48 };
	const long n = 128;
	char *mem = ksm_mmap(2 * n);
	int at_once = 0;
	struct ksm_child c;
	long area;

	/* Half of them reach the bound. */
	set_limit(n * JOBS / 2);
	for (int job = 0; job < JOBS; job++) {
		const double end = ksm_now() + KSM_PATIENCE;
		long merged, all;

		ksm_spawn(&c);
		ksm_call(&c, ksm_fn_fill, mem, n, job);
		ksm_call(&c, ksm_fn_fill, mem + n * PGSZ, n, job);
		area = ksm_call(&c, ksm_fn_area_register, self->k.dev, mem, 2 * n);
		ASSERT_LE(0, area);
		merged = ksm_call(&c, ksm_fn_merge_range, area, mem, 2 * n);
		ASSERT_LE(0, merged);
		at_once += merged == 2 * n;
		/* The work item that counts may be just in the way. */
		for (all = merged; all < 2 * n && merged >= 0 && ksm_now() < end; all += merged) {
			usleep(20000);
			merged = ksm_call(&c, ksm_fn_merge_range, area, mem, 2 * n);
		}
		EXPECT_EQ(2 * n, all);
		ksm_end(&c);
	}
	TH_LOG("%d of %d jobs shared all of it in one call", at_once, JOBS);
	EXPECT_LT(JOBS - JOBS / 8, at_once);
}

/*
 * At the bound, entries of pages that are gone make room, though nobody has counted: that is
 * done each second, and now and then it is just in the way.
 */
TEST_F(limit, room_is_found)
{
	enum { ROUNDS = 20 };
	const size_t n = 256;
	int at_once = 0;
	char *mem = ksm_mmap(2 * n);
	uint64_t merged;

	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	set_limit(n);
	for (int round = 0; round < ROUNDS; round++) {
		double end = ksm_now() + KSM_PATIENCE;
		int tries = 0;

		ksm_fill(mem, n, round);
		ksm_fill(mem + n * PGSZ, n, round);
		while (ksm_same_frames(0, mem, 0, mem + n * PGSZ, n) < n) {
			ASSERT_GT(end, ksm_now());
			ASSERT_EQ(0, ksm_merge_range(self->area, mem, 2 * n, &merged));
			tries++;
		}
		at_once += tries <= 2;
	}
	TH_LOG("at once in %d of %d rounds", at_once, ROUNDS);
	EXPECT_LT(ROUNDS / 2, at_once);
}

TEST_HARNESS_MAIN
