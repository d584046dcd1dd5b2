// SPDX-License-Identifier: GPL-2.0-only
/*
 * collapse_test.c - the kernel makes huge pages where there are merged pages
 *
 * khugepaged and MADV_COLLAPSE copy 512 small pages into a huge one. They look at each of
 * them, and are careful with those that several processes map. Whether they take merged
 * pages or leave them is theirs to say; nothing may be lost, nobody else's memory may change, and a
 * kernel with its debugging on must have nothing to report.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_scanner.h"
#include "ksm_told.h"

#define PAGES KSM_HUGE_PAGES
#define THP "/sys/kernel/mm/transparent_hugepage/"

/* Of Linux 6.1; the C library may be older. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Room for a huge page, of small ones as yet. */
static char *map_small(size_t *npages)
{
	char *p = ksm_mmap(2 * PAGES);

	p += -(uintptr_t)p % KSM_HUGE_SIZE;
	*npages = PAGES;
	return p;
}

FIXTURE(collapse) {
	struct ksm k;
	int area;
	char *a, *b;
	size_t n;
};

FIXTURE_VARIANT(collapse) {
	size_t first, merged;	/* which pages are merged */
	bool zeros;		/* with the zero page */
};

FIXTURE_VARIANT_ADD(collapse, all) { .first = 0, .merged = PAGES };
FIXTURE_VARIANT_ADD(collapse, one) { .first = 7, .merged = 1 };
FIXTURE_VARIANT_ADD(collapse, half) { .first = PAGES / 2, .merged = PAGES / 2 };
FIXTURE_VARIANT_ADD(collapse, zeros) { .first = 0, .merged = PAGES / 2, .zeros = true };

FIXTURE_SETUP(collapse)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->a = map_small(&self->n);
	self->b = map_small(&self->n);
	ksm_fill(self->a, PAGES, 1);
	for (size_t i = variant->first; i < variant->first + variant->merged; i++) {
		if (variant->zeros)
			memset(ksm_page(self->a, i), 0, PGSZ);
		ksm_fill_page(ksm_page(self->b, i), 1, i);
	}
	if (ksm_register(self->area, self->a, PAGES) || ksm_register(self->area, self->b, PAGES))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
	ksm_merge_all(&self->k);
	if (variant->zeros ? ksm_stat("zero_pages") != (long long)variant->merged :
			     ksm_same_frames(0, self->a, 0, self->b, PAGES) != variant->merged)
		ksm_die("not merged");
	if (madvise(self->a, KSM_HUGE_SIZE, MADV_HUGEPAGE))
		ksm_die("MADV_HUGEPAGE: %s", strerror(errno));
}

FIXTURE_TEARDOWN(collapse)
{
	close(self->area);
	ksm_finish(&self->k);
}

static size_t wrong_pages(const char *a, size_t first, size_t merged, bool zeros)
{
	size_t wrong = 0;

	for (size_t i = 0; i < PAGES; i++)
		if (zeros && i >= first && i < first + merged)
			wrong += !ksm_page_is_zero(ksm_page(a, i));
		else
			wrong += !ksm_page_is(ksm_page(a, i), 1, i);
	return wrong;
}

static size_t wrong_twin(const char *b, size_t first, size_t merged)
{
	size_t wrong = 0;

	for (size_t i = first; i < first + merged; i++)
		wrong += !ksm_page_is(ksm_page(b, i), 1, i);
	return wrong;
}

/*
 * A shared page is in the way, and the process is told to try again, as it is of a page that
 * somebody else holds for a moment. The zero page is not.
 */
TEST_F(collapse, madvise)
{
	double end = ksm_now() + KSM_PATIENCE;
	int ret, err;

	do {
		ret = madvise(self->a, KSM_HUGE_SIZE, MADV_COLLAPSE);
		err = ret ? errno : 0;
	} while (variant->zeros && err == EAGAIN && ksm_now() < end);
	TH_LOG("MADV_COLLAPSE: %s, huge: %ld pages", ret ? strerror(err) : "done",
	       ksm_smaps(self->a, "AnonHugePages"));
	EXPECT_EQ(err, variant->zeros ? 0 : EAGAIN);
	EXPECT_EQ(ksm_smaps(self->a, "AnonHugePages"), variant->zeros ? PAGES : 0);
	EXPECT_EQ(wrong_pages(self->a, variant->first, variant->merged, variant->zeros), 0);
	EXPECT_EQ(wrong_twin(self->b, variant->first, variant->merged), 0);
	ksm_fill(self->a, PAGES, 2);
	EXPECT_EQ(ksm_wrong(self->a, PAGES, 2), 0);
	EXPECT_EQ(wrong_twin(self->b, variant->first, variant->merged), 0);
	/* And back: what is huge and equal is split and merged. */
	ksm_fill(self->a, PAGES, 1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(self->a, PAGES, 1), 0);
	EXPECT_EQ(wrong_twin(self->b, variant->first, variant->merged), 0);
}

/* In a process and in its child, which share every page. */
TEST_F(collapse, forked)
{
	struct ksm_child c;

	ksm_spawn(&c);
	madvise(self->a, KSM_HUGE_SIZE, MADV_COLLAPSE);
	ksm_call(&c, ksm_fn_fill, self->a, PAGES, 3);
	EXPECT_EQ(wrong_pages(self->a, variant->first, variant->merged, variant->zeros), 0);
	EXPECT_EQ(wrong_twin(self->b, variant->first, variant->merged), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, self->a, PAGES, 3), 0);
	ksm_end(&c);
	EXPECT_EQ(wrong_pages(self->a, variant->first, variant->merged, variant->zeros), 0);
}

