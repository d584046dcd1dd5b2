// SPDX-License-Identifier: GPL-2.0-only
/*
 * hash_test.c - pages are told apart by all their bytes, whatever their hashes say
 *
 * Pages that differ in one byte or one bit, and contents made to deceive the hash. Proven by page
 * frame numbers. Fingerprints that are equal by chance are in collisions_test.c.
 */
#include <string.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64

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
 * Each page has a twin and finds it. Where the hash is deceived, a few do: some pages of a
 * hash can be found, and as many candidates are tried.
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

TEST_HARNESS_MAIN
