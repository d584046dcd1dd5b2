// SPDX-License-Identifier: GPL-2.0-only
/*
 * hold_test.c - scans do not keep locks from those who need them
 *
 * By the driver's own account (held_us), and by what a process can still do while its
 * memory is scanned from all sides.
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

/* Little memory, in one page table: the worst case. */
#define N 128UL

/**
 * struct scans - all that scan, at full speed
 * @k: the device
 * @area: where the memory is registered
 * @mem: it, of this process
 * @stop: set to end
 * @merged: how many pages KSM_MERGE_RANGE has merged
 * @thread: those that call KSM_SCAN and KSM_MERGE_RANGE
 */
struct scans {
	const struct ksm *k;
	int area;
	char *mem;
	volatile int stop;
	_Atomic long merged;
	pthread_t thread[4];
};

static void *scan_main(void *arg)
{
	struct scans *s = arg;
	int fd = ioctl(s->k->dev, KSM_CREATE_SCAN);

	while (!s->stop)
		ksm_scan(fd, N);
	close(fd);
	return NULL;
}

static void *merge_main(void *arg)
{
	struct scans *s = arg;
	uint64_t merged;

	while (!s->stop)
		if (!ksm_merge_range(s->area, s->mem, N, &merged))
			s->merged += merged;
	return NULL;
}

static void *unmerge_main(void *arg)
{
	struct scans *s = arg;

	while (!s->stop) {
		ksm_unmerge(s->area);
		ksm_fdinfo(s->area, "pages_sharing");
	}
	return NULL;
}

static void scans_begin(struct scans *s, unsigned int threads, bool unmerge)
{
	if (ksm_set_pace(s->k->dev, 0, threads) || ksm_start(s->k->dev, 100 * threads, 0, 0))
		ksm_die("kksmd does not start");
	s->stop = 0;
	pthread_create(&s->thread[0], NULL, scan_main, s);
	pthread_create(&s->thread[1], NULL, scan_main, s);
	pthread_create(&s->thread[2], NULL, merge_main, s);
	pthread_create(&s->thread[3], NULL, unmerge ? unmerge_main : scan_main, s);
}

static void scans_end(struct scans *s)
{
	s->stop = 1;
	for (size_t i = 0; i < 4; i++)
		pthread_join(s->thread[i], NULL);
	ksm_stop(s->k->dev);
}

/* Room for so many page tables of small pages. */
static char *mmap_tables(size_t tables)
{
	size_t size = (tables + 1) * KSM_HUGE_SIZE;
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED)
		ksm_die("no memory: %m");
	madvise(mem, size, MADV_NOHUGEPAGE);
	return (char *)(((uintptr_t)mem + KSM_HUGE_SIZE - 1) & ~(KSM_HUGE_SIZE - 1));
}

#define LONGEST "/sys/class/misc/ksm/longest_hold_us"

/*
 * Of three seconds, what part a scan held a lock in; in @bound what part it may be, which is @part
 * unless a hold took longer than the longest rest, 10 ms, makes up for: a holder was scheduled
 * out, or the kernel is slow.
 */
static double part_held(double part, double *bound)
{
	double begin, longest;
	long long held;

	if (ksm_write_file(LONGEST, "0"))
		ksm_die("cannot write to " LONGEST);
	begin = ksm_now();
	held = ksm_stat("held_us");
	/* Long enough for a burst not to count. */
	sleep(3);
	held = ksm_stat("held_us") - held;
	begin = ksm_now() - begin;
	longest = ksm_stat("longest_hold_us");
	*bound = longest / (longest + 10000);
	if (*bound < part)
		*bound = part;
	return held / 1e6 / begin;
}

/* The locks of a process that is one page table are not held for more than a part of the time. */
TEST_F_TIMEOUT(device, part_of_the_time, 120)
{
	static const unsigned int threads[] = { 1, 64 };
	struct scans s = { .k = &self->k, .area = self->area, .mem = mmap_tables(1) };

	ksm_fill(s.mem, N / 2, 1);
	ksm_fill(s.mem + N / 2 * PGSZ, N / 2, 1);
	ASSERT_EQ(0, ksm_register(self->area, s.mem, N));
	for (int i = 0; i < 2; i++) {
		long long visits;
		double held, bound;

		scans_begin(&s, threads[i], false);
		ASSERT_TRUE(ksm_wait_more("full_scans", 10, 60));
		visits = ksm_stat("pages_scanned");
		/* The engine aims at a tenth. A holder may be scheduled out: then it is more. */
		held = part_held(0.25, &bound);
		visits = (ksm_stat("pages_scanned") - visits) / N;
		scans_end(&s);
		TH_LOG("%u threads: %lld visits, held for %.3f of the time, may be %.3f",
		       threads[i], visits, held, bound);
		EXPECT_LT(10, visits);
		EXPECT_LT(0, held);
		EXPECT_GT(bound, held);
	}
	EXPECT_EQ(0, ksm_wrong(s.mem, N / 2, 1));
}

/*
 * Where there are page tables enough, so that some have rested at any time, it is the mmap lock
 * that has to: it is held for half of the time at the most.
 */
