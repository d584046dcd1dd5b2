// SPDX-License-Identifier: GPL-2.0-only
/*
 * watch_test.c - a scan reads the pages that changed, and no others
 *
 * What was read is taken from the driver's counters and, page by page, from the
 * tracepoint ksmdev_hash. Passes are counted, never seconds. Idle pages, merged ones,
 * equal ones that cannot be merged; a processor that remembers a pte as dirty; mlock,
 * soft-dirty bits and migration. That all changes are found is in written_test.c, and
 * what becomes of huge pages in huge_test.c.
 *
 * Needs a VM where the kernel may patch its text, as enabling a tracepoint does: tests/suite.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_told.h"
#include "ksm_traced.h"

#define N 64
#define HUGE_PAGES	KSM_HUGE_PAGES
#define HUGE_SIZE	KSM_HUGE_SIZE

#define SYSFS "/sys/class/misc/ksm/"

/* ---- what was read ---- */

/* From here on count anew. */
#define COUNT_ANEW() do { \
	self->hashed = ksm_stat("pages_hashed"); \
	self->skipped = ksm_stat("pages_skipped"); \
	self->scanned = ksm_stat("pages_scanned"); \
	trace_clear(); \
} while (0)

#define HASHED()	(ksm_stat("pages_hashed") - self->hashed)
#define SKIPPED()	(ksm_stat("pages_skipped") - self->skipped)
#define SCANNED()	(ksm_stat("pages_scanned") - self->scanned)

static size_t chunks_of(const char *addr, size_t npages)
{
	return ((uintptr_t)addr + (npages - 1) * PGSZ) / HUGE_SIZE -
	       (uintptr_t)addr / HUGE_SIZE + 1;
}

TEST_F(watch, clean_pages_are_not_read)
{
	enum { PAGES = 2 * HUGE_PAGES + 100 };
	char *buf = ksm_mmap(PAGES);
	unsigned char times[PAGES];
	const long long chunks = chunks_of(buf, PAGES);
	uint64_t before[PAGES];
	size_t other = 0;

	ksm_fill(buf, PAGES, 1);
	ksm_pfns(0, buf, PAGES, before);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);

	/* New: it may be written all the time. */
	COUNT_ANEW();
	ksm_passes(&self->k, 1);
	EXPECT_EQ(HASHED(), 0);
	EXPECT_EQ(SKIPPED(), PAGES);
	EXPECT_EQ(traced(buf, PAGES, NULL), 0);
	EXPECT_STATS(0, 0, 0, PAGES, 0);

	/* Not written: each is read once, and is a candidate. */
	ksm_passes(&self->k, 1);
	EXPECT_EQ(HASHED(), PAGES);
	EXPECT_EQ(traced(buf, PAGES, times), PAGES);
	for (int i = 0; i < PAGES; i++)
		other += times[i] != 1;
	EXPECT_EQ(other, 0);
	EXPECT_STATS(0, 0, PAGES, 0, 0);

	for (int pass = 2; pass < 8; pass++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SKIPPED(), PAGES - HASHED());
		EXPECT_EQ(SCANNED(), PAGES);
		EXPECT_EQ((long long)traced(buf, PAGES, NULL), HASHED());
		EXPECT_STATS(0, 0, PAGES, 0, 0);
	}

	/* And so it goes on, with each page's turn once a round. */
	COUNT_ANEW();
	ksm_passes(&self->k, ROUND);
	EXPECT_EQ(HASHED(), PAGES);
	EXPECT_EQ(SKIPPED(), (ROUND - 1) * PAGES);
	EXPECT_EQ(traced(buf, PAGES, times), PAGES);
	for (int i = 0; i < PAGES; i++)
		other += times[i] != 1;
	EXPECT_EQ(other, 0) TH_LOG("%zu of %d pages were not read once in %d passes", other,
				   PAGES, ROUND);
	EXPECT_STATS(0, 0, PAGES, 0, 0);
	EXPECT_EQ(ksm_moved(0, buf, PAGES, before), 0);
	EXPECT_EQ(ksm_wrong(buf, PAGES, 1), 0);
}

