// SPDX-License-Identifier: GPL-2.0-only
/*
 * rebuild_test.c - khugepaged makes huge pages of what the scan splits
 *
 * A huge page with pages that could be shared is split. To khugepaged the zero page is no page,
 * so what is left looks to it like room for a huge page, and it makes one. The two must come
 * to an end, with the memory saved, and without splitting anything more than twice; a process that
 * asks for huge pages itself gets them; and where sharing ended khugepaged is not kept away.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define HUGE	16		/* huge pages */
#define PAGES	((size_t)HUGE * KSM_HUGE_PAGES)
#define WRITTEN	3		/* the page of each that is written all the time */
#define STAYS	10		/* seconds for which one that came back stays: engine/split.c */
#define THP	"/sys/kernel/mm/transparent_hugepage/"

/* Of Linux 6.1; the C library may be older. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* What the other pages of a huge page hold. */
enum contents { ZEROS, EQUAL, UNIQUE };

/**
 * struct load - memory of huge pages
 * @mem: where
 * @contents: of all pages but those that are written all the time
 * @splits: how many huge pages had been split before
 * @writer: who writes those, until
 * @end: is set
 * @round: what he wrote last
 */
struct load {
	char *mem;
	enum contents contents;
	long long splits;
	pthread_t writer;
	atomic_bool end;
	uint64_t round;
};

static void set_khugepaged(const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), THP "khugepaged/%s", name);
	if (ksm_write_file(path, value))
		ksm_die("cannot write %s", path);
}

static void khugepaged(const char *sleep_ms, const char *pages)
{
	set_khugepaged("alloc_sleep_millisecs", sleep_ms);
	set_khugepaged("pages_to_scan", pages);
	/* The last: it wakes up for this. */
	set_khugepaged("scan_sleep_millisecs", sleep_ms);
}

static long long khugepaged_scans(void)
{
	return ksm_read_number(THP "khugepaged/full_scans");
}

/* How many huge pages it has made since the machine was booted. */
static long long khugepaged_made(void)
{
	return ksm_read_number(THP "khugepaged/pages_collapsed");
}

static long huge_pages(const struct load *l)
{
	return ksm_smaps(l->mem, "AnonHugePages") / KSM_HUGE_PAGES;
}

static long long splits(const struct load *l)
{
	return ksm_stat("thp_splits") - l->splits;
}

static char *written_page(const struct load *l, size_t huge)
{
	return ksm_page(l->mem, huge * KSM_HUGE_PAGES + WRITTEN);
}

static void write_all(struct load *l, enum contents contents)
{
	l->contents = contents;
	for (size_t i = 0; i < PAGES; i++) {
		char *page = ksm_page(l->mem, i);

		if (contents == ZEROS)
			memset(page, 0, PGSZ);
		else
			ksm_fill_page(page, 1, contents == EQUAL ? i % KSM_HUGE_PAGES : i);
	}
	for (size_t i = 0; i < HUGE; i++)
		ksm_fill_page(written_page(l, i), l->round, i);
}

static size_t wrong(const struct load *l)
{
	size_t n = 0;

	for (size_t i = 0; i < PAGES; i++) {
		char *page = ksm_page(l->mem, i);

		if (i % KSM_HUGE_PAGES == WRITTEN)
			n += !ksm_page_is(page, l->round, i / KSM_HUGE_PAGES);
		else if (l->contents == ZEROS)
			n += !ksm_page_is_zero(page);
		else
			n += !ksm_page_is(page, 1, l->contents == EQUAL ? i % KSM_HUGE_PAGES : i);
	}
	return n;
}

/* khugepaged does nothing, and there are huge pages. */
static void make_load(struct load *l, int area, enum contents contents)
{
	khugepaged("3600000", "4096");
	*l = (struct load) { .mem = ksm_mmap_huge(HUGE), .splits = ksm_stat("thp_splits") };
	write_all(l, contents);
	if (huge_pages(l) != HUGE)
		ksm_die("%ld of %d huge pages", huge_pages(l), HUGE);
	if (ksm_register(area, l->mem, PAGES))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
}

/*
 * Wait until there are so many huge pages, and as many yet when khugepaged has passed over them
 * some times more; false if that does not happen.
 */
static bool wait_settled(const struct load *l, long wanted)
{
	double until = ksm_now() + 5 * KSM_PATIENCE;
	unsigned int seen = 0;
	long long scans = 0;

	while (ksm_now() < until) {
		if (huge_pages(l) != wanted)
			seen = 0;
		else if (!seen++)
			scans = khugepaged_scans();
		if (seen > 20 && khugepaged_scans() > scans + 20)
			return true;
		usleep(100000);
	}
	return false;
}

/* ---- both at work ---- */

FIXTURE(both)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(both)
{
	enum contents contents;
	const char *sleep_ms;
};

FIXTURE_VARIANT_ADD(both, zeros) { .contents = ZEROS, .sleep_ms = "100" };
FIXTURE_VARIANT_ADD(both, zeros_full_speed) { .contents = ZEROS, .sleep_ms = "0" };
FIXTURE_VARIANT_ADD(both, equal_full_speed) { .contents = EQUAL, .sleep_ms = "0" };
FIXTURE_VARIANT_ADD(both, unique_full_speed) { .contents = UNIQUE, .sleep_ms = "0" };

FIXTURE_SETUP(both)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(both)
{
	khugepaged("10000", "4096");
	close(self->area);
	ksm_finish(&self->k);
}

static void *write_on(void *data)
{
	struct load *l = data;

	while (!l->end) {
		l->round++;
		for (size_t i = 0; i < HUGE; i++)
			ksm_fill_page(written_page(l, i), l->round, i);
		usleep(100000);
	}
	return NULL;
}

