// SPDX-License-Identifier: GPL-2.0-only
/*
 * reclaim_test.c - no write is lost where memory is cleaned by scans and reclaimed
 *
 * A scan takes the dirty bit out of a pte, and reclaim drops what looks clean. What was
 * written is known, and compared: under pressure in a memory cgroup, with a processor that
 * remembers a pte as dirty, of pages in the swap cache, and of huge pages that are freed lazily.
 *
 * Needs the modules zram and loop in the VM.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_told.h"

#define N 64
#define HUGE_PAGES	KSM_HUGE_PAGES
#define HUGE_SIZE	KSM_HUGE_SIZE

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define CGROUP "/sys/fs/cgroup"
#define GROUP CGROUP "/ksm_watch_test"

/* What the child of a swap test and its threads share with the test. */
struct shared {
	const struct ksm *k;
	char *mem;
	size_t npages;
	unsigned long writes;		/* to do */
	unsigned char *value;		/* shadow copy: what each page holds */
	_Atomic unsigned long done;
	_Atomic unsigned long lost;
	_Atomic int stop;
};

FIXTURE(swap)
{
	struct ksm k;
	int area;
	struct ksm_swap swap;
	struct shared *s;
};

FIXTURE_VARIANT(swap)
{
	bool loop;
};

FIXTURE_VARIANT_ADD(swap, zram) { .loop = false };
/* Where pages stay in the swap cache after they were read. */
FIXTURE_VARIANT_ADD(swap, loop) { .loop = true };

FIXTURE_SETUP(swap)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	ksm_swap_on(&self->swap, variant->loop, 8192);
	self->s = mmap(NULL, sizeof(*self->s), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->s, MAP_FAILED);
	self->s->k = &self->k;
}

FIXTURE_TEARDOWN(swap)
{
	ksm_swap_off(&self->swap);
	close(self->area);
	ksm_finish(&self->k);
}

#define VALUES 3

/* Pages come in groups of four that are equal where the values are. */
static bool holds(struct shared *s, size_t page)
{
	return ksm_page_is(ksm_page(s->mem, page), 40 + s->value[page], page / 4);
}

static void give(struct shared *s, size_t page, unsigned char value)
{
	s->value[page] = value;
	ksm_fill_page(ksm_page(s->mem, page), 40 + value, page / 4);
}

static void *writer_main(void *arg)
{
	unsigned int seed = 20261121;
	struct shared *s = arg;

	ksm_use_cpu(1);
	for (unsigned long i = 0; i < s->writes && !s->lost; i++) {
		size_t page = rand_r(&seed) % s->npages;

		/* Most writes go to a few pages, so that others grow old. */
		if (i % 4)
			page %= s->npages / 16;
		s->lost += !holds(s, page);
		give(s, page, rand_r(&seed) % VALUES);
		s->done++;
	}
	s->stop = 1;
	return NULL;
}

static long fn_under_pressure(long shared, long unused, long unused2, long unused3)
{
	struct shared *s = (struct shared *)shared;
	unsigned int seed = 12345;
	pthread_t thread;

	(void)unused;
	(void)unused2;
	(void)unused3;
	s->value = calloc(s->npages, 1);
	for (size_t i = 0; i < s->npages; i++)
		give(s, i, i % VALUES);
	if (pthread_create(&thread, NULL, writer_main, s))
		ksm_die("cannot start a thread");
	/* The group's limit does its part; this adds what is in use just now. */
	while (!s->stop) {
		size_t first = rand_r(&seed) % s->npages;
		size_t n = rand_r(&seed) % 256 + 1;

		if (n > s->npages - first)
			n = s->npages - first;
		madvise(ksm_page(s->mem, first), n * PGSZ, MADV_PAGEOUT);
	}
	pthread_join(thread, NULL);
	for (size_t i = 0; i < s->npages; i++)
		s->lost += !holds(s, i);
	return s->lost;
}

static long group_events(const char *name)
{
	FILE *f = fopen(GROUP "/memory.events", "re");
	char line[128], key[64];
	long value, found = -1;

	if (!f)
		ksm_die("cannot open " GROUP "/memory.events: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", key, &value) == 2 && !strcmp(key, name))
			found = value;
	fclose(f);
	return found;
}

/* A process in a group that is too small for it writes, is reclaimed and scanned. */
TEST_F(swap, memory_pressure)
{
	enum { PAGES = 3072 };
	long swapped = told_vmstat("pswpout"), most = 0;
	long long hashed = ksm_stat("pages_hashed");
	struct ksm_child c;
	char limit[32];

	ksm_write_file(CGROUP "/cgroup.subtree_control", "+memory");
	rmdir(GROUP);
	ASSERT_EQ(mkdir(GROUP, 0755), 0) TH_LOG("mount cgroup2 on " CGROUP);
	snprintf(limit, sizeof(limit), "%lu", PAGES * 3 / 4 * PGSZ);
	ASSERT_EQ(ksm_write_file(GROUP "/memory.max", limit), 0);
	self->s->mem = ksm_mmap(PAGES);
	self->s->npages = PAGES;
	self->s->writes = 12000;
	ksm_spawn(&c);
	snprintf(limit, sizeof(limit), "%d", c.pid);
	ASSERT_EQ(ksm_write_file(GROUP "/cgroup.procs", limit), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, self->s->mem, PAGES), 0);
	ksm_call_start(&c, fn_under_pressure, (long)self->s, 0, 0, 0);
	ksm_use_cpu(0);
	while (!self->s->stop && !group_events("oom_kill")) {
		long now;

		ksm_passes(&self->k, 1);
		now = ksm_stat("pages_sharing");
		most = now > most ? now : most;
	}
	EXPECT_EQ(ksm_call_finish(&c), 0);
	swapped = told_vmstat("pswpout") - swapped;
	TH_LOG("%lu writes, %ld pages swapped out, %lld read by the scan, at most %ld sharing",
	       (unsigned long)self->s->done, swapped, ksm_stat("pages_hashed") - hashed, most);
	EXPECT_EQ(self->s->done, self->s->writes);
	/* The test was one. */
	EXPECT_GT(swapped, 0);
	EXPECT_GT(most, 0);
	ksm_end(&c);
	EXPECT_EQ(rmdir(GROUP), 0);
}