/* What is merged is not read again at all, nor what the zero page is mapped for. */
TEST_F(watch, merged_pages_are_not_read)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);

	ksm_fill(a, N, 2);
	ksm_fill(b, N, 2);
	ksm_fn_zero((long)zero, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	COUNT_ANEW();
	ksm_passes(&self->k, ROUND);
	EXPECT_EQ(HASHED(), 0);
	EXPECT_EQ(SKIPPED(), ROUND * 3 * N);
	EXPECT_STATS(N, N, 0, 0, N);
}

/* Only the pages that were written are read, whatever was written, and not before that has ended. */
TEST_F(watch, only_what_was_written)
{
	enum { PAGES = 300 };
	char *buf = ksm_mmap(PAGES);
	const long long chunks = chunks_of(buf, PAGES);
	unsigned char times[PAGES];
	size_t other = 0;
	char copy[PGSZ];

	ksm_fill(buf, PAGES, 3);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ksm_passes(&self->k, PASSES);

	/* One byte, which is at another place in each. */
	for (int i = 0; i < PAGES; i += 3)
		ksm_page(buf, i)[i * 13]++;
	for (int same = 0; same < 2; same++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SKIPPED(), PAGES - HASHED());
		EXPECT_STATS(0, 0, PAGES - PAGES / 3, PAGES / 3, 0);
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), PAGES / 3 + chunks);
		EXPECT_EQ(SKIPPED(), PAGES - HASHED());
		EXPECT_EQ((long long)traced(buf, PAGES, times), HASHED());
		for (int i = 0; i < PAGES; i += 3)
			other += times[i] != 1;
		EXPECT_EQ(other, 0);
		EXPECT_STATS(0, 0, PAGES, 0, 0);

		/* The same contents as before are a write, too. */
		for (int i = 0; i < PAGES; i += 3) {
			memcpy(copy, ksm_page(buf, i), PGSZ);
			memcpy(ksm_page(buf, i), copy, PGSZ);
		}
	}
}

/*
 * Thousands of equal pages, none of which can be merged: a pass costs no reading,
 * however long that lasts.
 */
TEST_F(watch, equal_pages_without_room)
{
	enum { PAGES = 2 * HUGE_PAGES };
	long long limit = ksm_stat("max_kernel_pages");
	char *buf = ksm_mmap(PAGES), text[32];
	const long long chunks = chunks_of(buf, PAGES);

	snprintf(text, sizeof(text), "%lld", limit);
	ksm_fill_same(buf, PAGES, 112);
	ASSERT_EQ(ksm_write_file(SYSFS "max_kernel_pages", "0"), 0);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ksm_passes(&self->k, PASSES);
	for (int i = 0; i < 20; i++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SCANNED(), PAGES);
	}
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	/* With room they are merged at once. */
	ASSERT_EQ(ksm_write_file(SYSFS "max_kernel_pages", text), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, buf, PAGES), PAGES / KSM_SHARE_LIMIT);
	EXPECT_EQ(ksm_wrong_same(buf, PAGES, 112), 0);
}

