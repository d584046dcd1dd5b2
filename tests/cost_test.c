// SPDX-License-Identifier: GPL-2.0-only
/*
 * cost_test.c - what memory costs that is huge, all alike or much shared: time, and metadata
 *
 * Holes are passed over, whatever their size, and a page has its few bytes of metadata.
 * Pages that match each other and cannot be merged, and pages that are shared, cost no more
 * for being many.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_limit.h"

/* ---- large and sparse ---- */

TEST_F(limit, huge_empty_range)
{
	/* A tebibyte of which two pages exist. */
	const uint64_t npages = 1ULL << 28;
	char *mem = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long long metadata = ksm_stat("metadata_bytes"), passes;
	double began = ksm_now(), took;
	int calls = 0;

	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE));
	ksm_fill_page(mem, 1, 0);
	ksm_fill_page(mem + (npages - 1) * PGSZ, 1, 0);
	ASSERT_EQ(0, ksm_register(self->area, mem, npages));
	EXPECT_EQ(npages, ksm_stat("pages_registered"));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	EXPECT_GT(metadata + (1 << 20), ksm_stat("metadata_bytes"));

	/* Holes are walked in steps as large as they are. */
	began = ksm_now();
	passes = ksm_stat("full_scans");
	while (ksm_stat("full_scans") < passes + 4) {
		ASSERT_EQ(0, ksm_scan(self->k.scan, 1 << 20));
		ASSERT_GT(2000, ++calls);
		ASSERT_GT(4 * KSM_PATIENCE, ksm_now() - began);
	}
	took = ksm_now() - began;
	TH_LOG("4 passes over 1 TiB of holes took %.2f s, %d calls", took, calls);
	EXPECT_EQ(ksm_pfn(0, mem), ksm_pfn(0, mem + (npages - 1) * PGSZ));
	EXPECT_GT(metadata + (4 << 20), ksm_stat("metadata_bytes"));
	began = ksm_now();
	ASSERT_EQ(0, ksm_remove(self->area));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	/* The index itself may keep its first size. */
	EXPECT_GT(metadata + (1 << 20), ksm_stat("metadata_bytes"));
}

TEST_F(limit, metadata_of_a_page)
{
	const size_t n = 16384;
	char *mem = ksm_mmap(n);
	long long before = ksm_stat("metadata_bytes"), used;
	double end;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ksm_passes(&self->k, 3);
	EXPECT_EQ(n, ksm_stat("pages_unshared"));
	used = ksm_stat("metadata_bytes") - before;
	TH_LOG("%.2f bytes a page", (double)used / n);
	/* mm/ksm.c takes 64. */
	EXPECT_GE(17 * (long long)n, used);
	EXPECT_LE(4 * (long long)n, used);
	ASSERT_EQ(0, ksm_remove(self->area));
	/* What was removed is freed a while later, where there is much of it. */
	end = ksm_now() + KSM_PATIENCE;
	while (ksm_stat("metadata_bytes") > before + 65536 && ksm_now() < end)
		usleep(50000);
	EXPECT_GE(before + 65536, ksm_stat("metadata_bytes"));
}

static double time_of_pass(const struct ksm *k)
{
	double began = ksm_now();

	ksm_passes(k, 1);
	return ksm_now() - began;
}

/* Pages that are all alike and may not be merged: each would match all others. */
TEST_F(limit, many_alike)
{
	const size_t n = 8192;
	double fresh = 1e9, alike = 1e9;
	char *mem = ksm_mmap(n);

	set_limit(0);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (int i = 1; i <= 3; i++) {
		double t;

		/* In the first one they may still be written. */
		ksm_fill(mem, n, i);
		ksm_passes(&self->k, 1);
		t = time_of_pass(&self->k);
		fresh = t < fresh ? t : fresh;
		ksm_fill_same(mem, n, i);
		ksm_passes(&self->k, 2);
		t = time_of_pass(&self->k);
		alike = t < alike ? t : alike;
		EXPECT_EQ(0, ksm_wrong_same(mem, n, i));
	}
	TH_LOG("a pass over fresh pages took %.3f s, over pages all alike %.3f s", fresh,
	       alike);
	/* To read each of them is little more than to look at a few others for each. */
	EXPECT_GT(16 * fresh, alike);
	EXPECT_EQ(0, ksm_stat("pages_shared"));
}

/*
 * Zeros in huge pages, too few for a split: all alike, each has a partner in the zero page, and none
 * is of use to others as a candidate.
 */
TEST_F(limit, zeros_of_huge_pages)
{
	const size_t n = 8, zeros = KSM_HUGE_PAGES / 16;
	char *mem = ksm_mmap_huge(n);

	ksm_fill(mem, n * KSM_HUGE_PAGES, 1);
	for (size_t i = 0; i < n; i++)
		memset(mem + i * KSM_HUGE_SIZE, 0, zeros * PGSZ);
	ASSERT_EQ(0, ksm_register(self->area, mem, n * KSM_HUGE_PAGES));
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, ksm_stat("zero_pages"));
	EXPECT_EQ((long)(n * (KSM_HUGE_PAGES - zeros)), ksm_stat("pages_unshared"));
}

#define OTHERS_SHARING "/sys/kernel/mm/ksm/pages_sharing"

/* Microseconds of our CPU time that it takes to read a number; the best of five times. */
static double time_of_read(long long (*read_it)(const char *name), const char *name)
{
	enum { READS = 500 };
	double best = 1e9;

	for (int i = 0; i < 5; i++) {
		double t = ksm_cpu_now();

		for (int nr = 0; nr < READS; nr++)
			read_it(name);
		t = (ksm_cpu_now() - t) * 1e6;
		best = t < best ? t : best;
	}
	return best / READS;
}

/* The same of the kernel's own KSM, if it has that. */
static double time_of_others_read(void)
{
	return access(OTHERS_SHARING, R_OK) ? 0 : time_of_read(ksm_read_number, OTHERS_SHARING);
}

/* Have n pairs of registered pages shared; how many shared pages there are. */
static size_t share_pairs(const struct ksm *k, char *mem, size_t n, uint64_t seed)
{
	double end = ksm_now() + KSM_PATIENCE;
	size_t shared;

	ksm_fill(mem, n, seed);
	ksm_fill(mem + n * PGSZ, n, seed);
	do {
		ksm_merge_all(k);
		shared = ksm_stat("pages_shared");
	} while (shared < n && ksm_now() < end);
	return shared;
}

/* What statistics tell was counted before: to read one takes no longer where much is shared. */
TEST_F(limit, statistics_cost_the_same)
{
	const size_t n = (128UL << 20) / PGSZ, little = 512;
	char *mem = ksm_mmap(2 * n);
	double few, many, others_few, others_many;

	ASSERT_LE((long long)n, self->old);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ASSERT_EQ(little, share_pairs(&self->k, mem, little, 1));
	few = time_of_read(ksm_stat_told, "pages_sharing");
	others_few = time_of_others_read();
	/* Somebody may hold a few of so many. */
	ASSERT_LE(n - n / 64, share_pairs(&self->k, mem, n, 2));
	many = time_of_read(ksm_stat_told, "pages_sharing");
	others_many = time_of_others_read();
	TH_LOG("a read took %.2f us with %zu shared pages, %.2f us with %zu", few, little, many, n);
	TH_LOG("one of mm/ksm.c's took %.2f us and %.2f us", others_few, others_many);
	EXPECT_GT(4 * few, many);
}

TEST_HARNESS_MAIN
