// SPDX-License-Identifier: GPL-2.0-only
/*
 * merge_test.c - equal pages are merged, others are not
 *
 * Proven by page frame numbers; the driver's counters are compared with them, after scans
 * that the test itself ran. Within a process and between several, joining what is shared
 * already, pages of zeroes, the bound on sharing, pages that change all the time, and
 * random contents many times over. How merging is undone is in unmerge_test.c.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64

TEST_F(device, two_processes)
{
	char *buf = ksm_mmap(N);
	struct ksm_child c;
	uint64_t pfn;

	ksm_spawn(&c);
	ksm_fill(buf, N, 1);
	ksm_call(&c, ksm_fn_fill, buf, N, 1);
	ASSERT_EQ(ksm_same_frames(0, buf, c.pid, buf, N), 0);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, buf, N), 0);
	EXPECT_EQ(ksm_stat("areas"), 2);
	EXPECT_EQ(ksm_stat("regions"), 2);
	EXPECT_EQ(ksm_stat("pages_registered"), 2 * N);

	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, buf, c.pid, buf, N), N);
	EXPECT_EQ(ksm_distinct(0, buf, N), N);
	EXPECT_EQ(ksm_wrong(buf, N, 1), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, buf, N, 1), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
	EXPECT_EQ(ksm_stat("profit_bytes"),
		  (long long)(N * PGSZ) - ksm_stat("metadata_bytes"));

	/*
	 * Anonymous as before. That they are not pages of mm/ksm.c is not to be seen here:
	 * since 6.8 KPF_KSM is set for whatever is anonymous.
	 */
	pfn = ksm_pfn(0, buf);
	EXPECT_EQ(ksm_kpagecount(pfn), 2);
	EXPECT_TRUE(ksm_pfn_is(pfn, KPF_BIT_ANON));
	ksm_end(&c);
}

TEST_F(device, one_process)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);

	ksm_fill(a, N, 2);
	ksm_fill(b, N, 2);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 2), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
}

TEST_F(device, only_registered_pages)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	uint64_t before[N];

	ksm_fill(a, N, 2);
	ksm_fill(b, N, 2);
	ksm_pfns(0, b, N, before);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	/* The middle of b only: its neighbours must not be taken along. */
	ASSERT_EQ(ksm_register(self->area, ksm_page(b, N / 4), N / 2), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	EXPECT_EQ(ksm_moved(0, b, N / 4, before), 0);
	EXPECT_EQ(ksm_moved(0, ksm_page(b, N / 4 * 3), N / 4, before + N / 4 * 3), 0);
	EXPECT_STATS(N / 2, N / 2, N / 2, 0, 0);
}

TEST_F(device, joins_existing)
{
	struct ksm_child c[3];
	char *buf = ksm_mmap(N);
	uint64_t pfns[N];

	for (int i = 0; i < 3; i++)
		ksm_spawn(&c[i]);
	for (int i = 0; i < 2; i++) {
		ksm_call(&c[i], ksm_fn_fill, buf, N, 3);
		ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, N), 0);
	}
	ksm_merge_all(&self->k);
	ksm_pfns(c[0].pid, buf, N, pfns);
	EXPECT_EQ(ksm_moved(c[1].pid, buf, N, pfns), 0);

	/* The one who comes later takes the frames that are there. */
	ksm_call(&c[2], ksm_fn_fill, buf, N, 3);
	ASSERT_GE(ksm_call(&c[2], ksm_fn_area_register, self->k.dev, buf, N), 0);
	ksm_merge_all(&self->k);
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(ksm_moved(c[i].pid, buf, N, pfns), 0);
		EXPECT_EQ(ksm_call(&c[i], ksm_fn_wrong, buf, N, 3), 0);
	}
	EXPECT_STATS(N, 2 * N, 0, 0, 0);

	/* And they outlive the one who gave them. */
	ksm_end(&c[0]);
	EXPECT_STATS(N, N, 0, 0, 0);
	ksm_end(&c[1]);
	EXPECT_EQ(ksm_moved(c[2].pid, buf, N, pfns), 0);
	EXPECT_EQ(ksm_call(&c[2], ksm_fn_wrong, buf, N, 3), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	ksm_end(&c[2]);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
}