TEST_F(watch, equal_pages_that_are_held)
{
	enum { PAGES = 2 * HUGE_PAGES, PIPES = PAGES / 16 };
	char *buf = ksm_mmap(PAGES);
	const long long chunks = chunks_of(buf, PAGES);
	int fds[PIPES][2];
	long long failed;

	ksm_fill_same(buf, PAGES, 113);
	for (int i = 0; i < PIPES; i++) {
		struct iovec iov = { ksm_page(buf, i * 16), 16 * PGSZ };

		ASSERT_EQ(pipe(fds[i]), 0);
		ASSERT_EQ(vmsplice(fds[i][1], &iov, 1, 0), (ssize_t)(16 * PGSZ));
	}
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ASSERT_EQ(ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_merge_failed/enable", "1"), 0);
	ksm_passes(&self->k, 6);
	for (int round = 0; round < 2; round++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 16);
		EXPECT_LE(HASHED(), 16 * chunks);
		EXPECT_GE(SKIPPED(), 16 * (PAGES - chunks));
		failed = 0;
		{
			FILE *f = fopen(INSTANCE "/trace", "re");
			char line[512];

			ASSERT_NE(f, NULL);
			while (fgets(line, sizeof(line), f))
				failed += !!strstr(line, "ksmdev_merge_failed: ");
			fclose(f);
		}
		TH_LOG("%lld attempts in 16 passes", failed);
		/* Each page is tried in one pass of 16, with a few others. */
		EXPECT_LE(failed, 4 * PAGES);
		EXPECT_STATS(0, 0, ksm_stat("pages_unshared"), ksm_stat("pages_volatile"), 0);
	}
	ASSERT_EQ(ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_merge_failed/enable", "0"), 0);
	for (int i = 0; i < PIPES; i++) {
		close(fds[i][0]);
		close(fds[i][1]);
	}
	ksm_merge_held(&self->k);
	ksm_merge_held(&self->k);
	EXPECT_EQ(ksm_distinct(0, buf, PAGES), PAGES / KSM_SHARE_LIMIT);
	EXPECT_EQ(ksm_wrong_same(buf, PAGES, 113), 0);
}

/* ---- a processor that remembers that the pte is dirty ---- */

/* A change in each cache line is one in any sample. */
#define LINE_WORDS 8

struct warm {
	volatile uint64_t *word;
	_Atomic int stop;
};

static void *warm_main(void *arg)
{
	struct warm *w = arg;

	ksm_use_cpu(1);
	/* Nothing but this page, so that its translation stays in the TLB. */
	while (!w->stop)
		for (size_t i = 0; i < PGSZ / sizeof(*w->word); i += LINE_WORDS)
			++w->word[i];
	return NULL;
}

/*
 * A thread on another processor writes to one page all the time, and to nothing
 * else. If the pte is cleaned behind its back it goes on writing through its
 * TLB, and no dirty bit tells.
 * Return: after how many of @rounds passes no page was known to change.
 */
static size_t count_missed(const struct ksm *k, char *addr, int rounds)
{
	struct warm w = { .word = (uint64_t *)addr };
	size_t missed = 0;
	pthread_t thread;

	ksm_use_cpu(0);
	if (pthread_create(&thread, NULL, warm_main, &w))
		ksm_die("cannot start a thread");
	for (int round = 0; round < rounds; round++) {
		uint64_t seen = *w.word;

		/* It has written since the last pass. */
		while (*w.word < seen + 10000)
			;
		ksm_passes(k, 1);
		missed += !ksm_stat("pages_volatile");
	}
	w.stop = 1;
	pthread_join(thread, NULL);
	return missed;
}

TEST_F(watch, tlb_is_warm)
{
	char *buf = ksm_mmap(N), *huge = ksm_mmap_huge(1);

	ksm_fill(buf, N, 35);
	ksm_fill(huge, HUGE_PAGES, 36);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_EQ(ksm_register(self->area, huge, HUGE_PAGES), 0);
	*(uint64_t *)ksm_page(buf, N / 2) = 0;
	EXPECT_EQ(count_missed(&self->k, ksm_page(buf, N / 2), 40), 0);
	EXPECT_EQ(ksm_stat("pages_unshared"), N - 1 + HUGE_PAGES);
	*(uint64_t *)ksm_page(huge, 100) = 0;
	EXPECT_EQ(count_missed(&self->k, ksm_page(huge, 100), 40), 0);
	EXPECT_EQ(ksm_stat("pages_unshared"), N + HUGE_PAGES - 1);
	EXPECT_EQ(ksm_smaps(huge, "AnonHugePages"), HUGE_PAGES);
}

/* ---- what else the kernel does with pages ---- */

static size_t soft_dirty(const char *addr, size_t npages)
{
	return told_pagemap(0, addr, npages, PM_SOFT_DIRTY, PM_SOFT_DIRTY);
}

TEST_F(watch, soft_dirty_stays)
{
	char *buf = ksm_mmap(N), *huge = ksm_mmap_huge(1);

	if (!ksm_has_soft_dirty())
		SKIP(return, "this kernel has no soft-dirty bits");
	ksm_fill(buf, N, 60);
	ksm_fill(huge, HUGE_PAGES, 61);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_EQ(ksm_register(self->area, huge, HUGE_PAGES), 0);
	for (int passes = 1; passes < 5; passes++) {
		ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
		ksm_passes(&self->k, passes);
		EXPECT_EQ(soft_dirty(buf, N), 0);
		EXPECT_EQ(soft_dirty(huge, HUGE_PAGES), 0);
		for (int i = 0; i < N; i += 2)
			ksm_page(buf, i)[passes]++;
		ksm_page(huge, 100)[passes]++;
		/* Cleaned, and still to be saved by whoever asks. */
		ksm_passes(&self->k, passes);
		EXPECT_EQ(soft_dirty(buf, N), N / 2);
		EXPECT_EQ(soft_dirty(huge, HUGE_PAGES), HUGE_PAGES);
	}
	EXPECT_EQ(ksm_smaps(huge, "AnonHugePages"), HUGE_PAGES);
}

TEST_F(watch, mlocked)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	const long long chunks = chunks_of(a, N) + chunks_of(b, N);

	ksm_fill(a, N, 62);
	ksm_fill(b, N, 63);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_passes(&self->k, 1);
	ASSERT_EQ(mlock(a, N * PGSZ), 0);
	ksm_passes(&self->k, 1);
	EXPECT_STATS(0, 0, 2 * N, 0, 0);
	for (int i = 0; i < 3; i++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SKIPPED(), 2 * N - HASHED());
	}
	ksm_fill(a, N, 63);
	ksm_passes(&self->k, PASSES);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ksm_fill(b, N, 64);
	ksm_passes(&self->k, PASSES);
	EXPECT_EQ(ksm_wrong(a, N, 63), 0);
	EXPECT_EQ(ksm_wrong(b, N, 64), 0);
	/* Shared pages that nobody shares any more are private again. */
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
}

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

