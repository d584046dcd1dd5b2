// SPDX-License-Identifier: GPL-2.0-only
/*
 * thp_test.c - huge pages under a region
 *
 * Those whose contents nobody else has stay whole. Those with equal contents, or zeros, are
 * split and merged, whatever is on the other side. Nothing is lost of those that are
 * registered in part, shared since a fork, or mapped by small pieces.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "ksm_harness.h"

#define N 64
#define HUGE_PAGES KSM_HUGE_PAGES
#define HUGE_SIZE KSM_HUGE_SIZE

/* Unique contents: not worth a split. */
TEST_F(device, thp_unique)
{
	enum { HUGE = 4 };
	char *p = ksm_mmap_huge(HUGE);
	uint64_t before[HUGE];

	ksm_fill(p, HUGE * HUGE_PAGES, 60);
	for (int i = 0; i < HUGE; i++)
		before[i] = ksm_pfn(0, p + i * HUGE_SIZE);
	ASSERT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE * HUGE_PAGES);
	ASSERT_EQ(ksm_register(self->area, p, HUGE * HUGE_PAGES), 0);
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE * HUGE_PAGES);
	for (int i = 0; i < HUGE; i++)
		EXPECT_EQ(ksm_pfn(0, p + i * HUGE_SIZE), before[i]);
	EXPECT_EQ(ksm_wrong(p, HUGE * HUGE_PAGES, 60), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_unshared"), HUGE * HUGE_PAGES);
}

/* Equal contents: split and merged, whatever is on the other side. */
TEST_F(device, thp_duplicates)
{
	char *p = ksm_mmap_huge(2), *small = ksm_mmap(HUGE_PAGES);

	ksm_fill(p, HUGE_PAGES, 61);
	ksm_fill(p + HUGE_SIZE, HUGE_PAGES, 61);
	ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, p, 0, p + HUGE_SIZE, HUGE_PAGES), HUGE_PAGES);
	EXPECT_EQ(ksm_distinct(0, p, HUGE_PAGES), HUGE_PAGES);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 61), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 61), 0);
	EXPECT_STATS(HUGE_PAGES, HUGE_PAGES, 0, 0, 0);

	ksm_fill(small, HUGE_PAGES, 61);
	ASSERT_EQ(ksm_register(self->area, small, HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, p, 0, small, HUGE_PAGES), HUGE_PAGES);

	ksm_fill(p, HUGE_PAGES, 62);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 62), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 61), 0);
	EXPECT_EQ(ksm_wrong(small, HUGE_PAGES, 61), 0);
}

TEST_F(device, thp_zero)
{
	char *p = ksm_mmap_huge(1);
	long free = ksm_memfree();

	memset(p, 1, HUGE_SIZE);
	memset(p, 0, HUGE_SIZE);
	ASSERT_EQ(ksm_register(self->area, p, HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, p, HUGE_PAGES), 1);
	EXPECT_EQ(ksm_pfn(0, p), ksm_zero_pfn());
	/* Not counted: since 6.12 the kernel itself maps it when it splits. */
	EXPECT_EQ(ksm_wrong_zero(p, HUGE_PAGES), 0);
	EXPECT_GE(ksm_memfree() - free, HUGE_PAGES - 64);
	ksm_fill(p, HUGE_PAGES, 63);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 63), 0);
}

/* A region that covers part of a huge page only; another part is not ours to split for. */
TEST_F(device, thp_partly_registered)
{
	char *p = ksm_mmap_huge(1), *small = ksm_mmap(N);
	uint64_t before[HUGE_PAGES];

	ksm_fill(p, HUGE_PAGES, 64);
	ksm_fill(small, N, 64);
	ksm_pfns(0, p, HUGE_PAGES, before);
	ASSERT_EQ(ksm_register(self->area, p, N), 0);
	ASSERT_EQ(ksm_register(self->area, small, N), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	/* Merged or not is the driver's choice; contents and the rest are not. */
	EXPECT_EQ(ksm_moved(0, ksm_page(p, N), HUGE_PAGES - N, before + N), 0);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 64), 0);
	EXPECT_EQ(ksm_wrong(small, N, 64), 0);
	ksm_fill(small, N, 65);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 64), 0);
}

/* A huge page that parent and child share since a fork. */
TEST_F(device, thp_forked)
{
	char *p = ksm_mmap_huge(2);
	struct ksm_child c;

	ksm_fill(p, HUGE_PAGES, 66);
	ksm_fill(p + HUGE_SIZE, HUGE_PAGES, 66);
	ksm_spawn(&c);
	ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, p, HUGE_PAGES, 66), 0);
	ksm_fill(p, HUGE_PAGES, 67);
	ksm_call(&c, ksm_fn_fill, p + HUGE_SIZE, HUGE_PAGES, 68);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 67), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, p, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, p + HUGE_SIZE, HUGE_PAGES, 68), 0);
	ksm_end(&c);
}

/* Huge pages whose page table maps them in small pieces. */
TEST_F(device, thp_mapped_by_pieces)
{
	char *p = ksm_mmap_huge(2);

	ksm_fill(p, HUGE_PAGES, 80);
	ksm_fill(p + HUGE_SIZE, HUGE_PAGES, 80);
	ASSERT_EQ(mprotect(ksm_page(p, 7), PGSZ, PROT_READ), 0);
	ASSERT_EQ(mprotect(ksm_page(p + HUGE_SIZE, 9), PGSZ, PROT_READ), 0);
	/* Part of it is unmapped: the folio is larger than what is mapped of it. */
	ASSERT_EQ(munmap(ksm_page(p, HUGE_PAGES - N), N * PGSZ), 0);
	ASSERT_TRUE(ksm_pfn_is(ksm_pfn(0, p), KPF_BIT_THP));
	ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, p, 0, p + HUGE_SIZE, HUGE_PAGES - N), HUGE_PAGES - N);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES - N, 80), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 80), 0);
	ASSERT_EQ(mprotect(ksm_page(p, 7), PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(p, HUGE_PAGES - N, 81);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES - N, 81), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 80), 0);
}

TEST_HARNESS_MAIN
