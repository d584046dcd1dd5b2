// SPDX-License-Identifier: GPL-2.0-only
/*
 * merge_test.c - equal pages are merged, others are not, and all can be undone
 *
 * Proven by page frame numbers and MemFree; the driver's counters are compared
 * with them, in the manner of LTP's ksm01, after scans that the test itself ran.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

FIXTURE(one_byte)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(one_byte)
{
	size_t offset;
	bool zero;	/* the rest of the page is zero */
};

FIXTURE_VARIANT_ADD(one_byte, first) { .offset = 0 };
FIXTURE_VARIANT_ADD(one_byte, middle) { .offset = 2049 };
FIXTURE_VARIANT_ADD(one_byte, last) { .offset = PGSZ - 1 };
FIXTURE_VARIANT_ADD(one_byte, zero_first) { .offset = 0, .zero = true };
FIXTURE_VARIANT_ADD(one_byte, zero_last) { .offset = PGSZ - 1, .zero = true };

FIXTURE_SETUP(one_byte)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(one_byte)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* 256 pages that differ in one byte only: each value once. */
TEST_F(one_byte, all_values)
{
	char *buf = ksm_mmap(256);
	size_t wrong = 0;

	for (int i = 0; i < 256; i++) {
		if (!variant->zero)
			ksm_fill_page(ksm_page(buf, i), 5, 0);
		ksm_page(buf, i)[variant->offset] = i;
	}
	ASSERT_EQ(ksm_register(self->area, buf, 256), 0);
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_distinct(0, buf, 256), 256);
	for (int i = 0; i < 256; i++)
		wrong += (unsigned char)ksm_page(buf, i)[variant->offset] != i;
	EXPECT_EQ(wrong, 0);
	EXPECT_STATS(0, 0, variant->zero ? 255 : 256, 0, variant->zero ? 1 : 0);
}

/* The byte is at another offset in each page, so that no sample of them helps. */
TEST_F(device, one_bit_anywhere)
{
	char *buf = ksm_mmap(512);
	size_t wrong = 0;

	ksm_fill_same(buf, 512, 6);
	for (int i = 0; i < 512; i++)
		ksm_page(buf, i)[i * 8 + i % 8] ^= 1 << i % 8;
	ASSERT_EQ(ksm_register(self->area, buf, 512), 0);
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_distinct(0, buf, 512), 512);
	for (int i = 0; i < 512; i++) {
		ksm_page(buf, i)[i * 8 + i % 8] ^= 1 << i % 8;
		wrong += !ksm_page_is(ksm_page(buf, i), 6, 0);
	}
	EXPECT_EQ(wrong, 0);
}

/* ---- contents made to deceive the hash ---- */

/* All different, and all the same to the driver's hash if its secret is nought. */
static void fill_colliding_unkeyed(char *mem, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t *word = (uint64_t *)ksm_page(mem, i);

		ksm_fill_page(word, 60, 0);
		word[0] = i;
		word[1] = 0;
	}
}

/*
 * xxHash64 takes the words 0, 4, 8, ... of a page one after the other into
 *	acc = rotl(acc + word * P2, 31) * P1
 * where acc begins with a value that depends on the seed.
 */
#define XXH_P1 0x9e3779b185ebca87ULL
#define XXH_P2 0xc2b2ae3d27d4eb4fULL

static uint64_t xxh_round(uint64_t acc, uint64_t word)
{
	acc += word * XXH_P2;
	return (acc << 31 | acc >> 33) * XXH_P1;
}

/* The inverse of an odd number modulo 2^64, by Newton's method. */
static uint64_t inverse(uint64_t odd)
{
	uint64_t x = odd;

	for (int i = 0; i < 6; i++)
		x *= 2 - odd * x;
	return x;
}

/*
 * The fifth word makes up for what the first one did: all with the same xxHash64 if
 * the seed is 0, and with one of a few if it is another one, as a rotation spoils no
 * more than two carries.
 */
static void fill_colliding_xxh64(char *mem, size_t n)
{
	uint64_t first = xxh_round(XXH_P1 + XXH_P2, 0);

	for (size_t i = 0; i < n; i++) {
		uint64_t *word = (uint64_t *)ksm_page(mem, i);

		ksm_fill_page(word, 61, 0);
		word[0] = i;
		word[4] = (first - xxh_round(XXH_P1 + XXH_P2, i)) * inverse(XXH_P2);
	}
}

