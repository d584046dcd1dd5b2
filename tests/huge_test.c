// SPDX-License-Identifier: GPL-2.0-only
/*
 * huge_test.c - a huge page is read when it was written, and split when that is worth it
 *
 * As many subpages as thp_split_threshold says must have a partner at one time; a huge page
 * of zeroes is split, too. What was read is taken from the driver's counters.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define HUGE_PAGES	KSM_HUGE_PAGES
#define HUGE_SIZE	KSM_HUGE_SIZE

#define SYSFS "/sys/class/misc/ksm/"

FIXTURE(huge)
{
	struct ksm k;
	int area;
	long long hashed, skipped, threshold;
};

#define HASHED()	(ksm_stat("pages_hashed") - self->hashed)
#define SKIPPED()	(ksm_stat("pages_skipped") - self->skipped)

FIXTURE_SETUP(huge)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->threshold = ksm_stat("thp_split_threshold");
}

static int set_threshold(long long pages)
{
	char text[32];

	snprintf(text, sizeof(text), "%lld", pages);
	return ksm_write_file(SYSFS "thp_split_threshold", text);
}

FIXTURE_TEARDOWN(huge)
{
	EXPECT_EQ(set_threshold(self->threshold), 0);
	close(self->area);
	ksm_finish(&self->k);
}

TEST_F(huge, threshold_is_checked)
{
	EXPECT_GE(self->threshold, 1);
	EXPECT_LE(self->threshold, HUGE_PAGES);
	EXPECT_EQ(set_threshold(0), -EINVAL);
	EXPECT_EQ(set_threshold(HUGE_PAGES + 1), -EINVAL);
	EXPECT_EQ(set_threshold(-1), -EINVAL);
	EXPECT_EQ(ksm_write_file(SYSFS "thp_split_threshold", "many"), -EINVAL);
	EXPECT_EQ(ksm_stat("thp_split_threshold"), self->threshold);
	EXPECT_EQ(set_threshold(1), 0);
	EXPECT_EQ(ksm_stat("thp_split_threshold"), 1);
	EXPECT_EQ(set_threshold(HUGE_PAGES), 0);
	EXPECT_EQ(ksm_stat("thp_split_threshold"), HUGE_PAGES);
}

/* Idle huge pages are not read; a write makes that huge page, and no other, read. */
TEST_F(huge, one_write)
{
	enum { HUGE = 3 };
	char *p = ksm_mmap_huge(HUGE);

	ksm_fill(p, HUGE * HUGE_PAGES, 80);
	ASSERT_EQ(ksm_register(self->area, p, HUGE * HUGE_PAGES), 0);
	self->hashed = ksm_stat("pages_hashed");
	ksm_passes(&self->k, 1);
	EXPECT_EQ(HASHED(), HUGE * HUGE_PAGES);
	/* Once more, for what they are to be found by. */
	ksm_passes(&self->k, 1);
	EXPECT_EQ(HASHED(), 2 * HUGE * HUGE_PAGES);
	for (int i = 0; i < 4; i++) {
		self->hashed = ksm_stat("pages_hashed");
		self->skipped = ksm_stat("pages_skipped");
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), HUGE);
		EXPECT_EQ(SKIPPED(), HUGE * HUGE_PAGES - HASHED());
		EXPECT_STATS(0, 0, HUGE * HUGE_PAGES, 0, 0);
	}
	for (int i = 0; i < 4; i++) {
		/* In each cache line, so that a sample has one. */
		for (size_t j = 0; j < PGSZ; j += 64)
			ksm_page(p, HUGE_PAGES + 37 * i)[j + i]++;
		self->hashed = ksm_stat("pages_hashed");
		ksm_passes(&self->k, 1);
		EXPECT_GE(HASHED(), HUGE_PAGES);
		EXPECT_LE(HASHED(), HUGE_PAGES + HUGE);
		EXPECT_STATS(0, 0, HUGE * HUGE_PAGES - 1, 1, 0);
		ksm_passes(&self->k, 1);
		EXPECT_STATS(0, 0, HUGE * HUGE_PAGES, 0, 0);
	}
	EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE * HUGE_PAGES);
}

