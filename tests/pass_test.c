// SPDX-License-Identifier: GPL-2.0-only
/*
 * pass_test.c - what a pass over all memory does, and what it takes
 *
 * Several threads at once do what one does; longest_hold_us says how long a lock was held;
 * address space with nothing in it, up to 32 TiB, costs next to no time and no memory.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64
#define HUGE_PAGES	KSM_HUGE_PAGES

#define SYSFS "/sys/class/misc/ksm/"

/* ---- several at once ---- */

static void *pass_main(void *arg)
{
	struct ksm *k = arg;

	/* Two of them: each does about half. */
	ksm_passes(k, 3);
	return NULL;
}

/* Pairs, groups, zero pages, and pages that equal none, over several chunks. */
static void fill_mixed(char *mem, size_t npages)
{
	for (size_t i = 0; i < npages; i++) {
		switch (i % 8) {
		case 0:
		case 1:
			ksm_fill_page(ksm_page(mem, i), 100, i / 8);
			break;
		case 2:
			ksm_fill_page(ksm_page(mem, i), 101, i / 8 % 37);
			break;
		case 3:
			memset(ksm_page(mem, i), 1, PGSZ);
			memset(ksm_page(mem, i), 0, PGSZ);
			break;
		default:
			ksm_fill_page(ksm_page(mem, i), 102, i % 8 > 5 ? i : i % (npages / 2));
		}
	}
}

static const char *const counters[] = {
	"pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "zero_pages",
};

TEST_F(device, two_threads_do_what_one_does)
{
	enum { PAGES = 4 * HUGE_PAGES };
	long long one[ARRAY_SIZE(counters)];
	char *mem;

	for (int both = 0; both < 3; both++) {
		mem = ksm_mmap(PAGES);
		fill_mixed(mem, PAGES);
		ASSERT_EQ(ksm_register(self->area, mem, PAGES), 0);
		if (both == 1) {
			struct ksm other = { .dev = self->k.dev, .scan = -1 };
			pthread_t threads[2];
			int scan;

			scan = ioctl(self->k.dev, KSM_CREATE_SCAN);
			ASSERT_GE(scan, 0);
			other.scan = scan;
			ASSERT_EQ(pthread_create(&threads[0], NULL, pass_main, &self->k), 0);
			ASSERT_EQ(pthread_create(&threads[1], NULL, pass_main, &other), 0);
			pthread_join(threads[0], NULL);
			pthread_join(threads[1], NULL);
			close(scan);
		} else if (both == 2) {
			long long passes = ksm_stat("full_scans");

			ASSERT_EQ(ksm_set_pace(self->k.dev, 0, 2), 0);
			ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 0), 0);
			while (ksm_stat("full_scans") < passes + 8)
				usleep(1000);
			ASSERT_EQ(ksm_stop(self->k.dev), 0);
			ASSERT_EQ(ksm_set_pace(self->k.dev, 0, 1), 0);
		} else {
			ksm_merge_all(&self->k);
		}
		/* What one kept from the other is done in the end. */
		ksm_merge_held(&self->k);
		for (size_t i = 0; i < ARRAY_SIZE(counters); i++) {
			if (!both)
				one[i] = ksm_stat(counters[i]);
			EXPECT_EQ(ksm_stat(counters[i]), one[i]) TH_LOG("%s", counters[i]);
		}
		ASSERT_EQ(ksm_remove(self->area), 0);
		munmap(mem, PAGES * PGSZ);
	}
	EXPECT_GT(one[0], PAGES / 8);
	EXPECT_GT(one[1], PAGES / 8);
	EXPECT_EQ(one[4], PAGES / 8);
}

/* ---- the rest ---- */

TEST_F(device, longest_hold)
{
	static const char path[] = SYSFS "longest_hold_us";
	char *a = ksm_mmap(4 * N), *b = ksm_mmap(4 * N);
	long long last;

	ksm_fill(a, 4 * N, 110);
	ksm_fill(b, 4 * N, 110);
	ASSERT_EQ(ksm_register(self->area, a, 4 * N), 0);
	ASSERT_EQ(ksm_register(self->area, b, 4 * N), 0);
	ASSERT_EQ(ksm_write_file(path, "0"), 0);
	EXPECT_EQ(ksm_stat("longest_hold_us"), 0);
	EXPECT_EQ(ksm_write_file(path, "1"), -EINVAL);
	EXPECT_EQ(ksm_write_file(path, "-1"), -EINVAL);
	EXPECT_EQ(ksm_write_file(path, "x"), -EINVAL);
	EXPECT_EQ(ksm_stat("longest_hold_us"), 0);
	ksm_merge_all(&self->k);
	last = ksm_stat("longest_hold_us");
	EXPECT_GT(last, 0);
	ksm_passes(&self->k, 2);
	EXPECT_GE(ksm_stat("longest_hold_us"), last);
	ASSERT_EQ(ksm_write_file(path, "0"), 0);
	EXPECT_EQ(ksm_stat("longest_hold_us"), 0);
}