FIXTURE(deceit)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(deceit)
{
	void (*fill)(char *mem, size_t n);
};

FIXTURE_VARIANT_ADD(deceit, unkeyed) { .fill = fill_colliding_unkeyed };
FIXTURE_VARIANT_ADD(deceit, xxh64) { .fill = fill_colliding_xxh64 };

FIXTURE_SETUP(deceit)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(deceit)
{
	close(self->area);
	ksm_finish(&self->k);
}

/*
 * Each page has a twin and finds it. Where the hash is deceived, a few do: one page a
 * hash can be found, and few candidates are tried.
 */
TEST_F(deceit, twins_find_each_other)
{
	enum { PAGES = 4 * N };
	char *a = ksm_mmap(PAGES), *b = ksm_mmap(PAGES), *want = ksm_mmap(PAGES);

	variant->fill(want, PAGES);
	memcpy(a, want, PAGES * PGSZ);
	memcpy(b, want, PAGES * PGSZ);
	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, b, PAGES), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_EQ(ksm_distinct(0, a, PAGES), PAGES);
	EXPECT_STATS(PAGES, PAGES, 0, 0, 0);
	EXPECT_EQ(memcmp(a, want, PAGES * PGSZ), 0);
	EXPECT_EQ(memcmp(b, want, PAGES * PGSZ), 0);
}

/*
 * So many contents that about eight pairs of them have one fingerprint of 28 bits; that
 * there is none happens once in 3000 runs (with pages of 16 KiB often, as there are fewer). A page is merged by its fingerprint alone
 * at first, finds that its partner is the wrong one, and must find the right one then.
 */
TEST_F(device, chance_collisions)
{
	enum { PAGES = (256 << 20) / PGSZ };
	char *a = ksm_mmap(PAGES), *b = ksm_mmap(PAGES);

	ksm_fill(a, PAGES, 7);
	ksm_fill(b, PAGES, 7);
	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, b, PAGES), 0);
	ksm_merge_held(&self->k);
	EXPECT_STATS(PAGES, PAGES, 0, 0, 0);
	EXPECT_EQ(ksm_wrong(a, PAGES, 7), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 7), 0);
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

TEST_F(device, write_after_merge)
{
	struct ksm_child c[2];
	char *buf = ksm_mmap(N);
	uint64_t pfns[N];

	ksm_fill(buf, N, 20);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&c[i]);
		ksm_call(&c[i], ksm_fn_zero, buf, N, 0);
		ksm_call(&c[i], ksm_fn_fill, buf, N, 20);
		ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, N), 0);
	}
	ksm_merge_all(&self->k);
	ksm_pfns(0, buf, N, pfns);
	EXPECT_EQ(ksm_moved(c[0].pid, buf, N, pfns), 0);
	EXPECT_EQ(ksm_moved(c[1].pid, buf, N, pfns), 0);

	/* Reading breaks nothing. */
	EXPECT_EQ(ksm_wrong(buf, N, 20), 0);
	EXPECT_EQ(ksm_moved(0, buf, N, pfns), 0);

	/* One byte written in one process, then all pages in another. */
	buf[5 * PGSZ + 77] ^= 0xff;
	EXPECT_EQ(ksm_moved(0, buf, N, pfns), 1);
	EXPECT_NE(ksm_pfn(0, ksm_page(buf, 5)), pfns[5]);
	EXPECT_EQ(ksm_wrong(buf, N, 20), 1);
	buf[5 * PGSZ + 77] ^= 0xff;
	EXPECT_EQ(ksm_wrong(buf, N, 20), 0);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 20), 0);
	ksm_call(&c[0], ksm_fn_fill, buf, N, 21);
	EXPECT_EQ(ksm_moved(c[0].pid, buf, N, pfns), N);
	EXPECT_EQ(ksm_same_frames(0, buf, c[0].pid, buf, N), 0);
	EXPECT_EQ(ksm_distinct(c[0].pid, buf, N), N);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 21), 0);
	EXPECT_EQ(ksm_wrong(buf, N, 20), 0);
	EXPECT_EQ(ksm_call(&c[1], ksm_fn_wrong, buf, N, 20), 0);
	EXPECT_EQ(ksm_moved(c[1].pid, buf, N, pfns), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), N - 1);

	/* The last mapper of a merged page writes: a copy, or the page itself. */
	ksm_end(&c[1]);
	ksm_fill(buf, N, 22);
	EXPECT_EQ(ksm_wrong(buf, N, 22), 0);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 21), 0);
	ksm_merge_all(&self->k);
	EXPECT_STATS(0, 0, 2 * N, 0, 0);
	EXPECT_EQ(ksm_wrong(buf, N, 22), 0);
	ksm_end(&c[0]);
}