static long long collapse_scans(void)
{
	return ksm_read_number(THP "khugepaged/full_scans");
}

/*
 * khugepaged goes over it some times, while kksmd merges what it can; and makes a huge page
 * of memory beside it that is not registered, or it has not been there.
 */
TEST_F_TIMEOUT(collapse, khugepaged, 300)
{
	double end = ksm_now() + 3 * KSM_PATIENCE;
	long long scans = collapse_scans();
	size_t n;
	char *control = map_small(&n);

	ksm_fill(control, PAGES, 5);
	ASSERT_EQ(0, madvise(control, KSM_HUGE_SIZE, MADV_HUGEPAGE));
	ksm_write_file(THP "enabled", "madvise");
	ksm_write_file(THP "khugepaged/scan_sleep_millisecs", "10");
	ksm_write_file(THP "khugepaged/alloc_sleep_millisecs", "10");
	ksm_write_file(THP "khugepaged/pages_to_scan", "65536");
	/* As many pages that are shared as there may be. */
	ksm_write_file(THP "khugepaged/max_ptes_shared", "511");
	ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 1000), 0);
	while ((collapse_scans() < scans + 4 || !ksm_smaps(control, "AnonHugePages")) &&
	       ksm_now() < end)
		usleep(20000);
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	ksm_write_file(THP "khugepaged/scan_sleep_millisecs", "10000");
	ksm_write_file(THP "khugepaged/alloc_sleep_millisecs", "60000");
	ksm_write_file(THP "khugepaged/pages_to_scan", "4096");
	ksm_write_file(THP "khugepaged/max_ptes_shared", "256");
	TH_LOG("huge: %ld pages", ksm_smaps(self->a, "AnonHugePages"));
	EXPECT_LE(scans + 4, collapse_scans());
	EXPECT_EQ(PAGES, ksm_smaps(control, "AnonHugePages"));
	EXPECT_EQ(ksm_wrong(control, PAGES, 5), 0);
	EXPECT_EQ(wrong_pages(self->a, variant->first, variant->merged, variant->zeros), 0);
	EXPECT_EQ(wrong_twin(self->b, variant->first, variant->merged), 0);
	ksm_fill(self->a, PAGES, 4);
	EXPECT_EQ(ksm_wrong(self->a, PAGES, 4), 0);
	EXPECT_EQ(wrong_twin(self->b, variant->first, variant->merged), 0);
}

/* @done: how often it succeeded */
struct collapser {
	char *mem;
	_Atomic int stop, done;
};

static void *collapse_main(void *arg)
{
	struct collapser *c = arg;

	while (!c->stop) {
		usleep(rand() % 20000);
		c->done += !madvise(c->mem, KSM_HUGE_SIZE, MADV_COLLAPSE);
	}
	return NULL;
}

/*
 * Both at once: pages are merged while they are looked at to be collapsed, and the other way
 * round. Until each has been seen to happen some times; where everything is slow, once.
 */
TEST_F_TIMEOUT(device, while_merging, 600)
{
	enum { TIMES = 20 };
	double slow = ksm_now() + 2 * KSM_PATIENCE, end = slow + 3 * KSM_PATIENCE;
	int area[2] = { self->area, ksm_area(&self->k) };
	struct collapser collapser = { 0 };
	struct ksm_scanner scanner;
	int merged = 0;
	pthread_t thread;
	char *mem[2];
	size_t n;

	for (int i = 0; i < 2; i++) {
		mem[i] = map_small(&n);
		ASSERT_EQ(0, ksm_register(area[i], mem[i], PAGES));
	}
	collapser.mem = mem[0];
	ksm_scanner_start(&scanner, self->k.dev, 2 * PAGES);
	ASSERT_EQ(0, pthread_create(&thread, NULL, collapse_main, &collapser));
	for (int seed = 1, times = TIMES; merged < times || collapser.done < times; seed++) {
		if (ksm_now() > slow)
			times = 1;
		ASSERT_GT(end, ksm_now()) {
			TH_LOG("collapsed %d times, merged %d times", collapser.done, merged);
		}
		/* Of small pages each time: a huge one that was rebuilt is left alone for long. */
		ASSERT_EQ(0, madvise(mem[0], KSM_HUGE_SIZE, MADV_DONTNEED));
		ASSERT_EQ(0, madvise(mem[0], KSM_HUGE_SIZE, MADV_NOHUGEPAGE));
		for (int i = 0; i < 2; i++)
			ksm_fill(mem[i], PAGES, seed);
		ASSERT_EQ(0, madvise(mem[0], KSM_HUGE_SIZE, MADV_HUGEPAGE));
		usleep(rand() % 50000);
		merged += ksm_same_frames(0, mem[0], 0, mem[1], PAGES) > 0;
		for (int i = 0; i < 2; i++)
			ASSERT_EQ(0, ksm_wrong(mem[i], PAGES, seed));
	}
	collapser.stop = 1;
	pthread_join(thread, NULL);
	ksm_scanner_stop(&scanner);
	TH_LOG("collapsed %d times, merged %d times", collapser.done, merged);
	close(area[1]);
}

TEST_HARNESS_MAIN