TEST_F(device, different_pages)
{
	char *buf = ksm_mmap(4 * N);
	uint64_t before[4 * N];

	ksm_fill(buf, 4 * N, 4);
	ksm_pfns(0, buf, 4 * N, before);
	ASSERT_EQ(ksm_register(self->area, buf, 4 * N), 0);
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_moved(0, buf, 4 * N, before), 0);
	EXPECT_EQ(ksm_wrong(buf, 4 * N, 4), 0);
	EXPECT_STATS(0, 0, 4 * N, 0, 0);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
}

TEST_F(device, zero_pages)
{
	uint64_t zero_pfn = ksm_zero_pfn();
	char *buf = ksm_mmap(4 * N);
	long anon;

	ksm_fn_zero((long)buf, 4 * N, 0, 0);
	EXPECT_EQ(ksm_distinct(0, buf, 4 * N), 4 * N);
	anon = ksm_smaps(buf, "Rss");
	EXPECT_EQ(anon, 4 * N);
	ASSERT_EQ(ksm_register(self->area, buf, 4 * N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, buf, 4 * N), 1);
	EXPECT_EQ(ksm_pfn(0, buf), zero_pfn);
	EXPECT_TRUE(ksm_pfn_is(ksm_pfn(0, ksm_page(buf, N)), KPF_BIT_ZERO_PAGE));
	EXPECT_EQ(ksm_smaps(buf, "Rss"), 0);
	EXPECT_STATS(0, 0, 0, 0, 4 * N);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));

	/* The bound on sharing is not for the zero page; a write gives a private copy. */
	buf[0] = 'x';
	ksm_page(buf, N)[PGSZ - 1] = 'y';
	EXPECT_NE(ksm_pfn(0, buf), zero_pfn);
	EXPECT_NE(ksm_pfn(0, ksm_page(buf, N)), zero_pfn);
	EXPECT_EQ(buf[0], 'x');
	EXPECT_EQ(ksm_wrong_zero(buf, 4 * N), 2);
	EXPECT_EQ(ksm_smaps(buf, "Rss"), 2);
	buf[0] = 0;
	ksm_page(buf, N)[PGSZ - 1] = 0;
	EXPECT_EQ(ksm_wrong_zero(buf, 4 * N), 0);
	ksm_merge_all(&self->k);
	EXPECT_STATS(0, 0, 0, 0, 4 * N);
	EXPECT_EQ(ksm_distinct(0, buf, 4 * N), 1);
}

/* Untouched memory stays untouched: a scan populates nothing. */
TEST_F(device, unpopulated)
{
	char *buf = ksm_mmap(4 * N);

	buf[0] = 1;
	ASSERT_EQ(ksm_register(self->area, buf, 4 * N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, buf, 4 * N), 1);
	EXPECT_EQ(ksm_smaps(buf, "Rss"), 1);
	EXPECT_STATS(0, 0, 1, 0, 0);
}

TEST_F(device, share_limit)
{
	const size_t counts[] = { 256, 257, 1000 };

	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		size_t n = counts[i], frames = DIV_UP(n, KSM_SHARE_LIMIT);
		char *buf = ksm_mmap(n);
		uint64_t most = 0;

		ksm_fill_same(buf, n, 7);
		ASSERT_EQ(ksm_register(self->area, buf, n), 0);
		ksm_merge_all(&self->k);
		EXPECT_EQ(ksm_distinct(0, buf, n), frames);
		for (size_t j = 0; j < n; j++) {
			uint64_t count = ksm_kpagecount(ksm_pfn(0, ksm_page(buf, j)));

			most = count > most ? count : most;
		}
		EXPECT_LE(most, KSM_SHARE_LIMIT);
		EXPECT_EQ(ksm_wrong_same(buf, n, 7), 0);
		/* With one page over the limit, the last has nobody to share with. */
		if (n % KSM_SHARE_LIMIT != 1)
			EXPECT_STATS(frames, n - frames, 0, 0, 0);
		ASSERT_EQ(ksm_remove(self->area), 0);
		munmap(buf, n * PGSZ);
	}
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
}

