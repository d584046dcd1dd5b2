// SPDX-License-Identifier: GPL-2.0-only
/*
 * swap_test.c - memory that may be swapped out, that may not, and that is given up
 *
 * Swapped-out, swap-cached, locked and discarded pages keep their contents.
 *
 * Needs the modules zram and loop in the VM: these tests do not skip.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_access.h"

#ifndef MADV_PAGEOUT
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif

/* ---- locked memory ---- */

TEST_F(device, mlock)
{
	enum { PAGES = 256 };
	long locked = ksm_meminfo("Mlocked"), slack = 48;
	char *a, *b, *c;

	make_twins(self->area, &a, &b, PAGES, 70);
	c = ksm_mmap(PAGES);
	ksm_fill(c, PAGES, 70);
	ASSERT_EQ(ksm_register(self->area, c, PAGES), 0);

	/* a is locked before the merge, b after it, c never. */
	ASSERT_EQ(mlock(a, PAGES * PGSZ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	ASSERT_EQ(mlock(b, PAGES * PGSZ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, PAGES, 70), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 70), 0);
	EXPECT_EQ(ksm_wrong(c, PAGES, 70), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, PAGES), PAGES);

	/* Written while locked, and merged once more. */
	ksm_fill(a, PAGES, 71);
	ksm_fill(b, PAGES, 71);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_EQ(ksm_wrong(a, PAGES, 71), 0);
	ASSERT_EQ(munlock(a, PAGES * PGSZ), 0);
	ksm_merge_all(&self->k);
	ksm_fill(a, PAGES, 72);
	EXPECT_EQ(ksm_wrong(a, PAGES, 72), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 71), 0);
	EXPECT_EQ(ksm_wrong(c, PAGES, 70), 0);

	/* Nothing may stay locked when all of it is gone. */
	munmap(a, PAGES * PGSZ);
	munmap(b, PAGES * PGSZ);
	munmap(c, PAGES * PGSZ);
	EXPECT_LE(ksm_meminfo("Mlocked"), locked + slack);
	EXPECT_GE(ksm_meminfo("Mlocked"), locked - slack);
}

TEST_F(device, mlockall)
{
	char *a, *b, *c;

	make_twins(self->area, &a, &b, N, 73);
	ASSERT_EQ(mlockall(MCL_CURRENT | MCL_FUTURE), 0);
	c = ksm_mmap(N);
	ksm_fill(c, N, 73);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, N), N);
	ksm_fill(b, N, 74);
	EXPECT_EQ(ksm_wrong(a, N, 73), 0);
	EXPECT_EQ(ksm_wrong(b, N, 74), 0);
	ASSERT_EQ(munlockall(), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, N, 73), 0);
	EXPECT_EQ(ksm_wrong(b, N, 74), 0);
	EXPECT_EQ(ksm_wrong(c, N, 73), 0);
}

/* ---- advice ---- */

TEST_F(device, dontneed)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 75);
	ksm_merge_all(&self->k);
	ASSERT_EQ(madvise(a, N / 2 * PGSZ, MADV_DONTNEED), 0);
	EXPECT_EQ(ksm_distinct(0, a, N / 2), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	EXPECT_EQ(ksm_wrong_zero(a, N / 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 75), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_DONTNEED), 0);
	EXPECT_EQ(ksm_wrong_zero(b, N), 0);
	ksm_fill(b, N, 76);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong_zero(a, N / 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 76), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
}

TEST_F(device, cold)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 77);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_COLD), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_COLD), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 77), 0);
	EXPECT_EQ(ksm_wrong(b, N, 77), 0);
}

/*
 * A page given up with MADV_FREE holds its contents or zeroes, no third thing;
 * what is written to it afterwards stays.
 */
TEST_F(device, lazyfree)
{
	size_t other = 0;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 78);
	/* Half of it unmerged, half of it merged. */
	ASSERT_EQ(madvise(a, N / 2 * PGSZ, MADV_FREE), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(madvise(ksm_page(a, N / 2), N / 2 * PGSZ, MADV_FREE), 0);
	ksm_merge_all(&self->k);
	for (int i = 0; i < N; i++)
		other += !ksm_page_is(ksm_page(a, i), 78, i) &&
			 !ksm_page_is_zero(ksm_page(a, i));
	EXPECT_EQ(other, 0);
	EXPECT_EQ(ksm_wrong(b, N, 78), 0);

	/* Freed, written, scanned (which may clean the pte), reclaimed. */
	ksm_fill(a, N, 79);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_FREE), 0);
	ksm_fill(a, N, 80);
	for (int i = 0; i < 3; i++) {
		ksm_passes(&self->k, 1);
		madvise(a, N * PGSZ, MADV_PAGEOUT);
		EXPECT_EQ(ksm_wrong(a, N, 80), 0);
	}
	EXPECT_EQ(ksm_wrong(b, N, 78), 0);
}

