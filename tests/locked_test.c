// SPDX-License-Identifier: GPL-2.0-only
/*
 * locked_test.c - pages of zeros in memory that is locked
 *
 * mlock() promises that pages stay resident, and programs look: the kernel's zero page
 * is in nobody's Rss. So in locked memory pages of zeros are merged with a page that
 * counts. Elsewhere they go to the zero page.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_told.h"

#define N 128

static char *map_locked(size_t npages)
{
	char *p = ksm_mmap(npages);
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_MEMLOCK, &all);
	if (mlock(p, npages * PGSZ))
		ksm_die("mlock: %s", strerror(errno));
	return p;
}

static size_t count_zero_page(const char *addr, size_t npages)
{
	static uint64_t zero;
	size_t n = 0;

	if (!zero)
		zero = ksm_zero_pfn();
	for (size_t i = 0; i < npages; i++)
		n += ksm_pfn(0, ksm_page(addr, i)) == zero;
	return n;
}

TEST_F(device, resident)
{
	char *a = map_locked(N), *b = ksm_mmap(N);
	long rss = ksm_status(0, "VmRSS");

	ksm_fn_zero((long)a, N, 0, 0);
	ksm_fn_zero((long)b, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N);
	EXPECT_EQ(ksm_smaps(a, "Locked"), N);
	ksm_merge_all(&self->k);
	EXPECT_EQ(count_zero_page(a, N), 0);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N);
	EXPECT_EQ(ksm_smaps(a, "Anonymous"), N);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);
	/* One frame for all of them: they are merged. */
	EXPECT_EQ(ksm_distinct(0, a, N), 1);
	EXPECT_EQ(told_flag(0, a, N, KPF_BIT_MLOCKED), (size_t)N);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);

	/* Memory that is not locked goes its way beside it, and back. */
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(count_zero_page(b, N), N);
	EXPECT_EQ(ksm_smaps(b, "Rss"), 0);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N);
	ksm_fill(a, N / 2, 1);
	EXPECT_EQ(ksm_wrong(a, N / 2, 1), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(a, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N);
	EXPECT_EQ(ksm_smaps(b, "Rss"), N);
	EXPECT_GE(ksm_status(0, "VmRSS"), rss + N);
}

/* At once, and more of them than one page may have mappings. */
TEST_F(device, many)
{
	enum { PAGES = 3 * KSM_SHARE_LIMIT };
	char *a = map_locked(PAGES);
	uint64_t merged;

	ksm_fn_zero((long)a, PAGES, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	ASSERT_EQ(ksm_merge_range(self->area, a, PAGES, &merged), 0);
	ksm_merge_all(&self->k);
	ksm_merge_held(&self->k);
	EXPECT_EQ(ksm_smaps(a, "Rss"), PAGES);
	EXPECT_EQ(count_zero_page(a, PAGES), 0);
	EXPECT_LE(ksm_distinct(0, a, PAGES), PAGES / KSM_SHARE_LIMIT + 2);
	EXPECT_EQ(ksm_wrong_zero(a, PAGES), 0);
}

/* One page of zeros has no other to be merged with. */
TEST_F(device, one)
{
	char *a = map_locked(1);

	ksm_fn_zero((long)a, 1, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, 1), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(count_zero_page(a, 1), 0);
	EXPECT_EQ(ksm_smaps(a, "Rss"), 1);
	EXPECT_TRUE(ksm_page_is_zero(a));
}

/* Locked when it was merged already: mlock() itself brings pages, and they stay. */
TEST_F(device, locked_afterwards)
{
	char *a = ksm_mmap(N);
	long locked;

	ksm_fn_zero((long)a, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(count_zero_page(a, N), N);
	ASSERT_EQ(mlock(a, N * PGSZ), 0);
	locked = ksm_smaps(a, "Rss");
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_smaps(a, "Rss"), locked);
	/* Unlocked, pages of zeros are the zero page's again once they were written. */
	ASSERT_EQ(munlock(a, N * PGSZ), 0);
	ksm_fn_zero((long)a, N, 0, 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(count_zero_page(a, N), N);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);
}

/* All that is mapped from now on, as a program that wants no page faults does. */
TEST_F(device, locked_all)
{
	char *a = ksm_mmap(1);

	/* Learns which frame it is; nothing maps it once all is locked. */
	EXPECT_EQ(count_zero_page(a, 1), 0);
	ASSERT_EQ(mlockall(MCL_CURRENT | MCL_FUTURE), 0);
	a = ksm_mmap(N);
	ksm_fn_zero((long)a, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N);
	EXPECT_EQ(count_zero_page(a, N), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), 1);
	ASSERT_EQ(munlockall(), 0);
}

/* Only locked once it is touched: what is not there stays so. */
TEST_F(device, locked_on_fault)
{
	char *a = ksm_mmap(N);

	if (mlock2(a, N * PGSZ, MLOCK_ONFAULT))
		ksm_die("mlock2: %s", strerror(errno));
	ksm_fn_zero((long)a, N / 2, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_smaps(a, "Rss"), N / 2);
	EXPECT_EQ(ksm_distinct(0, a, N), 1);
	EXPECT_EQ(told_pagemap(0, a, N / 2, PM_PRESENT, PM_PRESENT), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_PRESENT, 0), N / 2);
}

TEST_HARNESS_MAIN