/* A page that changes between any two visits is volatile and never merged. */
TEST_F(device, volatile_pages)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	long long scanned, passes;
	uint64_t before[N];

	ksm_fill(a, N, 10);
	ksm_fill(b, N, 10);
	ksm_pfns(0, a, N, before);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	scanned = ksm_stat("pages_scanned");
	passes = ksm_stat("full_scans");
	for (int i = 0; i < 6; i++) {
		ksm_passes(&self->k, 1);
		EXPECT_STATS(0, 0, 0, 2 * N, 0);
		ksm_fill(a, N, 11 + i);
		ksm_fill(b, N, 11 + i);
	}
	EXPECT_EQ(ksm_stat("pages_scanned") - scanned, 6 * 2 * N);
	/* The cursor may have stood anywhere at the start. */
	EXPECT_GE(ksm_stat("full_scans") - passes, 5);
	EXPECT_LE(ksm_stat("full_scans") - passes, 7);
	EXPECT_EQ(ksm_moved(0, a, N, before), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_wrong(a, N, 16), 0);
	EXPECT_EQ(ksm_wrong(b, N, 16), 0);

	/* Left in peace they are merged. */
	ksm_merge_all(&self->k);
	EXPECT_STATS(N, N, 0, 0, 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
}

/*
 * Random contents, many times over: at the end of each round two pages are the
 * same frame exactly if they are equal.
 */
TEST_F(device, many_rounds)
{
	enum { PAGES = 4 * N, ROUNDS = 20, VALUES = 12 };
	unsigned int seed = 20081117;
	int value[PAGES];
	uint64_t pfns[PAGES];
	char *buf = ksm_mmap(PAGES);

	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	memset(value, -1, sizeof(value));
	for (int round = 0; round < ROUNDS; round++) {
		size_t wrong = 0, apart = 0, shared_by_unequal = 0;

		for (int i = 0; i < PAGES; i++) {
			/* Half keep their contents; value 0 is a zero page. */
			if (round && rand_r(&seed) % 2)
				continue;
			value[i] = rand_r(&seed) % VALUES;
			if (value[i])
				ksm_fill_page(ksm_page(buf, i), 40, value[i]);
			else
				memset(ksm_page(buf, i), 0, PGSZ);
			/* Scans in the midst of the writing. */
			if (rand_r(&seed) % 16 == 0) {
				ASSERT_EQ(ksm_scan(self->k.scan, rand_r(&seed) % PAGES + 1), 0);
			}
		}
		if (rand_r(&seed) % 4 == 0) {
			ASSERT_EQ(ksm_unmerge(self->area), 0);
		}
		ksm_merge_all(&self->k);
		ksm_pfns(0, buf, PAGES, pfns);
		for (int i = 0; i < PAGES; i++) {
			wrong += value[i] ? !ksm_page_is(ksm_page(buf, i), 40, value[i]) :
					    !ksm_page_is_zero(ksm_page(buf, i));
			for (int j = 0; j < i; j++) {
				if (value[i] == value[j])
					apart += pfns[i] != pfns[j];
				else
					shared_by_unequal += pfns[i] == pfns[j];
			}
		}
		ASSERT_EQ(wrong, 0) TH_LOG("round %d", round);
		ASSERT_EQ(shared_by_unequal, 0) TH_LOG("round %d", round);
		ASSERT_EQ(apart, 0) TH_LOG("round %d", round);
		/* No value is left with a page of its own by this many pages. */
		EXPECT_EQ(ksm_stat("pages_shared"), VALUES - 1);
	}
}

/* Half of the memory unequal, half equal, under kksmd instead of our own scans. */
TEST_F(device, kksmd_merges)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	long long scanned;

	ksm_fill(a, N, 50);
	ksm_fill(b, N / 2, 50);
	ksm_fill(ksm_page(b, N / 2), N / 2, 51);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_start(self->k.dev, 2 * N, 0, 1000), 0);
	for (int i = 0; i < 3000 && ksm_stat("pages_sharing") < N / 2; i++)
		usleep(20000);
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	EXPECT_EQ(ksm_stat("pages_shared"), N / 2);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	EXPECT_EQ(ksm_wrong(a, N, 50), 0);
	EXPECT_EQ(ksm_wrong(b, N / 2, 50), 0);
	EXPECT_EQ(ksm_wrong(ksm_page(b, N / 2), N / 2, 51), 0);

	/* Stopped is stopped. */
	scanned = ksm_stat("pages_scanned");
	usleep(200000);
	EXPECT_EQ(ksm_stat("pages_scanned"), scanned);
}

TEST_HARNESS_MAIN