struct hot {
	volatile uint64_t *word[8];
	unsigned long lost, writes;
	_Atomic int stop;
};

static void *hot_main(void *arg)
{
	struct hot *h = arg;
	uint64_t last[ARRAY_SIZE(h->word)] = { 0 };

	ksm_use_cpu(1);
	while (!h->stop) {
		for (size_t i = 0; i < ARRAY_SIZE(h->word); i++) {
			h->lost += *h->word[i] != last[i];
			*h->word[i] = ++last[i];
		}
		h->writes++;
	}
	return NULL;
}

static void *scan_main(void *arg)
{
	struct shared *s = arg;

	ksm_use_cpu(0);
	while (!s->stop)
		ksm_passes(s->k, 1);
	return NULL;
}

/*
 * A processor writes to a few pages without a pause, with the same translations all
 * the time, as they are cleaned and reclaimed. Reclaim may leave the flush of a
 * clean pte for later, so what still writes then writes to a page that is gone.
 */
TEST_F(swap, tlb_is_warm)
{
	enum { ROUNDS = 5000, OUT = 200 };
	char *buf = ksm_mmap(N);
	long begin = told_vmstat("pswpout"), middle;
	pthread_t writer, scanner;
	struct hot h = { 0 };

	ksm_fn_fill((long)buf, N, 45, 0);
	for (size_t i = 0; i < ARRAY_SIZE(h.word); i++) {
		h.word[i] = (uint64_t *)ksm_page(buf, i);
		*h.word[i] = 0;
	}
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_EQ(pthread_create(&writer, NULL, hot_main, &h), 0);
	/* By turns first, then side by side, until enough was swapped out. */
	for (int i = 0; i < ROUNDS && told_vmstat("pswpout") < begin + OUT; i++) {
		ksm_passes(&self->k, 1);
		ASSERT_EQ(madvise(buf, N * PGSZ, MADV_PAGEOUT), 0);
	}
	middle = told_vmstat("pswpout");
	ASSERT_EQ(pthread_create(&scanner, NULL, scan_main, self->s), 0);
	for (int i = 0; i < ROUNDS && told_vmstat("pswpout") < middle + 5 * OUT; i++)
		ASSERT_EQ(madvise(buf, N * PGSZ, MADV_PAGEOUT), 0);
	self->s->stop = 1;
	pthread_join(scanner, NULL);
	h.stop = 1;
	pthread_join(writer, NULL);
	TH_LOG("%lu rounds of writes, %ld pages swapped out", h.writes,
	       told_vmstat("pswpout") - begin);
	EXPECT_EQ(h.lost, 0);
	EXPECT_GE(middle, begin + OUT);
	EXPECT_GE(told_vmstat("pswpout"), middle + 5 * OUT);
	for (size_t i = 0; i < ARRAY_SIZE(h.word); i++)
		EXPECT_EQ(*h.word[i], h.writes);
}

/*
 * Pages in the swap cache that were read, then written: what is in swap is old, and
 * only the dirtiness that the scan passes on says so.
 */
TEST_F(swap, cleaned_and_reclaimed)
{
	enum { PAGES = 256 };
	char *a = ksm_mmap(PAGES);

	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	for (int passes = 1; passes < 4; passes++) {
		ksm_fill(a, PAGES, 50);
		ASSERT_EQ(ksm_page_out(a, PAGES), PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 50), 0);
		ksm_fill(a, PAGES, 50 + passes);
		ksm_passes(&self->k, passes);
		ksm_page_out(a, PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 50 + passes), 0) TH_LOG("%d passes", passes);
	}
}

/* The same of a huge page: freed lazily, then written, it is not to be freed. */
TEST_F(swap, huge_lazyfree)
{
	for (int passes = 0; passes < 3; passes++) {
		char *p = ksm_mmap_huge(2);

		ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
		ksm_fill(p, 2 * HUGE_PAGES, 55);
		ksm_passes(&self->k, passes);
		ASSERT_EQ(madvise(p, 2 * HUGE_SIZE, MADV_FREE), 0);
		for (int i = 0; i < 2 * HUGE_PAGES; i++)
			*(volatile char *)ksm_page(p, i) += 1 + passes;
		ksm_passes(&self->k, 1 + passes);
		madvise(p, 2 * HUGE_SIZE, MADV_PAGEOUT);
		for (int i = 0; i < 2 * HUGE_PAGES; i++)
			*(volatile char *)ksm_page(p, i) -= 1 + passes;
		EXPECT_EQ(ksm_wrong(p, 2 * HUGE_PAGES, 55), 0) TH_LOG("%d passes", passes);
	}
}

TEST_HARNESS_MAIN
