// SPDX-License-Identifier: GPL-2.0-only
/*
 * vma_test.c - what lies under a region changes
 *
 * A region is only an address range. Mappings under it are unmapped, moved, resized,
 * replaced and split, and there are holes in it. Contents stay right, what is mapped there
 * next is not taken for what was there before, and it merges like any other memory.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_twins.h"

#define N 64
#define HUGE_PAGES KSM_HUGE_PAGES

/* How many pages of the range are the driver's: mapped, and on no LRU list. */
static size_t count_shared(const char *addr, size_t npages)
{
	size_t n = 0;

	/* Others may be on their way to one. */
	ksm_drain_batches();
	for (size_t i = 0; i < npages; i++) {
		uint64_t pfn = ksm_pfn(0, ksm_page(addr, i));

		n += pfn && !ksm_pfn_is(pfn, KPF_BIT_LRU) &&
		     !ksm_pfn_is(pfn, KPF_BIT_ZERO_PAGE);
	}
	return n;
}

/* ---- mappings change under a region ---- */

TEST_F(device, munmap_and_map_again)
{
	char *a, *b, *p;

	make_twins(self->area, &a, &b, N, 1);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	/* A hole in the middle, then all of it. */
	ASSERT_EQ(munmap(ksm_page(a, N / 4), N / 2 * PGSZ), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	ASSERT_EQ(munmap(a, N * PGSZ), 0);
	/* Those whose last twin went before the scan may be anonymous again. */
	EXPECT_GE(count_shared(b, N), N / 2);
	EXPECT_EQ(ksm_stat("pages_shared"), (long long)count_shared(b, N));
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
	EXPECT_EQ(ksm_stat("pages_registered"), 2 * N);

	/* Other contents at the same addresses: nothing of the old may be believed. */
	p = mmap(a, N * PGSZ, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	ASSERT_EQ(p, a);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_NOHUGEPAGE), 0);
	ksm_fill(a, N, 2);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
	ksm_fill(a, N, 1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
}

/*
 * The mapping is replaced between two scans, so that a page is clean, at the same
 * address, perhaps in the same frame, and yet another one.
 */
TEST_F(device, replaced_between_scans)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 3);
	ksm_fill(a, N, 4);
	for (int round = 0; round < 12; round++) {
		uint64_t seed = round % 2 ? 3 : 5 + round;

		ASSERT_EQ(mmap(a, N * PGSZ, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), a);
		ASSERT_EQ(madvise(a, N * PGSZ, MADV_NOHUGEPAGE), 0);
		ksm_fill(a, N, seed);
		ksm_passes(&self->k, 1 + round % 4);
		EXPECT_EQ(ksm_wrong(a, N, seed), 0);
		EXPECT_EQ(ksm_wrong(b, N, 3), 0);
		if (seed != 3) {
			EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
		}
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
}

/* mremap brings clean pages with other contents to an address already scanned. */
TEST_F(device, pages_change_places)
{
	char *a, *b, *spare;

	make_twins(self->area, &a, &b, N, 6);
	ksm_fill(a, N, 7);
	ksm_passes(&self->k, 2);
	/* a and b are stable and different; now b's pages come to a's place. */
	spare = ksm_mmap(N);
	ASSERT_EQ(mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, spare), spare);
	ASSERT_EQ(mremap(b, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	ASSERT_EQ(mmap(b, N * PGSZ, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), b);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_NOHUGEPAGE), 0);
	ksm_fill(b, N, 7);
	/* Of frames that are alike but for some bits it takes a page its turn to be read anew. */
	ksm_passes(&self->k, KSM_HUGE_PAGES + 4);
	EXPECT_EQ(ksm_wrong(a, N, 6), 0);
	EXPECT_EQ(ksm_wrong(b, N, 7), 0);
	EXPECT_EQ(ksm_wrong(spare, N, 7), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	ksm_fill(b, N, 6);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(spare, N, 7), 0);
}

TEST_F(device, mremap_move)
{
	char *a, *b, *to = ksm_mmap(N);
	uint64_t pfns[N];

	make_twins(self->area, &a, &b, N, 8);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	/* The merged pages moved along and are as private as before. */
	EXPECT_EQ(ksm_moved(0, to, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(to, N, 8), 0);
	ksm_merge_all(&self->k);
	ksm_fill(to, N / 2, 9);
	EXPECT_EQ(ksm_wrong(to, N / 2, 9), 0);
	EXPECT_EQ(ksm_wrong(b, N, 8), 0);

	/* Out of the region, so what was written stays private; back, it merges. */
	ksm_fill(to, N, 8);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, to, 0, b, N), 0);
	ASSERT_EQ(mremap(to, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 8), 0);
}