/* Move a page to another frame, once for all: its old one is not used any more. */
static void migrate(char *page)
{
	/* It may wait for a moment in a CPU's list. */
	for (int i = 0; i < 50; i++) {
		if (!madvise(page, PGSZ, MADV_SOFT_OFFLINE))
			return;
		usleep(20000);
	}
	ksm_die("MADV_SOFT_OFFLINE: %s; the kernel needs CONFIG_MEMORY_FAILURE", strerror(errno));
}

/*
 * Pages are moved to other frames. What was written before or after that is found
 * all the same, and what was not is still what it was.
 */
TEST_F(watch, migrated)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	uint64_t before[N];

	ksm_fill(a, N, 71);
	ksm_fill(b, N, 72);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	for (int round = 0; round < 2; round++) {
		size_t same = 0, wrong = 0;

		ksm_passes(&self->k, PASSES);
		EXPECT_STATS(0, 0, 2 * N, 0, 0);
		/* Some before it, some after it, some never. */
		for (int i = 0; i < N; i += 4)
			ksm_fill_page(ksm_page(a, i), 72, i);
		ksm_pfns(0, a, N, before);
		for (int i = 0; i < N; i += 3)
			migrate(ksm_page(a, i));
		EXPECT_GE(ksm_moved(0, a, N, before), DIV_UP(N, 3));
		/* Those of the other buffer by the kernel's choice, if it likes. */
		ASSERT_EQ(ksm_write_file("/proc/sys/vm/compact_memory", "1"), 0);
		for (int i = 1; i < N; i += 4)
			ksm_fill_page(ksm_page(a, i), 72, i);
		ksm_merge_all(&self->k);
		for (int i = 0; i < N; i++) {
			if (i % 4 < 2)
				same += ksm_same_frames(0, ksm_page(a, i), 0, ksm_page(b, i), 1);
			wrong += !ksm_page_is(ksm_page(a, i), i % 4 < 2 ? 72 : 71, i);
		}
		EXPECT_EQ(same, N / 2) TH_LOG("round %d", round);
		EXPECT_EQ(wrong, 0) TH_LOG("round %d", round);
		EXPECT_EQ(ksm_wrong(b, N, 72), 0);
		EXPECT_STATS(N / 2, N / 2, N, 0, 0);
		/* Private pages of their own again. */
		ksm_fill(a, N, 71);
		ksm_fill(b, N, 72);
	}
}

TEST_HARNESS_MAIN