TEST_F(both, settle)
{
	long long made = khugepaged_made();
	struct load l;

	make_load(&l, self->area, variant->contents);
	ASSERT_EQ(pthread_create(&l.writer, NULL, write_on, &l), 0);
	khugepaged(variant->sleep_ms, "65536");
	ASSERT_EQ(ksm_start(self->k.dev, 4096, 0, 10000), 0);
	EXPECT_TRUE(ksm_wait_more("full_scans", 10, 5 * KSM_PATIENCE));
	EXPECT_TRUE(wait_settled(&l, variant->contents == UNIQUE ? HUGE : 0));
	made = khugepaged_made() - made;
	TH_LOG("%lld splits, %lld rebuilt, %ld of %zu pages resident", splits(&l), made,
	       ksm_smaps(l.mem, "Rss"), PAGES);
	if (variant->contents == UNIQUE) {
		EXPECT_EQ(splits(&l), 0);
	} else {
		EXPECT_GE(splits(&l), HUGE);
		EXPECT_LE(splits(&l), 2 * HUGE);
	}
	/* Shared pages are resident, the zero page is not; and only among those khugepaged builds. */
	if (variant->contents == ZEROS) {
		EXPECT_LE(ksm_smaps(l.mem, "Rss"), 8 * HUGE);
		EXPECT_LT(0, made);
		EXPECT_LT(HUGE, splits(&l));
	}
	l.end = true;
	ASSERT_EQ(pthread_join(l.writer, NULL), 0);
	EXPECT_EQ(wrong(&l), 0);
}

/* ---- one after the other ---- */

FIXTURE(turns)
{
	struct ksm k;
	int area;
	struct load l;
};

/* Every huge page was split once. */
FIXTURE_SETUP(turns)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	make_load(&self->l, self->area, ZEROS);
	ksm_merge_all(&self->k);
	if (splits(&self->l) != HUGE || huge_pages(&self->l))
		ksm_die("%lld of %d huge pages were split", splits(&self->l), HUGE);
}

FIXTURE_TEARDOWN(turns)
{
	khugepaged("10000", "4096");
	close(self->area);
	ksm_finish(&self->k);
}

/* Have the kernel make huge pages; false if it does not. */
static bool collapse(const struct load *l)
{
	double until = ksm_now() + KSM_PATIENCE;

	do {
		if (!madvise(l->mem, PAGES * PGSZ, MADV_COLLAPSE))
			return huge_pages(l) == HUGE;
	} while (errno == EAGAIN && ksm_now() < until);
	return false;
}

/* Have them split and merged at once; false if they are not. */
static bool merge(const struct load *l, int area)
{
	double until = ksm_now() + KSM_PATIENCE;

	while (huge_pages(l) && ksm_now() < until)
		if (ksm_merge_range(area, l->mem, PAGES, NULL))
			return false;
	return !huge_pages(l);
}

/*
 * Who asks for huge pages gets them, and keeps them for a while, as nobody can tell his from
 * those that khugepaged makes. Who asks for memory to be merged gets that, too.
 */
TEST_F(turns, asked_for)
{
	double since = ksm_now();

	ASSERT_TRUE(collapse(&self->l));
	ksm_merge_all(&self->k);
	/* The index would have one chain of all that is zero. */
	EXPECT_LE(ksm_stat("pages_unshared"), HUGE);
	/* On a machine where four passes take no longer than that. */
	if (ksm_now() - since < STAYS) {
		EXPECT_EQ(splits(&self->l), HUGE);
		EXPECT_EQ(huge_pages(&self->l), HUGE);
	} else {
		TH_LOG("not shown that they stay: the passes took %.0f s", ksm_now() - since);
	}

	ASSERT_TRUE(merge(&self->l, self->area));
	EXPECT_EQ(splits(&self->l), 2 * HUGE);
	EXPECT_LE(ksm_smaps(self->l.mem, "Rss"), 8 * HUGE);
	/* Shared pages are in the way now, as they always are. */
	for (size_t i = 0; i < HUGE; i++) {
		EXPECT_EQ(madvise(self->l.mem + i * KSM_HUGE_SIZE, KSM_HUGE_SIZE, MADV_COLLAPSE),
			  -1);
		EXPECT_EQ(errno, EAGAIN);
	}
	EXPECT_EQ(wrong(&self->l), 0);
}

/* Sharing has ended: the process has written to all pages. */
TEST_F(turns, written)
{
	ASSERT_TRUE(collapse(&self->l) && merge(&self->l, self->area));
	write_all(&self->l, UNIQUE);
	khugepaged("0", "65536");
	/* The last to write to a shared page got it, and it is not on an LRU list yet. */
	ASSERT_EQ(ksm_start(self->k.dev, 4096, 0, 10000), 0);
	EXPECT_TRUE(wait_settled(&self->l, HUGE));
	EXPECT_EQ(splits(&self->l), 2 * HUGE);
	EXPECT_EQ(wrong(&self->l), 0);
}

/* It has written zeros again: what kept khugepaged away is gone. That does not go on for ever. */
TEST_F(turns, zeros_written)
{
	ASSERT_TRUE(collapse(&self->l) && merge(&self->l, self->area));
	write_all(&self->l, ZEROS);
	khugepaged("0", "65536");
	ASSERT_EQ(ksm_start(self->k.dev, 4096, 0, 10000), 0);
	EXPECT_TRUE(wait_settled(&self->l, HUGE));
	EXPECT_EQ(splits(&self->l), 2 * HUGE);
	EXPECT_EQ(wrong(&self->l), 0);
}

TEST_HARNESS_MAIN