/* ---- swap ---- */

#define SWAP_PAGES 4096

FIXTURE(swap)
{
	struct ksm k;
	int area;
	struct ksm_swap swap;
};

FIXTURE_VARIANT(swap)
{
	bool loop;
};

/* Swapped in by reading directly into the page; the swap cache is left out. */
FIXTURE_VARIANT_ADD(swap, zram) { .loop = false };
/* An ordinary device: pages stay in the swap cache after they were read. */
FIXTURE_VARIANT_ADD(swap, loop) { .loop = true };

FIXTURE_SETUP(swap)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	ksm_swap_on(&self->swap, variant->loop, SWAP_PAGES);
}

FIXTURE_TEARDOWN(swap)
{
	ksm_swap_off(&self->swap);
	close(self->area);
	ksm_finish(&self->k);
}

static size_t count_swapcache(const void *addr, size_t npages)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += ksm_pfn_is(ksm_pfn(0, ksm_page(addr, i)), KPF_BIT_SWAPCACHE);
	return n;
}

static void *scan_once(void *arg)
{
	ksm_passes(arg, 1);
	return NULL;
}

/* Swapped-out pages stay out; brought back they merge like others. */
TEST_F(swap, swapped_out)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 90);
	ASSERT_EQ(ksm_page_out(a, N), N);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_swapped(a, N), N);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_wrong(a, N, 90), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 90), 0);
	EXPECT_EQ(ksm_wrong(b, N, 90), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
}

/* Merged pages cannot go out; unmerged ones can again. */
TEST_F(swap, merged_stay)
{
	uint64_t pfns[N];
	char *a, *b;

	make_twins(self->area, &a, &b, N, 91);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_PAGEOUT), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_PAGEOUT), 0);
	EXPECT_EQ(ksm_swapped(a, N), 0);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(a, N, 91), 0);

	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_page_out(a, N), N);
	/* An unmerge does not bring in what is swapped out. */
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_swapped(a, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 91), 0);
	EXPECT_EQ(ksm_wrong(b, N, 91), 0);
}

/*
 * The scan may clean a dirty pte only when it tells the page: else reclaim
 * believes that the copy in swap is good. Unique pages and ones with a twin,
 * after any number of passes.
 */
TEST_F(swap, dirty_not_lost)
{
	enum { PAGES = 256 };
	char *a = ksm_mmap(PAGES);

	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	for (int passes = 0; passes < 5; passes++) {
		/* Out and in again, so that there is an old copy in swap. */
		ksm_fill(a, PAGES, 100 + passes);
		ksm_passes(&self->k, passes);
		EXPECT_EQ(ksm_page_out(a, PAGES), PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 100 + passes), 0);
		/* In the loop variant the pages now are clean and in the swap cache. */
		if (variant->loop) {
			EXPECT_GT(count_swapcache(a, PAGES), PAGES / 2);
		}

		ksm_fill(a, PAGES, 200 + passes);
		ksm_passes(&self->k, passes);
		ksm_page_out(a, PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 200 + passes), 0) TH_LOG("%d passes", passes);
	}
}

/* The same when the pages were cleaned for a merge that then did not happen. */
TEST_F(swap, dirty_not_lost_after_failed_merge)
{
	struct iovec iov;
	char *a, *b;
	int fds[2];

	make_twins(self->area, &a, &b, 8, 110);
	ASSERT_EQ(ksm_page_out(a, 8), 8);
	EXPECT_EQ(ksm_wrong(a, 8, 110), 0);
	ksm_fill(a, 8, 111);
	ksm_fill(b, 8, 111);
	ASSERT_EQ(pipe(fds), 0);
	iov = (struct iovec){ a, 8 * PGSZ };
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)(8 * PGSZ));
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, 8), 0);
	close(fds[0]);
	close(fds[1]);
	ksm_page_out(a, 8);
	ksm_page_out(b, 8);
	EXPECT_EQ(ksm_wrong(a, 8, 111), 0);
	EXPECT_EQ(ksm_wrong(b, 8, 111), 0);
}

