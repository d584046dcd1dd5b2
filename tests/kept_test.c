// SPDX-License-Identifier: GPL-2.0-only
/*
 * kept_test.c - what the kernel keeps beside the pages: soft-dirty bits, and counters
 *
 * Pages that were written keep their soft-dirty bit over a merge, and no others get one. The
 * counters of resident memory follow what is merged, written and unmapped.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ksm_harness.h"
#include "ksm_told.h"
#include "ksm_twins.h"

#define N 64

/* ---- what the kernel keeps beside the page ---- */

static size_t count_soft_dirty(const char *addr, size_t npages)
{
	return told_pagemap(0, addr, npages, PM_SOFT_DIRTY, PM_SOFT_DIRTY);
}

/*
 * Checkpointing tools learn from the soft-dirty bit what to copy: pages written
 * since the bits were cleared must have it after a merge, no other page may get it.
 */
TEST_F(device, soft_dirty)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);
	size_t lost = 0, invented = 0;

	if (!ksm_has_soft_dirty())
		SKIP(return, "this kernel has no soft-dirty bits");
	for (int i = 0; i < N; i++)
		ksm_fill_page(ksm_page(a, i), 50, i);
	ksm_fill(b, N, 50);
	ksm_fn_zero((long)zero, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
	ASSERT_EQ(count_soft_dirty(a, N), 0);
	ASSERT_EQ(count_soft_dirty(zero, N), 0);

	/* Every other page of a and zero is written, with what it held before. */
	for (int i = 0; i < N; i += 2) {
		ksm_fill_page(ksm_page(a, i), 50, i);
		memset(ksm_page(zero, i), 0, PGSZ);
	}
	ASSERT_EQ(count_soft_dirty(a, N), N / 2);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(ksm_distinct(0, zero, N), 1);
	for (int i = 0; i < N; i++) {
		bool in_a = ksm_pagemap(0, ksm_page(a, i)) & PM_SOFT_DIRTY;
		bool in_zero = ksm_pagemap(0, ksm_page(zero, i)) & PM_SOFT_DIRTY;

		lost += i % 2 == 0 ? !in_a + !in_zero : 0;
		invented += i % 2 ? in_a + in_zero : 0;
	}
	EXPECT_EQ(lost, 0);
	EXPECT_EQ(invented, 0);
	EXPECT_EQ(count_soft_dirty(b, N), 0);

	/* Cleared on merged pages; then a write to one sets it. */
	ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
	EXPECT_EQ(count_soft_dirty(a, N), 0);
	EXPECT_EQ(count_soft_dirty(zero, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(count_soft_dirty(a, N), 0);
	a[5 * PGSZ] ^= 1;
	zero[5 * PGSZ] = 1;
	EXPECT_TRUE(ksm_pagemap(0, ksm_page(a, 5)) & PM_SOFT_DIRTY);
	EXPECT_TRUE(ksm_pagemap(0, ksm_page(zero, 5)) & PM_SOFT_DIRTY);
	EXPECT_EQ(count_soft_dirty(a, N), 1);
	EXPECT_EQ(count_soft_dirty(zero, N), 1);
}

/* Pages that were only scanned, never merged, keep the bit as well. */
TEST_F(device, soft_dirty_scanned_only)
{
	char *a = ksm_mmap(N);

	if (!ksm_has_soft_dirty())
		SKIP(return, "this kernel has no soft-dirty bits");
	ksm_fill(a, N, 51);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	for (int passes = 0; passes < 5; passes++) {
		ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
		ksm_passes(&self->k, passes);
		EXPECT_EQ(count_soft_dirty(a, N), 0);
		for (int i = 0; i < N; i += 2)
			a[i * PGSZ + passes]++;
		ksm_passes(&self->k, passes);
		EXPECT_EQ(count_soft_dirty(a, N), N / 2);
		for (int i = 0; i < N; i += 2)
			EXPECT_TRUE(ksm_pagemap(0, ksm_page(a, i)) & PM_SOFT_DIRTY);
	}
}

/*
 * Resident memory: merged pages count as the anonymous memory that they were, zero pages
 * as nothing. The kernel reads these counters without
 * adding up what each CPU holds back, hence the slack; at exit it checks the exact
 * sums itself ("Bad rss-counter" in the log fails the whole run).
 */
TEST_F(device, rss)
{
	enum { PAGES = 2048, SLACK_ = 256 };
	char *a, *b, *zero = ksm_mmap(PAGES);
	long anon, file, rss;

#define EXPECT_RSS(change) do { \
	EXPECT_LE(labs(ksm_status(0, "RssAnon") - anon - (change)), SLACK_); \
	EXPECT_LE(labs(ksm_status(0, "RssFile") - file), SLACK_); \
	EXPECT_LE(labs(ksm_status(0, "VmRSS") - rss - (change)), 2 * SLACK_); \
} while (0)

	make_twins(self->area, &a, &b, PAGES, 70);
	ksm_fn_zero((long)zero, PAGES, 0, 0);
	ASSERT_EQ(ksm_register(self->area, zero, PAGES), 0);
	anon = ksm_status(0, "RssAnon");
	file = ksm_status(0, "RssFile");
	rss = ksm_status(0, "VmRSS");
	ASSERT_GE(anon, 3 * PAGES - SLACK_);

	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_RSS(-PAGES);
	EXPECT_EQ(ksm_smaps(a, "Rss"), PAGES);
	EXPECT_EQ(ksm_smaps(a, "Anonymous"), PAGES);
	EXPECT_EQ(ksm_smaps(a, "Pss"), PAGES / 2);

	ksm_fill(a, PAGES, 71);
	EXPECT_RSS(-PAGES);
	EXPECT_EQ(ksm_smaps(a, "Anonymous"), PAGES);
	ksm_fill(zero, PAGES, 72);
	EXPECT_RSS(0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_RSS(0);

	/* Merged once more and unmapped in that state. */
	ksm_fill(a, PAGES, 70);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	munmap(a, PAGES * PGSZ);
	munmap(b, PAGES * PGSZ);
	munmap(zero, PAGES * PGSZ);
	EXPECT_RSS(-3 * PAGES);
}

TEST_HARNESS_MAIN
