// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork_test.c - a process with registered memory forks, and has threads
 *
 * A registration belongs to an address space: fork does not inherit it. A child maps merged
 * pages, too, and what each side writes is its own. Contents must survive in every process
 * and for every thread, also while others scan.
 */
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_scan_until.h"
#include "ksm_twins.h"

#define N 64

/* Pages that a fork shares already are merged in the registrant only. */
TEST_F(device, fork_before_registration)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	struct ksm_child c;
	uint64_t pfns[N];

	ksm_fill(a, N, 1);
	ksm_fill(b, N, 1);
	ksm_spawn(&c);
	ksm_pfns(c.pid, a, N, pfns);
	ASSERT_EQ(ksm_moved(0, a, N, pfns), 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_moved(c.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 1), 0);

	/* Each side writes; none sees the other. */
	ksm_call(&c, ksm_fn_fill, a, N, 2);
	ksm_fill(b, N, 3);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
	EXPECT_EQ(ksm_wrong(b, N, 3), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 2), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 1), 0);
	ksm_end(&c);
}

/* The child maps the merged pages too, but what it does then is its own. */
TEST_F(device, fork_after_merge)
{
	struct ksm_child c;
	uint64_t pfns[N];
	char *a, *b;

	make_twins(self->area, &a, &b, N, 4);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(ksm_moved(0, b, N, pfns), 0);
	ksm_spawn(&c);
	EXPECT_EQ(ksm_moved(c.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_moved(c.pid, b, N, pfns), 0);
	EXPECT_EQ(ksm_stat("regions"), 2);
	/* Four mappings of each page. */
	EXPECT_EQ(ksm_kpagecount(pfns[0]), 4);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), 3 * N);

	ksm_call(&c, ksm_fn_fill, a, N, 5);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 5), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 4), 0);
	EXPECT_EQ(ksm_wrong(a, N, 4), 0);
	EXPECT_EQ(ksm_wrong(b, N, 4), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 2 * N);

	/* The child's writes are not registered, so they do not merge. */
	ksm_call(&c, ksm_fn_fill, a, N, 4);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, c.pid, a, N), 0);

	ksm_fill(b, N, 6);
	EXPECT_EQ(ksm_wrong(b, N, 6), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 4), 0);
	ksm_end(&c);
	EXPECT_EQ(ksm_wrong(a, N, 4), 0);
	EXPECT_EQ(ksm_wrong(b, N, 6), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
}

/* Fork with merged pages, over and over, so that mappings pass the bound. */
TEST_F(device, fork_many)
{
	enum { CHILDREN = 20, PAGES = 32 };
	struct ksm_child c[CHILDREN];
	char *buf = ksm_mmap(PAGES);

	/* 32 equal pages in 21 processes: 672 mappings of one page. */
	ksm_fill_same(buf, PAGES, 7);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_distinct(0, buf, PAGES), 1);
	for (int i = 0; i < CHILDREN; i++)
		ksm_spawn(&c[i]);
	EXPECT_EQ(ksm_stat("pages_shared"), 1);
	EXPECT_EQ(ksm_stat("pages_sharing"), (CHILDREN + 1) * PAGES - 1);
	for (int i = 0; i < CHILDREN; i += 2)
		ksm_call(&c[i], ksm_fn_fill, buf, PAGES, 8 + i);
	for (int i = 0; i < CHILDREN; i++) {
		if (i % 2) {
			EXPECT_EQ(ksm_call(&c[i], ksm_fn_wrong_same, buf, PAGES, 7), 0);
		} else {
			EXPECT_EQ(ksm_call(&c[i], ksm_fn_wrong, buf, PAGES, 8 + i), 0);
		}
		ksm_end(&c[i]);
	}
	EXPECT_EQ(ksm_wrong_same(buf, PAGES, 7), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), PAGES - 1);
}