FIXTURE(sparse)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(sparse)
{
	int prot;
};

/* Nothing is there but one page's mapping; or a mapping of which one page is there. */
FIXTURE_VARIANT_ADD(sparse, no_access) { .prot = PROT_NONE };
FIXTURE_VARIANT_ADD(sparse, untouched) { .prot = PROT_READ | PROT_WRITE };

FIXTURE_SETUP(sparse)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(sparse)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* Four passes, by calls that visit 1000 chunks at most; how many. */
static int four_passes(const struct ksm *k)
{
	long long passes = ksm_stat("full_scans");
	int calls = 0;

	while (ksm_stat("full_scans") < passes + 4 && calls < 100) {
		if (ksm_scan(k->scan, 1000 * HUGE_PAGES))
			ksm_die("KSM_SCAN failed; see the kernel log");
		calls++;
	}
	return calls;
}

TEST_F(sparse, one_page_in_32_tib)
{
	/* 32 TiB: their page tables alone, and 10 bytes a page, would be 144 GiB. */
	const size_t npages = (32UL << 40) / PGSZ, page = npages / 3;
	char *mem = mmap(NULL, npages * PGSZ, variant->prot,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long long metadata = ksm_stat("metadata_bytes"), passes;
	char *twin = ksm_mmap(1);
	int calls;

	ASSERT_NE(mem, MAP_FAILED);
	madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE);
	ASSERT_EQ(mprotect(ksm_page(mem, page), PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill_page(ksm_page(mem, page), 111, 0);
	ksm_fill_page(twin, 111, 0);
	/* A registration holds less than 2^32 pages. */
	for (int i = 0; i < 4; i++)
		ASSERT_EQ(ksm_register(self->area, ksm_page(mem, i * (npages / 4)), npages / 4), 0);
	ASSERT_EQ(ksm_register(self->area, twin, 1), 0);
	EXPECT_EQ(ksm_stat("pages_registered"), (long long)npages + 1);
	passes = ksm_stat("full_scans");
	/* Of 16 million chunks. */
	calls = four_passes(&self->k);
	TH_LOG("4 passes took %d calls; %lld bytes", calls,
	       ksm_stat("metadata_bytes") - metadata);
	EXPECT_GE(ksm_stat("full_scans"), passes + 4);
	EXPECT_EQ(ksm_pfn(0, ksm_page(mem, page)), ksm_pfn(0, twin));
	EXPECT_STATS(1, 1, 0, 0, 0);
	EXPECT_LT(ksm_stat("metadata_bytes") - metadata, 64 << 10);
}

/* What is skipped together ends where the next page is, at each level of page tables. */
TEST_F(sparse, pages_far_apart)
{
	/* 4 KiB, 2 MiB, 1 GiB and 512 GiB, more or less. */
	static const size_t far[] = {
		0, 1, 511, 512, 513, 1024, (1UL << 18) - 1, 1UL << 18, (1UL << 18) + 512,
		(1UL << 20) + 7, (1UL << 27) - 512, 1UL << 27, (1UL << 27) + (3UL << 18),
		3UL << 27, (5UL << 27) + (511UL << 18) + 511 * 512 + 511,
	};
	const size_t npages = 6UL << 27;
	char *mem = mmap(NULL, npages * PGSZ, variant->prot,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *twin = ksm_mmap(1);

	ASSERT_NE(mem, MAP_FAILED);
	madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
		ASSERT_EQ(mprotect(ksm_page(mem, far[i]), PGSZ, PROT_READ | PROT_WRITE), 0);
		ksm_fill_page(ksm_page(mem, far[i]), 113, 0);
	}
	ksm_fill_page(twin, 113, 0);
	ASSERT_EQ(ksm_register(self->area, mem, npages), 0);
	ASSERT_EQ(ksm_register(self->area, twin, 1), 0);
	four_passes(&self->k);
	for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
		EXPECT_EQ(ksm_pfn(0, ksm_page(mem, far[i])), ksm_pfn(0, twin)) {
			TH_LOG("page %zu", far[i]);
		}
	}
	EXPECT_STATS(1, ARRAY_SIZE(far), 0, 0, 0);
}

TEST_HARNESS_MAIN
