// SPDX-License-Identifier: GPL-2.0-only
/*
 * collisions_test.c - contents whose fingerprints are equal by chance
 *
 * Of 39 bits that is rare, so these tests load modules that have fewer: as many values as there are
 * pages here, and an eighth as many. Whatever collides, all pages that are equal are shared and no others; no
 * shared page is left over; and it does not take much longer. How much is said and not judged, in
 * CPU time of the scans, against the module as it is.
 *
 * The modules are ksmdev-few-16.ko and ksmdev-few-13.ko next to this program.
 */
#include <stdio.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_load.h"

FIXTURE(collisions)
{
	size_t pages;
};

/* So many tenths of all pages have a twin, the others nothing. */
#define TENTHS 10

FIXTURE_VARIANT(collisions)
{
	int bits;
	int equal;
};

/* A value a page; eight pages a value. */
FIXTURE_VARIANT_ADD(collisions, unique) { .bits = 16, .equal = 0 };
FIXTURE_VARIANT_ADD(collisions, twins) { .bits = 16, .equal = TENTHS };
FIXTURE_VARIANT_ADD(collisions, eight_a_value) { .bits = 13, .equal = 7 };

FIXTURE_SETUP(collisions)
{
	self->pages = 65536;
	ksm_load();
}

FIXTURE_TEARDOWN_PARENT(collisions)
{
	if (ksm_loaded() && ksm_unload_soon())
		ksm_die("the module with few bits stays");
	ksm_load();
}

/* CPU seconds until all is merged that can be; *@passes: how many it took. */
static double merge(struct ksm *k, size_t unshared, unsigned int *passes)
{
	double begin = ksm_cpu_now();

	for (*passes = 0; *passes < 20; ++*passes) {
		if (*passes > 1 && ksm_stat("pages_unshared") == (long long)unshared &&
		    !ksm_stat("pages_volatile"))
			break;
		ksm_passes(k, 1);
	}
	return ksm_cpu_now() - begin;
}

TEST_F(collisions, cost_little)
{
	const size_t half = self->pages / 2, equal = half * variant->equal / TENTHS;
	char *a = ksm_mmap(half), *b = ksm_mmap(half), name[64];
	double seconds[2];
	unsigned int passes[2];

	for (int few = 0; few < 2; few++) {
		struct ksm k;
		int area;

		if (few) {
			snprintf(name, sizeof(name), "ksmdev-few-%d.ko", variant->bits);
			ASSERT_EQ(ksm_unload_soon(), 0);
			ASSERT_EQ(ksm_insert(ksm_beside(name, "few-KERNEL")), 0);
		}
		ksm_begin(&k);
		area = ksm_area(&k);
		ksm_fill(a, half, 1);
		ksm_fill(b, equal, 1);
		ksm_fill(ksm_page(b, equal), half - equal, 2);
		ASSERT_EQ(ksm_register(area, a, half), 0);
		ASSERT_EQ(ksm_register(area, b, half), 0);
		seconds[few] = merge(&k, 2 * (half - equal), &passes[few]);
		EXPECT_STATS(equal, equal, 2 * (half - equal), 0, 0);
		EXPECT_EQ(ksm_stat("kernel_pages"), (long long)equal);
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, equal), equal);
		EXPECT_EQ(ksm_wrong(a, half, 1), 0);
		EXPECT_EQ(ksm_wrong(b, equal, 1), 0);
		EXPECT_EQ(ksm_wrong(ksm_page(b, equal), half - equal, 2), 0);
		close(area);
		ksm_finish(&k);
	}
	TH_LOG("%d bits: %.2f s in %u passes; as it is: %.2f s in %u; ratio %.2f", variant->bits,
	       seconds[1], passes[1], seconds[0], passes[0], seconds[1] / seconds[0]);
}

TEST_HARNESS_MAIN