/* Closing an area or removing its regions leaves what was merged as it is. */
TEST_F(device, merged_outlives_area)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *late = ksm_mmap(N);
	int area = ksm_area(&self->k);
	uint64_t pfns[N];

	ksm_fill(a, N, 25);
	ksm_fill(b, N, 25);
	ASSERT_EQ(ksm_register(area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(ksm_moved(0, b, N, pfns), 0);
	close(area);
	ASSERT_EQ(ksm_remove(self->area), 0);
	EXPECT_EQ(ksm_stat("regions"), 0);
	EXPECT_EQ(ksm_stat("areas"), 1);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
	EXPECT_EQ(ksm_wrong(a, N, 25), 0);

	/* A newcomer may join pages whose owners are no longer registered. */
	ksm_fill(late, N, 25);
	ASSERT_EQ(ksm_register(self->area, late, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(late, N, 25), 0);
	EXPECT_EQ(ksm_wrong(a, N, 25), 0);

	ksm_fill(a, N, 26);
	EXPECT_EQ(ksm_wrong(a, N, 26), 0);
	EXPECT_EQ(ksm_wrong(b, N, 25), 0);
	EXPECT_EQ(ksm_wrong(late, N, 25), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
}

TEST_F(device, unmerge)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);
	struct ksm_child c;
	uint64_t pfns[N];

	ksm_spawn(&c);
	ksm_fill(a, N, 30);
	ksm_fill(b, N, 30);
	ksm_fn_zero((long)zero, N, 0, 0);
	ksm_call(&c, ksm_fn_fill, a, N, 30);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, a, N), 0);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_moved(c.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_distinct(0, zero, N), 1);
	EXPECT_STATS(N, 2 * N, 0, 0, N);

	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), N);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), N);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	EXPECT_EQ(ksm_distinct(0, b, N), N);
	EXPECT_EQ(ksm_distinct(0, zero, N), N);
	EXPECT_FALSE(ksm_pfn_is(ksm_pfn(0, zero), KPF_BIT_ZERO_PAGE));
	EXPECT_TRUE(ksm_pfn_is(ksm_pfn(0, a), KPF_BIT_ANON));
	EXPECT_EQ(ksm_wrong(a, N, 30), 0);
	EXPECT_EQ(ksm_wrong(b, N, 30), 0);
	EXPECT_EQ(ksm_wrong_zero(zero, N), 0);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);

	/* The other process did not ask: its pages are where they were. */
	EXPECT_EQ(ksm_moved(c.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 30), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);

	/* Still registered, so the next scans merge again. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_same_frames(0, a, c.pid, a, N), N);
	EXPECT_STATS(N, 2 * N, 0, 0, N);

	/* When everybody unmerges, all counters are back at nothing. */
	ksm_end(&c);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	/* An unmerge with nothing merged or nothing mapped is no error. */
	EXPECT_EQ(ksm_unmerge(self->area), 0);
	munmap(a, N * PGSZ);
	EXPECT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_wrong(b, N, 30), 0);
}