/* One subpage fewer than is worth a split, then as many. */
TEST_F(huge, split_at_the_threshold)
{
	const int thresholds[] = { self->threshold, 1, 200, HUGE_PAGES };

	for (size_t i = 0; i < ARRAY_SIZE(thresholds); i++) {
		const int n = thresholds[i];
		char *p = ksm_mmap_huge(1), *small = ksm_mmap(HUGE_PAGES);
		long long splits = ksm_stat("thp_splits");

		ASSERT_EQ(set_threshold(n), 0);
		ksm_fill(p, HUGE_PAGES, 81);
		ksm_fill(small, HUGE_PAGES, 82);
		/* Not in a row. */
		for (int j = 0; j < n - 1; j++)
			ksm_fill_page(ksm_page(small, j * 5 % HUGE_PAGES), 81,
				      j * 5 % HUGE_PAGES);
		ASSERT_EQ(ksm_register(self->area, p, HUGE_PAGES), 0);
		ASSERT_EQ(ksm_register(self->area, small, HUGE_PAGES), 0);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits);
		EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE_PAGES);
		EXPECT_STATS(0, 0, 2 * HUGE_PAGES, 0, 0);

		ksm_fill_page(ksm_page(small, (n - 1) * 5 % HUGE_PAGES), 81,
			      (n - 1) * 5 % HUGE_PAGES);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits + 1) TH_LOG("threshold %d", n);
		EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), 0);
		EXPECT_EQ((int)ksm_same_frames(0, p, 0, small, HUGE_PAGES), n);
		EXPECT_STATS(n, n, 2 * (HUGE_PAGES - n), 0, 0);
		EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 81), 0);
		ASSERT_EQ(ksm_remove(self->area), 0);
		munmap(p, HUGE_SIZE);
		munmap(small, HUGE_SIZE);
	}
}

/* Partners that are gone do not count; never are there enough at one time. */
TEST_F(huge, partners_come_and_go)
{
	enum { THRESHOLD = 64, PART = 40 };
	char *p = ksm_mmap_huge(1), *small = ksm_mmap(HUGE_PAGES);
	long long splits = ksm_stat("thp_splits");

	ASSERT_EQ(set_threshold(THRESHOLD), 0);
	ksm_fill(p, HUGE_PAGES, 83);
	ksm_fill(small, HUGE_PAGES, 84);
	ASSERT_EQ(ksm_register(self->area, p, HUGE_PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, small, HUGE_PAGES), 0);
	for (int part = 0; part < 3; part++) {
		for (int i = 0; i < HUGE_PAGES; i++)
			ksm_fill_page(ksm_page(small, i), i / PART == part ? 83 : 85 + part, i);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits) TH_LOG("part %d", part);
	}
	/* Nor those of contents that it does not hold any more. */
	for (int part = 0; part < 3; part++) {
		ksm_fill(p, HUGE_PAGES, 90 + part);
		for (int i = 0; i < HUGE_PAGES; i++)
			ksm_fill_page(ksm_page(small, i), i / PART == part ? 90 + part : 84, i);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits) TH_LOG("part %d", part);
	}
	EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE_PAGES);
}

TEST_F(huge, zero)
{
	enum { HUGE = 4 };
	char *p = ksm_mmap_huge(HUGE);
	long long splits = ksm_stat("thp_splits");
	long free;

	memset(p, 1, HUGE * HUGE_SIZE);
	memset(p, 0, HUGE * HUGE_SIZE);
	free = ksm_memfree();
	ASSERT_EQ(ksm_register(self->area, p, HUGE * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("thp_splits"), splits + HUGE);
	EXPECT_EQ(ksm_distinct(0, p, HUGE * HUGE_PAGES), 1);
	EXPECT_EQ(ksm_pfn(0, p), ksm_zero_pfn());
	EXPECT_EQ(ksm_smaps(p, "Rss"), 0);
	EXPECT_TRUE(ksm_wait_memfree(free + HUGE * HUGE_PAGES - 128));
	EXPECT_EQ(ksm_stat("zero_pages"), HUGE * HUGE_PAGES);
	EXPECT_EQ(ksm_wrong_zero(p, HUGE * HUGE_PAGES), 0);
}

TEST_HARNESS_MAIN