/* A child registers its copy itself, with an area of its own or an inherited one. */
TEST_F(device, child_registers)
{
	struct ksm_child own, inherited;
	uint64_t pfns[N];
	char *a, *b;

	make_twins(self->area, &a, &b, N, 9);
	ksm_spawn(&own);
	ksm_spawn(&inherited);
	ASSERT_GE(ksm_call(&own, ksm_fn_area_register, self->k.dev, a, N), 0);
	/* The same addresses in another mm do not overlap with ours. */
	ASSERT_EQ(ksm_call(&inherited, ksm_fn_register, self->area, a, N), 0);
	EXPECT_EQ(ksm_stat("regions"), 4);
	ksm_call(&own, ksm_fn_fill, a, N, 9);
	ksm_call(&inherited, ksm_fn_fill, a, N, 9);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	EXPECT_EQ(ksm_moved(own.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_moved(inherited.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_call(&own, ksm_fn_wrong, a, N, 9), 0);
	EXPECT_EQ(ksm_call(&inherited, ksm_fn_wrong, a, N, 9), 0);

	/* Removing with our copy of the fd drops the child's region too. */
	ASSERT_EQ(ksm_remove(self->area), 0);
	EXPECT_EQ(ksm_stat("regions"), 1);
	ksm_end(&own);
	ksm_end(&inherited);
	EXPECT_EQ(ksm_wrong(a, N, 9), 0);
	EXPECT_EQ(ksm_wrong(b, N, 9), 0);
}

/*
 * A child that frees its memory lazily must not take the parent's with it. The copy
 * that an unmerge makes is clean in the page table, and where nothing else says that
 * its contents matter, MADV_FREE of another process that maps it lets reclaim drop it.
 */
TEST_F(device, lazily_freed_by_child_after_unmerge)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	int status;
	pid_t pid;

	ksm_fill(a, N, 41);
	ksm_fill(b, N, 41);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	ASSERT_EQ(ksm_remove(self->area), 0);
	/* Batches of the LRU hold references and put off what MADV_FREE wants. */
	ASSERT_EQ(ksm_write_file("/proc/sys/vm/drop_caches", "1"), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (madvise(a, N * PGSZ, MADV_FREE) || madvise(b, N * PGSZ, MADV_FREE))
			_exit(1);
		_exit(ksm_write_file("/proc/sys/vm/drop_caches", "1") ? 2 : 0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_PAGEOUT), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_PAGEOUT), 0);
	EXPECT_EQ(ksm_wrong(a, N, 41), 0);
	EXPECT_EQ(ksm_wrong(b, N, 41), 0);
}

/* ---- while scanning ---- */

/* Fork under scan: a page is never write-protected on one side only. */
TEST_F(device, fork_while_scanning)
{
	enum { ROUNDS = 25 };
	int *stop = shared_flag();
	struct ksm_child scanner, c;
	size_t wrong = 0;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 50);
	ksm_spawn(&scanner);
	ksm_call_start(&scanner, fn_scan_until, self->k.scan, KSM_ARG(stop), 0, 0);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t seed = 50 + 3 * round;

		ksm_fill(a, N, seed);
		ksm_fill(b, N, seed);
		usleep(round * 500);
		ksm_spawn(&c);
		ksm_fill(a, N, seed + 1);
		ksm_call(&c, ksm_fn_fill, b, N, seed + 2);
		wrong += ksm_wrong(a, N, seed + 1);
		wrong += ksm_wrong(b, N, seed);
		wrong += ksm_call(&c, ksm_fn_wrong, a, N, seed);
		wrong += ksm_call(&c, ksm_fn_wrong, b, N, seed + 2);
		ksm_end(&c);
		ASSERT_EQ(wrong, 0) TH_LOG("round %d", round);
	}
	*stop = 1;
	EXPECT_GT(ksm_call_finish(&scanner), 0);
	ksm_end(&scanner);
}

#define THREADS 4
#define THREAD_PAGES 16

struct worker {
	pthread_t thread;
	char *pages;
	volatile int *stop;
	uint64_t id;
	long rounds;
	size_t wrong;
};

/*
 * Each thread owns pages next to those of the others. It writes contents that
 * are equal in all threads at times, and checks them after the scanner had time
 * to merge.
 */
static void *worker(void *arg)
{
	struct worker *w = arg;

	for (; !*w->stop; w->rounds++) {
		uint64_t seed = w->rounds % 2 ? 1000 + w->id : 1000;

		for (int i = 0; i < THREAD_PAGES; i++)
			ksm_fill_page(ksm_page(w->pages, i * THREADS), seed, i);
		for (int j = 0; j < 20; j++) {
			for (int i = 0; i < THREAD_PAGES; i++)
				w->wrong += !ksm_page_is(ksm_page(w->pages, i * THREADS), seed, i);
			usleep(500);
		}
		/* The last word alone: a write to a page that may just be merged. */
		for (int i = 0; i < THREAD_PAGES; i++) {
			uint64_t *word = (uint64_t *)ksm_page(w->pages, i * THREADS + 1) - 1;
			uint64_t old = *word;

			*word = ~old;
			w->wrong += *(volatile uint64_t *)word != ~old;
			*word = old;
		}
	}
	return NULL;
}

TEST_F(device, threads)
{
	char *buf = ksm_mmap(THREADS * THREAD_PAGES);
	struct worker w[THREADS];
	long long merged = 0;
	volatile int stop = 0;

	ASSERT_EQ(ksm_register(self->area, buf, THREADS * THREAD_PAGES), 0);
	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .pages = ksm_page(buf, i), .stop = &stop, .id = i };
		ASSERT_EQ(pthread_create(&w[i].thread, NULL, worker, &w[i]), 0);
	}
	for (int i = 0; i < 400; i++) {
		long long sharing;

		ASSERT_EQ(ksm_scan(self->k.scan, 2 * THREADS * THREAD_PAGES), 0);
		sharing = ksm_stat("pages_sharing");
		merged = sharing > merged ? sharing : merged;
	}
	stop = 1;
	for (int i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		EXPECT_EQ(w[i].wrong, 0);
		EXPECT_GT(w[i].rounds, 1);
	}
	/* Else the threads wrote too fast for this to test anything. */
	EXPECT_GT(merged, 0);
}

TEST_HARNESS_MAIN