/* Pages that only can be read, or not at all, come back with the same rights. */
TEST_F(device, unmerge_read_only)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	int fds[2];

	ksm_fill(a, N, 31);
	ksm_fill(b, N, 31);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_wrong(a, N, 31), 0);
	EXPECT_EQ(ksm_wrong(b, N, 31), 0);
	/* Not writable: the kernel refuses to read(2) into it. */
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(write(fds[1], "x", 1), 1);
	EXPECT_EQ(read(fds[0], a, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(a, N, 32);
	EXPECT_EQ(ksm_wrong(a, N, 32), 0);
	EXPECT_EQ(ksm_wrong(b, N, 31), 0);
}

TEST_F(device, unmerge_no_access)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);
	int fds[2];

	ksm_fill(a, N, 34);
	ksm_fill(b, N, 34);
	ksm_fn_zero((long)zero, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_NONE), 0);
	ASSERT_EQ(mprotect(zero, N * PGSZ, PROT_NONE), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	ASSERT_EQ(pipe(fds), 0);
	EXPECT_EQ(write(fds[1], a, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(write(fds[1], zero, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(mprotect(zero, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_distinct(0, zero, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 34), 0);
	EXPECT_EQ(ksm_wrong(b, N, 34), 0);
	EXPECT_EQ(ksm_wrong_zero(zero, N), 0);
	ksm_fill(a, N, 35);
	EXPECT_EQ(ksm_wrong(a, N, 35), 0);
	EXPECT_EQ(ksm_wrong(b, N, 34), 0);
}

#define CGROUP "/sys/fs/cgroup"
#define GROUP CGROUP "/ksm_merge_test"

static long join_group(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	/*
	 * Without a task that may be killed, a charge over the limit fails
	 * instead of killing: that is the only way to see -ENOMEM.
	 */
	if (ksm_write_file("/proc/self/oom_score_adj", "-1000"))
		ksm_die("cannot set oom_score_adj; run the tests as root");
	if (ksm_write_file(GROUP "/cgroup.procs", "0"))
		ksm_die("cannot enter %s; mount cgroup2 on %s", GROUP, CGROUP);
	return 0;
}

/* @limit is open for writing: at the limit, neither opening nor answering works. */
static long unmerge_then_lift(long area, long limit, long unused, long unused2)
{
	long ret = ksm_unmerge(area);

	(void)unused;
	(void)unused2;
	if (write(limit, "max", 3) != 3)
		return -EIO;
	return ret;
}

static long group_current(void)
{
	FILE *f = fopen(GROUP "/memory.current", "re");
	long bytes;

	if (!f || fscanf(f, "%ld", &bytes) != 1)
		ksm_die("cannot read %s/memory.current; the kernel needs the memory controller",
			GROUP);
	fclose(f);
	return bytes;
}

/*
 * The group's memory ends half way through: -ENOMEM, every page is either merged
 * or private with the right contents, and the counters say which.
 */
TEST_F(device, unmerge_out_of_memory)
{
	const size_t pages = 1024;
	char *a = ksm_mmap(pages), *b = ksm_mmap(pages);
	size_t same;
	struct ksm_child c;
	char limit[32];
	int area, limit_fd;

	ksm_write_file(CGROUP "/cgroup.subtree_control", "+memory");
	rmdir(GROUP);
	ASSERT_EQ(mkdir(GROUP, 0755), 0) TH_LOG("mount cgroup2 on " CGROUP);
	limit_fd = open(GROUP "/memory.max", O_WRONLY);
	ASSERT_GE(limit_fd, 0);
	ksm_spawn(&c);
	ksm_call(&c, join_group, 0, 0, 0);
	ksm_call(&c, ksm_fn_fill, a, pages, 33);
	ksm_call(&c, ksm_fn_fill, b, pages, 33);
	area = ksm_call(&c, ksm_fn_area_register, self->k.dev, a, pages);
	ASSERT_GE(area, 0);
	ASSERT_EQ(ksm_call(&c, ksm_fn_register, area, b, pages), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(c.pid, a, c.pid, b, pages), pages);

	snprintf(limit, sizeof(limit), "%ld", group_current() + (2 << 20));
	ASSERT_EQ(ksm_write_file(GROUP "/memory.max", limit), 0);
	EXPECT_EQ(ksm_call(&c, unmerge_then_lift, area, limit_fd, 0), -ENOMEM);
	same = ksm_same_frames(c.pid, a, c.pid, b, pages);
	TH_LOG("%zu of %zu pages were unmerged before the memory ended", pages - same, pages);
	EXPECT_GT(same, 0);
	EXPECT_LT(same, pages);
	EXPECT_EQ(ksm_distinct(c.pid, a, pages), pages);
	EXPECT_EQ(ksm_distinct(c.pid, b, pages), pages);
	EXPECT_EQ(ksm_stat("pages_sharing"), (long long)same);
	EXPECT_EQ(ksm_stat("pages_shared"), (long long)pages);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, pages, 33), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, pages, 33), 0);

	/* With memory again it goes on from there. */
	EXPECT_EQ(ksm_call(&c, unmerge_then_lift, area, limit_fd, 0), 0);
	EXPECT_EQ(ksm_same_frames(c.pid, a, c.pid, b, pages), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, pages, 33), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, pages, 33), 0);
	ksm_end(&c);
	EXPECT_EQ(rmdir(GROUP), 0);
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