/*
 * And when the merge fails at the comparison, because a page was written after
 * it was hashed: by then its pte is clean. Each page is written once while the
 * pass that would merge it runs.
 */
TEST_F(swap, dirty_not_lost_after_late_write)
{
	enum { PAGES = 256, ROUNDS = 6 };
	uint64_t begin, length;
	char *a, *b;

	make_twins(self->area, &a, &b, PAGES, 115);
	/* How long a pass takes that merges: the second. */
	ksm_passes(&self->k, 1);
	begin = now_us();
	ksm_passes(&self->k, 1);
	length = now_us() - begin;
	for (int round = 0; round < ROUNDS; round++) {
		size_t wrong = 0;
		pthread_t thread;

		/* Clean pages in the swap cache, then dirty ptes over them. */
		ksm_fill(a, PAGES, 115);
		ksm_fill(b, PAGES, 115);
		ASSERT_EQ(ksm_unmerge(self->area), 0);
		ASSERT_EQ(ksm_page_out(a, PAGES), PAGES);
		ASSERT_EQ(ksm_wrong(a, PAGES, 115), 0);
		ksm_fill(a, PAGES, 116 + round);
		ksm_fill(b, PAGES, 116 + round);
		ksm_passes(&self->k, 1);

		begin = now_us();
		ASSERT_EQ(pthread_create(&thread, NULL, scan_once, &self->k), 0);
		for (int i = 0; i < PAGES; i++) {
			/* In no order, at all times of the pass. */
			int page = (i * 37 + round) % PAGES;

			while (now_us() < begin + 2 * length * i / PAGES)
				;
			((uint64_t *)ksm_page(a, page))[7] = i;
		}
		pthread_join(thread, NULL);
		ksm_page_out(a, PAGES);
		for (int i = 0; i < PAGES; i++)
			wrong += ((uint64_t *)ksm_page(a, (i * 37 + round) % PAGES))[7] !=
				 (uint64_t)i;
		EXPECT_EQ(wrong, 0) TH_LOG("round %d", round);
		EXPECT_EQ(ksm_wrong(b, PAGES, 116 + round), 0);
	}
}

/* A page in the swap cache has one reference more, and merges all the same. */
TEST_F(swap, swapcache)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 120);
	ASSERT_EQ(ksm_page_out(a, N), N);
	ASSERT_EQ(ksm_page_out(b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 120), 0);
	EXPECT_EQ(ksm_wrong(b, N, 120), 0);
	if (variant->loop) {
		EXPECT_GT(count_swapcache(a, N), N / 2);
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 120), 0);
	ksm_fill(a, N, 121);
	EXPECT_EQ(ksm_wrong(a, N, 121), 0);
	EXPECT_EQ(ksm_wrong(b, N, 120), 0);
}

/* Swap entries shared by parent and child, brought in by one or both. */
TEST_F(swap, forked)
{
	struct ksm_child c;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 130);
	ASSERT_EQ(ksm_page_out(a, N), N);
	ksm_spawn(&c);
	EXPECT_EQ(ksm_wrong(a, N, 130), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N / 2, 130), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, N, 130), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 130), 0);
	ksm_fill(a, N, 131);
	ksm_merge_all(&self->k);
	ksm_page_out(a, N);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 130), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 130), 0);
	EXPECT_EQ(ksm_wrong(a, N, 131), 0);
	ksm_end(&c);
	EXPECT_EQ(ksm_wrong(b, N, 130), 0);
}

TEST_F(swap, lazyfree)
{
	size_t other = 0;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 140);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_FREE), 0);
	ksm_passes(&self->k, 1);
	madvise(a, N * PGSZ, MADV_PAGEOUT);
	ksm_passes(&self->k, 3);
	for (int i = 0; i < N; i++)
		other += !ksm_page_is(ksm_page(a, i), 140, i) &&
			 !ksm_page_is_zero(ksm_page(a, i));
	EXPECT_EQ(other, 0);
	for (int passes = 0; passes < 5; passes++) {
		ASSERT_EQ(madvise(a, N * PGSZ, MADV_FREE), 0);
		ksm_fill(a, N, 141 + passes);
		ksm_passes(&self->k, passes);
		madvise(a, N * PGSZ, MADV_PAGEOUT);
		EXPECT_EQ(ksm_wrong(a, N, 141 + passes), 0) TH_LOG("%d passes", passes);
	}
	EXPECT_EQ(ksm_wrong(b, N, 140), 0);
}

TEST_HARNESS_MAIN