TEST_F_TIMEOUT(device, mmap_lock_rests, 120)
{
	enum { TABLES = 64 };
	struct scans s = { .k = &self->k, .area = self->area, .mem = mmap_tables(TABLES) };
	double held, bound;

	for (int i = 0; i < TABLES; i++)
		ksm_fill(s.mem + i * KSM_HUGE_SIZE, 32, i / 2);
	ASSERT_EQ(0, ksm_register(self->area, s.mem, TABLES * KSM_HUGE_PAGES));
	scans_begin(&s, 8, false);
	ASSERT_TRUE(ksm_wait_more("full_scans", 3, 60));
	held = part_held(0.5, &bound);
	scans_end(&s);
	TH_LOG("held for %.3f of the time, may be %.3f", held, bound);
	EXPECT_LT(0, held);
	EXPECT_GT(bound, held);
	for (int i = 0; i < TABLES; i++)
		EXPECT_EQ(0, ksm_wrong(s.mem + i * KSM_HUGE_SIZE, 32, i / 2));
}

/* Is there yet to be done what a test needs? Not for ever. */
static bool lacks_scans(long long until, double end)
{
	return ksm_stat("pages_scanned") < until && ksm_now() < end;
}

/*
 * Faults and mmap() go on beside them: beside ten visits of all the pages at least, or there was
 * nothing to wait for.
 */
TEST_F_TIMEOUT(device, faults_go_on, 240)
{
	struct scans s = { .k = &self->k, .area = self->area, .mem = mmap_tables(1) };
	double begin, worst = 0, one, end = ksm_now() + KSM_PATIENCE;
	long long scanned;
	int round;

	ASSERT_EQ(0, ksm_register(self->area, s.mem, N));
	scanned = ksm_stat("pages_scanned") + 10 * N;
	scans_begin(&s, 64, true);
	for (round = 0; round < 100 || lacks_scans(scanned, end); round++) {
		begin = ksm_now();
		for (size_t i = 0; i < N; i++)
			ksm_fill_page(s.mem + i * PGSZ, round, i / 2);
		munmap(mmap(NULL, PGSZ, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), PGSZ);
		for (size_t i = 0; i < N; i++)
			if (!ksm_page_is(s.mem + i * PGSZ, round, i / 2))
				ksm_die("page %zu is wrong", i);
		one = ksm_now() - begin;
		if (one > worst)
			worst = one;
		if (round % 10 == 9)
			madvise(s.mem, N * PGSZ, MADV_DONTNEED);
	}
	scans_end(&s);
	TH_LOG("the slowest of %d rounds took %.3f s, %ld pages merged", round, worst, s.merged);
	EXPECT_LE(scanned, ksm_stat("pages_scanned"));
}

/* A page is given back by a fault under the lock: that is noted, too. */
TEST_F_TIMEOUT(device, giving_back_is_noted, 120)
{
	const size_t n = 2048;
	char *mem = ksm_mmap(n);
	long long held, longest;
	struct ksm_child c;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ksm_spawn(&c);
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, n));
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_stat("pages_sharing"));
	ASSERT_EQ(0, ksm_write_file(LONGEST, "0"));
	held = ksm_stat("held_us");
	ASSERT_EQ(0, ksm_unmerge(self->area));
	EXPECT_LT(held, ksm_stat("held_us"));
	longest = ksm_stat("longest_hold_us");
	TH_LOG("%lld us in all, %lld us at a time", ksm_stat("held_us") - held, longest);
	EXPECT_LT(0, longest);
	/* Many holds, not one; if the longest was drawn out by others, by more than all the rest. */
	EXPECT_GT(ksm_stat("held_us") - held, longest);
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
	EXPECT_EQ(0, ksm_end(&c));
}

/* For how long locks were held in a pass over so many pages, in us. */
static long long held_in_pass(const struct ksm *k, size_t n)
{
	long long held = ksm_stat("held_us");

	if (ksm_scan(k->scan, n))
		ksm_die("KSM_SCAN failed");
	return ksm_stat("held_us") - held;
}

/*
 * And when a scan gives back what has one mapping left. That takes many times as long as to pass
 * over the same pages when there is nothing to do. Where holds are drawn out by others, it is even
 * longer; and of the idle passes, the shortest counts.
 */
TEST_F_TIMEOUT(device, giving_back_singles_is_noted, 240)
{
	const long long n = 8192;
	long long held, most = 0, least = LLONG_MAX, left = n;
	double end = ksm_now() + 2 * KSM_PATIENCE;
	char *mem = ksm_mmap(n);
	struct ksm_child c;

	ksm_spawn(&c);
	ksm_fill(mem, n, 1);
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, n));
	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_stat("pages_sharing"));
	ksm_kill(&c);
	while (left && ksm_now() < end) {
		long long before = left;

		held = held_in_pass(&self->k, n);
		left = ksm_stat("pages_shared");
		if (left < before && held > most)
			most = held;
	}
	ASSERT_EQ(0, left);
	for (int i = 0; i < 20; i++) {
		held = held_in_pass(&self->k, n);
		if (held < least)
			least = held;
	}
	TH_LOG("%lld us held in a pass that gave back, %lld us in an idle one", most, least);
	EXPECT_LT(0, least);
	/* Some hundred times, as seen; to look for such pages alone, not ten times. */
	EXPECT_LT(30 * least, most);
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
}

TEST_HARNESS_MAIN