TEST_F(device, mremap_resize)
{
	char *a, *b, *moved;
	uint64_t pfns[N];

	make_twins(self->area, &a, &b, N, 10);
	ksm_merge_all(&self->k);
	ksm_pfns(0, b, N, pfns);
	/* It cannot grow in place: the page behind it is taken. */
	moved = mremap(a, N * PGSZ, 2 * N * PGSZ, MREMAP_MAYMOVE);
	ASSERT_NE(moved, MAP_FAILED);
	EXPECT_EQ(ksm_moved(0, moved, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(moved, N, 10), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(moved, N), N), 0);
	ASSERT_EQ(mremap(moved, 2 * N * PGSZ, N / 2 * PGSZ, 0), moved);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(moved, N / 2, 10), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	ksm_fill(moved, N / 2, 11);
	EXPECT_EQ(ksm_wrong(b, N, 10), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
}

/* MREMAP_DONTUNMAP leaves the old range mapped and empty. */
TEST_F(device, mremap_dontunmap)
{
	char *a, *b, *moved;

	make_twins(self->area, &a, &b, N, 12);
	ksm_merge_all(&self->k);
	moved = mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(moved, MAP_FAILED);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, a, N), 0);
	EXPECT_EQ(ksm_wrong(moved, N, 12), 0);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);
	ksm_fill(a, N, 13);
	ksm_fill(moved, N, 14);
	EXPECT_EQ(ksm_wrong(a, N, 13), 0);
	EXPECT_EQ(ksm_wrong(b, N, 12), 0);
	EXPECT_EQ(ksm_wrong(moved, N, 14), 0);
}

/* One region over as many VMAs as it has pages. */
TEST_F(device, many_vmas)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 15);
	for (int i = 0; i < N; i += 2)
		ASSERT_EQ(mprotect(ksm_page(a, i), PGSZ, PROT_READ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	for (int i = 0; i < N; i += 4)
		ASSERT_EQ(mprotect(ksm_page(b, i), 2 * PGSZ, PROT_READ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(mprotect(b, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(a, N, 16);
	EXPECT_EQ(ksm_wrong(a, N, 16), 0);
	EXPECT_EQ(ksm_wrong(b, N, 15), 0);
}

/* Holes between pages, a region that begins and ends in one, and one that is all hole. */
TEST_F(device, holes)
{
	char *a, *b, *c = ksm_mmap(3 * N);

	make_twins(self->area, &a, &b, N, 17);
	for (int i = 1; i < N; i += 2)
		ASSERT_EQ(munmap(ksm_page(a, i), PGSZ), 0);
	ksm_fill(ksm_page(c, N), N, 17);
	ASSERT_EQ(munmap(c, N * PGSZ), 0);
	ASSERT_EQ(munmap(ksm_page(c, 2 * N), N * PGSZ), 0);
	ASSERT_EQ(ksm_register(self->area, c, 3 * N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	EXPECT_EQ(ksm_same_frames(0, ksm_page(c, N), 0, b, N), N);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2 + N);
	for (int i = 0; i < N; i += 2)
		EXPECT_TRUE(ksm_page_is(ksm_page(a, i), 17, i));

	ASSERT_EQ(munmap(ksm_page(c, N), N * PGSZ), 0);
	ASSERT_EQ(munmap(b, N * PGSZ), 0);
	for (int i = 0; i < N; i += 2)
		ASSERT_EQ(munmap(ksm_page(a, i), PGSZ), 0);
	/* All that is registered is unmapped; a scan still comes to its end. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_registered"), 5 * N);
	EXPECT_EQ(ksm_stat("regions"), 3);
}

/* Regions that are not cut where page tables are; one page; more than 2 MiB. */
TEST_F(device, odd_sizes)
{
	enum { PAGES = 2 * HUGE_PAGES + 37 };
	char *a, *b, *one = ksm_mmap(1);

	make_twins(self->area, &a, &b, PAGES, 18);
	ksm_fill_page(one, 18, 5);
	ASSERT_EQ(ksm_register(self->area, one, 1), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_EQ(ksm_distinct(0, a, PAGES), PAGES);
	EXPECT_EQ(ksm_pfn(0, one), ksm_pfn(0, ksm_page(a, 5)));
	EXPECT_EQ(ksm_wrong(a, PAGES, 18), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 18), 0);
	EXPECT_STATS(PAGES, PAGES + 1, 0, 0, 0);
}

TEST_F(device, heap)
{
	char *heap = sbrk(0), *twin = ksm_mmap(N);

	heap += -(uintptr_t)heap % PGSZ;
	ASSERT_EQ(brk(heap + 2 * N * PGSZ), 0);
	ksm_fill(heap, N, 19);
	ksm_fill(twin, N, 19);
	ASSERT_EQ(ksm_register(self->area, heap, 2 * N), 0);
	ASSERT_EQ(ksm_register(self->area, twin, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, heap, 0, twin, N), N);
	ASSERT_EQ(brk(heap + N / 2 * PGSZ), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(brk(heap + 2 * N * PGSZ), 0);
	EXPECT_EQ(ksm_wrong(heap, N / 2, 19), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(heap, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_wrong(twin, N, 19), 0);
}

/* Advice about fork still means the same for merged pages. */
TEST_F(device, fork_advice)
{
	struct ksm_child c;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 20);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_DONTFORK), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_WIPEONFORK), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_DONTDUMP), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ksm_spawn(&c);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong_zero, b, N, 0), 0);
	EXPECT_EQ(ksm_distinct(c.pid, a, N), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_fill, b, N, 21), 0);
	EXPECT_EQ(ksm_wrong(a, N, 20), 0);
	EXPECT_EQ(ksm_wrong(b, N, 20), 0);
	ksm_end(&c);
}

TEST_HARNESS_MAIN
