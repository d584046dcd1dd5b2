// SPDX-License-Identifier: GPL-2.0-only
/*
 * counters_test.c - the counters and MemFree say what was merged and what it saved
 *
 * The driver's counters are compared with what the test did, in the manner of LTP's ksm01,
 * after scans that the test itself ran; and read while a scan merges. The frames that are
 * saved come back to the machine: MemFree.
 */
#include <pthread.h>

#include "ksm_harness.h"

#define N 64

/*
 * 64 MiB in four processes, 48 MiB of it redundant: the frames come back to the
 * machine, and as much goes when they are written again.
 */
TEST_F(device, memfree)
{
	const long pages = (16 << 20) / PGSZ, saved = 3 * pages, slack = 512;
	struct ksm_child c[4];
	char *buf = ksm_mmap(pages);
	long before, after, metadata;

	for (int i = 0; i < 4; i++) {
		ksm_spawn(&c[i]);
		ksm_call(&c[i], ksm_fn_fill, buf, pages, 8);
		ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, pages), 0);
	}
	before = ksm_memfree();
	ksm_merge_all(&self->k);
	after = ksm_memfree();
	metadata = ksm_stat("metadata_bytes") / (long)PGSZ;
	TH_LOG("MemFree rose by %ld pages, %ld are redundant, metadata take %ld",
	       after - before, saved, metadata);
	EXPECT_GE(after - before, saved - metadata - slack);
	EXPECT_LE(after - before, saved + slack);
	EXPECT_STATS(pages, saved, 0, 0, 0);
	EXPECT_EQ(ksm_stat("kernel_pages"), pages);
	for (int i = 0; i < 4; i++) {
		EXPECT_EQ(ksm_same_frames(c[0].pid, buf, c[i].pid, buf, pages), pages);
		EXPECT_EQ(ksm_call(&c[i], ksm_fn_wrong, buf, pages, 8), 0);
	}

	/* One of them writes: 16 MiB of private copies. */
	before = ksm_memfree();
	ksm_call(&c[1], ksm_fn_fill, buf, pages, 9);
	after = ksm_memfree();
	EXPECT_GE(before - after, pages - slack);
	EXPECT_LE(before - after, pages + slack);
	EXPECT_EQ(ksm_call(&c[1], ksm_fn_wrong, buf, pages, 9), 0);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, pages, 8), 0);

	/* All exit: nothing of it is left. */
	before = ksm_memfree();
	for (int i = 0; i < 4; i++)
		ksm_end(&c[i]);
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	EXPECT_TRUE(ksm_wait_memfree(before + 2 * pages - slack));
	EXPECT_STATS(0, 0, 0, 0, 0);
}

/* Three processes go through phases; after each the counters are exact. */
TEST_F(device, counters_in_phases)
{
	enum { A = 101, B, C, D };
	char *buf = ksm_mmap(N);
	struct ksm_child c[3];

	for (int i = 0; i < 3; i++) {
		ksm_spawn(&c[i]);
		ksm_call(&c[i], ksm_fn_fill_same, buf, N, i ? A : C);
		ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, N), 0);
	}
	EXPECT_STATS(0, 0, 0, 0, 0);

	/* c, a, a */
	ksm_merge_all(&self->k);
	EXPECT_STATS(2, 3 * N - 2, 0, 0, 0);

	/* c, b, a; before the scan, what was written has left its page */
	ksm_call(&c[1], ksm_fn_fill_same, buf, N, B);
	EXPECT_EQ(ksm_stat("pages_shared"), 2);
	EXPECT_EQ(ksm_stat("pages_sharing"), 2 * N - 2);
	ksm_merge_all(&self->k);
	EXPECT_STATS(3, 3 * N - 3, 0, 0, 0);

	/* d, d, d */
	for (int i = 0; i < 3; i++)
		ksm_call(&c[i], ksm_fn_fill_same, buf, N, D);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	ksm_merge_all(&self->k);
	EXPECT_STATS(1, 3 * N - 1, 0, 0, 0);

	/* d, d but for one page, d */
	ksm_call(&c[1], ksm_fn_fill_same, ksm_page(buf, N - 1), 1, B);
	ksm_merge_all(&self->k);
	EXPECT_STATS(1, 3 * N - 2, 1, 0, 0);

	/* zero, d but for one page, d */
	ksm_call(&c[0], ksm_fn_zero, buf, N, 0);
	ksm_merge_all(&self->k);
	EXPECT_STATS(1, 2 * N - 2, 1, 0, N);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong_zero, buf, N, 0), 0);

	/* zero, d but for one page, gone */
	ksm_end(&c[2]);
	EXPECT_EQ(ksm_stat("pages_shared"), 1);
	EXPECT_EQ(ksm_stat("pages_sharing"), N - 2);
	ksm_merge_all(&self->k);
	EXPECT_STATS(1, N - 2, 1, 0, N);

	/* zero, all different */
	ksm_call(&c[1], ksm_fn_fill, buf, N, A);
	ksm_merge_all(&self->k);
	EXPECT_STATS(0, 0, N, 0, N);

	/* all different, all different: the zero pages are gone too */
	ksm_call(&c[0], ksm_fn_fill, buf, N, B);
	ksm_merge_all(&self->k);
	EXPECT_STATS(0, 0, 2 * N, 0, 0);

	/* the same as the other: merged with what was unshared */
	ksm_call(&c[0], ksm_fn_fill, buf, N, A);
	ksm_merge_all(&self->k);
	EXPECT_STATS(N, N, 0, 0, 0);
	EXPECT_EQ(ksm_same_frames(c[0].pid, buf, c[1].pid, buf, N), N);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, A), 0);
	EXPECT_EQ(ksm_call(&c[1], ksm_fn_wrong, buf, N, A), 0);

	ksm_end(&c[0]);
	ksm_end(&c[1]);
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	EXPECT_STATS(0, 0, 0, 0, 0);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	EXPECT_EQ(ksm_stat("pages_registered"), 0);
}

static void *merge_pages(void *arg)
{
	ksm_merge_all(arg);
	return NULL;
}

/*
 * The counters are right at any time, also while the driver's table of shared pages
 * grows: as long as pages only are merged, neither may be seen to fall. Each read has them
 * counted again soon.
 */
TEST_F(device, counters_while_merging)
{
	enum { PAGES = 4096 };
	const char *names[] = { "pages_shared", "pages_sharing" };
	char *a = ksm_mmap(PAGES), *b = ksm_mmap(PAGES);
	long long last[2] = { 0 }, reads = 0;
	pthread_t thread;

	ksm_fill(a, PAGES, 17);
	ksm_fill(b, PAGES, 17);
	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, b, PAGES), 0);
	/* What is told is not of the test before any more. */
	ASSERT_TRUE(ksm_wait_stat("pages_shared", 0));
	ASSERT_EQ(pthread_create(&thread, NULL, merge_pages, &self->k), 0);
	while (pthread_tryjoin_np(thread, NULL)) {
		for (int i = 0; i < 2; i++) {
			long long now = ksm_stat_told(names[i]);

			EXPECT_GE(now, last[i]) TH_LOG("%s fell", names[i]);
			EXPECT_LE(now, PAGES);
			last[i] = now;
		}
		reads++;
	}
	EXPECT_GT(reads, 10);
	EXPECT_STATS(PAGES, PAGES, 0, 0, 0);
}

TEST_HARNESS_MAIN
