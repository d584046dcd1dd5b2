// SPDX-License-Identifier: GPL-2.0-only
/*
 * pace_test.c - several kernel threads, and a budget of CPU time for them
 *
 * How much CPU time is used depends on the machine, and on what else it does. So
 * nothing here holds a figure against a narrow bound: what is too much is several
 * times too much.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "ksm_harness.h"

static bool wait_for_sharing(long long pages, double seconds)
{
	double end = ksm_now() + seconds;

	while (ksm_stat("pages_sharing") < pages && ksm_now() < end)
		usleep(10000);
	return ksm_stat("pages_sharing") >= pages;
}

/* Thread number @nr, or not. */
static bool find_nr(unsigned int nr, struct ksm_thread *t)
{
	char name[32] = "kksmd";

	if (nr)
		snprintf(name, sizeof(name), "kksmd/%u", nr);
	return ksm_find_thread(name, t);
}

/* Memory that has something changed in each page all the time. */
struct churn {
	char *mem;
	size_t npages;
	_Atomic int stop;
	pthread_t thread;
};

static void *churn_main(void *arg)
{
	struct churn *c = arg;

	for (uint64_t round = 0; !c->stop; round++) {
		for (size_t i = 0; i < c->npages; i++)
			memcpy(c->mem + i * PGSZ, &round, sizeof(round));
		usleep(10000);
	}
	return NULL;
}

static void churn_begin(struct churn *c, size_t npages)
{
	c->mem = ksm_mmap(npages);
	c->npages = npages;
	c->stop = 0;
	ksm_fill(c->mem, npages, 1);
	if (pthread_create(&c->thread, NULL, churn_main, c))
		ksm_die("cannot create a thread");
}

static void churn_end(struct churn *c)
{
	c->stop = 1;
	pthread_join(c->thread, NULL);
}

/* What the threads use in @seconds, in per cent of a CPU. */
static double percent_used(double seconds)
{
	double began = ksm_now(), cpu = ksm_threads_cpu();

	usleep(seconds * 1e6);
	return (ksm_threads_cpu() - cpu) * 100 / (ksm_now() - began);
}

/* ---- the threads ---- */

TEST_F(device, threads_come_and_go)
{
	static const unsigned int counts[] = { 2, 1, 5, KSM_MAX_THREADS, 3, 3, 1 };
	struct ksm_thread t;
	double end;

	EXPECT_EQ(1, ksm_count_threads());
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, counts[i]));
		EXPECT_EQ(counts[i], ksm_stat("threads"));
		/* One that was ended may be seen until its parent has noticed. */
		end = ksm_now() + KSM_PATIENCE;
		while (ksm_count_threads() != counts[i] && ksm_now() < end)
			usleep(20000);
		EXPECT_EQ(counts[i], ksm_count_threads());
		/* To look at every one of many takes a debug kernel a minute. */
		for (unsigned int nr = 0; nr < counts[i]; nr += nr < 2 ? 1 : 20) {
			ASSERT_TRUE(find_nr(nr, &t)) {
				TH_LOG("no thread number %u of %u", nr, counts[i]);
			}
			EXPECT_EQ(0, t.flags & PF_NOFREEZE);
		}
		EXPECT_FALSE(find_nr(counts[i], &t));
	}
	/* 0 leaves the number as it is. */
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 4));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 7, 0));
	EXPECT_EQ(4, ksm_stat("threads"));
	EXPECT_EQ(4, ksm_count_threads());
	for (unsigned int nr = 0; nr < 4; nr++) {
		/* A thread gives itself its nice value when it first runs, and then sleeps. */
		end = ksm_now() + KSM_PATIENCE;
		do {
			ASSERT_TRUE(find_nr(nr, &t));
		} while ((t.nice != 5 || t.state == 'R') && ksm_now() < end);
		EXPECT_EQ(5, t.nice);
		EXPECT_TRUE(t.state == 'S' || t.state == 'I');
	}
}

/* Each does something, also those that came while the others were at work. */
TEST_F(device, all_threads_work)
{
	const unsigned int nr_threads = 4;
	double before[4], end;
	unsigned int nr, busy = 0;
	struct ksm_thread t;
	struct churn c;

	churn_begin(&c, 4096);
	ASSERT_EQ(0, ksm_register(self->area, c.mem, c.npages));
	ASSERT_EQ(0, ksm_start(self->k.dev, 4000, 0, 0));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, nr_threads));
	for (nr = 0; nr < nr_threads; nr++) {
		ASSERT_TRUE(find_nr(nr, &t));
		before[nr] = t.cpu;
	}
	end = ksm_now() + KSM_PATIENCE;
	while (busy < nr_threads && ksm_now() < end) {
		usleep(100000);
		for (nr = 0, busy = 0; nr < nr_threads; nr++)
			busy += find_nr(nr, &t) && t.cpu > before[nr];
	}
	EXPECT_EQ(nr_threads, busy);
	churn_end(&c);
}

/* What one thread finds, several find too: the same pages, each once. */
TEST_F(device, threads_share_the_work)
{
	const size_t n = 4096;
	char *mem = ksm_mmap(2 * n);

	ksm_fill(mem, n, 3);
	ksm_fill(mem + n * PGSZ, n, 3);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	for (int budget = 0; budget < 2; budget++) {
		ASSERT_EQ(0, ksm_set_pace(self->k.dev, budget * 200, 4));
		ASSERT_EQ(0, ksm_start(self->k.dev, 1000, 0, 100));
		EXPECT_TRUE(wait_for_sharing(n, KSM_PATIENCE));
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		EXPECT_EQ(n, ksm_stat("pages_shared"));
		EXPECT_EQ(n, ksm_stat("pages_sharing"));
		EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
		EXPECT_EQ(n, ksm_distinct(0, mem, n));
		EXPECT_EQ(0, ksm_wrong(mem, n, 3));
		EXPECT_EQ(0, ksm_wrong(mem + n * PGSZ, n, 3));
		ASSERT_EQ(0, ksm_unmerge(self->area));
	}
}

TEST_F(device, merges_of_a_round_are_shared)
{
	const size_t n = 4096;
	char *mem = ksm_mmap(2 * n);
	long long merged;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ksm_passes(&self->k, 1);
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 4));
	/* Each may be over by the other page of a pair. */
	ASSERT_EQ(0, ksm_start(self->k.dev, 8 * n, 16, 3600000000U));
	EXPECT_TRUE(wait_for_sharing(1, KSM_PATIENCE));
	sleep(1);
	merged = ksm_stat("pages_sharing");
	EXPECT_GE(16 + 4, merged);
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	/* A thread that gets nothing of a limit is not one without a limit. */
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 8));
	ASSERT_EQ(0, ksm_start(self->k.dev, 8 * n, 2, 3600000000U));
	sleep(1);
	EXPECT_GE(merged + 4, ksm_stat("pages_sharing"));
}

/* When the call is back all threads are at rest, whatever they were at. */
TEST_F(device, stop_waits_for_all)
{
	const size_t n = 4096;
	char *mem = ksm_mmap(n);
	long long scanned;
	double began;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (int i = 0; i < 20; i++) {
		ASSERT_EQ(0, ksm_set_pace(self->k.dev, i % 2 ? 400 : 0, 4));
		ASSERT_EQ(0, ksm_start(self->k.dev, UINT32_MAX, 0, 0));
		EXPECT_TRUE(ksm_wait_more("pages_scanned", 1, KSM_PATIENCE));
		usleep(1000 * i);
		began = ksm_now();
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		scanned = ksm_stat("pages_scanned");
		EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
		usleep(30000);
		EXPECT_EQ(scanned, ksm_stat("pages_scanned"));
	}
}

/* Fewer threads: those that go are gone, and scan no more, when the call is back. */
TEST_F(device, threads_leave_at_once)
{
	const size_t n = 4096;
	char *mem = ksm_mmap(n);
	long long scanned;
	double began;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (int i = 0; i < 10; i++) {
		ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 8));
		ASSERT_EQ(0, ksm_start(self->k.dev, UINT32_MAX, 0, 0));
		EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
		began = ksm_now();
		ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 1));
		EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
		EXPECT_EQ(1, ksm_stat("run"));
		/* The one that stays goes on. */
		EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		scanned = ksm_stat("pages_scanned");
		usleep(30000);
		EXPECT_EQ(scanned, ksm_stat("pages_scanned"));
	}
}

/* ---- the settings ---- */

TEST_F(device, settings_survive)
{
	ASSERT_EQ(0, ksm_start(self->k.dev, 11, 22, 33000000));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 150, 3));
	/* Neither starts nor stops, and touches nothing else. */
	EXPECT_EQ(1, ksm_stat("run"));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	EXPECT_EQ(3, ksm_stat("threads"));
	EXPECT_EQ(150, ksm_stat("cpu_percent"));
	EXPECT_EQ(11, ksm_stat("pages_to_scan"));
	EXPECT_EQ(22, ksm_stat("max_pages_to_merge"));
	EXPECT_EQ(33000000, ksm_stat("sleep_us"));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 0));
	EXPECT_EQ(0, ksm_stat("run"));
	EXPECT_EQ(3, ksm_stat("threads"));
	EXPECT_EQ(50, ksm_stat("cpu_percent"));
	ASSERT_EQ(0, ksm_start(self->k.dev, 12, 0, 0));
	EXPECT_EQ(3, ksm_stat("threads"));
	EXPECT_EQ(50, ksm_stat("cpu_percent"));
	EXPECT_EQ(3, ksm_count_threads());
}

/* Pages to scan are needed only by those who go by them. */
TEST_F(device, no_pages_to_scan)
{
	const size_t n = 64;
	char *mem = ksm_mmap(n);

	ksm_fill_same(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	EXPECT_EQ(-EINVAL, ksm_start(self->k.dev, 0, 0, 0));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 1));
	ASSERT_EQ(0, ksm_start(self->k.dev, 0, 0, 0));
	EXPECT_EQ(1, ksm_stat("run"));
	EXPECT_TRUE(wait_for_sharing(n - 1, KSM_PATIENCE));
	/* Now they are needed. */
	EXPECT_EQ(-EINVAL, ksm_set_pace(self->k.dev, 0, 2));
	EXPECT_EQ(50, ksm_stat("cpu_percent"));
	EXPECT_EQ(1, ksm_stat("threads"));
	EXPECT_EQ(1, ksm_count_threads());
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 0));
	EXPECT_EQ(0, ksm_set_pace(self->k.dev, 0, 2));
	/* At rest anything goes, but not a start. */
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 1));
	ASSERT_EQ(0, ksm_start(self->k.dev, 0, 0, 0));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 1));
	EXPECT_EQ(-EINVAL, ksm_start(self->k.dev, 0, 0, 0));
	EXPECT_EQ(0, ksm_stat("run"));
}

TEST_F(device, pace_holds_at_once)
{
	const size_t n = 512;
	struct churn c;

	churn_begin(&c, n);
	ASSERT_EQ(0, ksm_register(self->area, c.mem, n));
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 3600000000U));
	/* The first round is soon over, and the next one an hour away. */
	EXPECT_TRUE(ksm_wait_quiet("pages_scanned"));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 1));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 1));
	EXPECT_TRUE(ksm_wait_quiet("pages_scanned"));
	/* From the smallest share, which a slice is paid for with minutes, to a large one. */
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 1, KSM_MAX_THREADS));
	sleep(2);
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 1));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
	churn_end(&c);
}

static long fn_control(long dev, long seconds, long seed, long unused)
{
	double end = ksm_now() + seconds;
	unsigned int rng = seed;

	(void)unused;
	while (ksm_now() < end) {
		uint32_t threads = rand_r(&rng) % 9;
		int ret;

		/* Always within what so many threads can use, unless that is not said. */
		ret = ksm_set_pace(dev, threads ? rand_r(&rng) % (100 * threads + 1) : 0, threads);
		if (!ret && rand_r(&rng) % 2)
			ret = ksm_start(dev, 1 + rand_r(&rng) % 1000, rand_r(&rng) % 50,
					rand_r(&rng) % 300);
		if (!ret && rand_r(&rng) % 4 == 0)
			ret = ksm_stop(dev);
		if (ret)
			return ret;
	}
	return 0;
}

TEST_F(device, control_races)
{
	const size_t n = 1024;
	struct ksm_child c[2];
	struct churn churn;

	churn_begin(&churn, n);
	ASSERT_EQ(0, ksm_register(self->area, churn.mem, n));
	ASSERT_EQ(0, ksm_start(self->k.dev, 1, 0, 0));
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&c[i]);
		ksm_call_start(&c[i], fn_control, self->k.dev, 3, i, 0);
	}
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ(0, ksm_call_finish(&c[i]));
		EXPECT_EQ(0, ksm_end(&c[i]));
	}
	for (double end = ksm_now() + KSM_PATIENCE; ksm_now() < end; usleep(20000))
		if (ksm_count_threads() == ksm_stat("threads"))
			break;
	EXPECT_EQ(ksm_stat("threads"), ksm_count_threads());
	/* Whatever state they left, the next command is obeyed. */
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 2));
	ASSERT_EQ(0, ksm_start(self->k.dev, 100, 0, 0));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	EXPECT_FALSE(ksm_wait_more("pages_scanned", 1, 0.2));
	churn_end(&churn);
}

/* ---- the budget ---- */

/* However much there is to do, and to however many the budget is given. */
TEST_F(device, budget_is_kept)
{
	static const uint32_t threads[] = { 1, 4 };
	double little, much;
	struct churn c;

	churn_begin(&c, 32768);
	ASSERT_EQ(0, ksm_register(self->area, c.mem, c.npages));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, ksm_set_pace(self->k.dev, 10, threads[i]));
		/* Numbers that would be full speed. */
		ASSERT_EQ(0, ksm_start(self->k.dev, 1000000, 0, 0));
		EXPECT_TRUE(ksm_wait_more("pages_scanned", 512, KSM_PATIENCE));
		little = percent_used(4);
		TH_LOG("10 %% for %u threads: %.1f %%", threads[i], little);
		EXPECT_GT(50, little);
		EXPECT_LT(0, little);
	}
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 90, 1));
	much = percent_used(4);
	TH_LOG("90 %%: %.1f %%", much);
	/* Not all of it, where a pass takes no longer than the pause after it. */
	EXPECT_LT(little, much);
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 1));
	much = percent_used(2);
	TH_LOG("no budget: %.1f %%", much);
	EXPECT_LT(2 * little, much);
	churn_end(&c);
}

/*
 * Nothing changes: the pauses between passes grow up to 20 s. What is registered
 * then is merged at once all the same, and so does a change of the settings not wait.
 */
TEST_F(device, registration_ends_the_pause)
{
	const size_t n = 256;
	char *mem = ksm_mmap(2 * n), *more = ksm_mmap(2 * n);
	long long passes, seen;
	double end, quiet, cpu = 0;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ksm_fill(more, n, 2);
	ksm_fill(more + n * PGSZ, n, 2);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 2));
	ASSERT_EQ(0, ksm_start(self->k.dev, 0, 0, 0));
	/* At first they come often. */
	EXPECT_TRUE(wait_for_sharing(n, KSM_PATIENCE));
	EXPECT_TRUE(ksm_wait_more("full_scans", 2, KSM_PATIENCE));

	/* Quiet for half of the longest pause: what is left of it is the other half. */
	end = ksm_now() + 300;
	quiet = ksm_now();
	passes = ksm_stat("full_scans");
	while (ksm_now() < quiet + 10.5 && ksm_now() < end) {
		usleep(50000);
		seen = ksm_stat("full_scans");
		if (seen == passes)
			continue;
		passes = seen;
		quiet = ksm_now();
		cpu = ksm_threads_cpu();
	}
	ASSERT_LE(quiet + 10.5, ksm_now());
	/* Idle meanwhile. */
	EXPECT_GT(1.0, ksm_threads_cpu() - cpu);

	ASSERT_EQ(0, ksm_register(self->area, more, 2 * n));
	/* Begun before the pause would be over; a debug kernel takes its time to end it. */
	EXPECT_TRUE(wait_for_sharing(n + 1, 6));
	EXPECT_TRUE(wait_for_sharing(2 * n, KSM_PATIENCE));
	EXPECT_EQ(n, ksm_same_frames(0, more, 0, more + n * PGSZ, n));
	EXPECT_EQ(0, ksm_wrong(more, n, 2));
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
}

/* A pass that finds changes makes the next pause short again. */
TEST_F(device, changes_end_the_pauses)
{
	const size_t n = 256;
	char *mem = ksm_mmap(2 * n);
	long long passes, seen;
	double end, quiet;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 50, 1));
	ASSERT_EQ(0, ksm_start(self->k.dev, 0, 0, 0));
	EXPECT_TRUE(wait_for_sharing(n, KSM_PATIENCE));
	/* Quiet for 2 s: a pause of at least 2.5 s, so the next one would be 5 s. */
	end = ksm_now() + 300;
	quiet = ksm_now();
	passes = ksm_stat("full_scans");
	while (ksm_now() < quiet + 2 && ksm_now() < end) {
		usleep(50000);
		seen = ksm_stat("full_scans");
		if (seen != passes)
			quiet = ksm_now();
		passes = seen;
	}
	ASSERT_LE(quiet + 2, ksm_now());
	ksm_fill(mem, n, 4);
	ksm_fill(mem + n * PGSZ, n, 4);
	/* The pass that finds it, and then several more, whose pauses would be 35 s in all. */
	EXPECT_TRUE(ksm_wait_more("full_scans", 1, KSM_PATIENCE));
	EXPECT_TRUE(ksm_wait_more("full_scans", 3, 20));
	EXPECT_TRUE(wait_for_sharing(n, KSM_PATIENCE));
	EXPECT_EQ(0, ksm_wrong(mem, n, 4));
	EXPECT_EQ(0, ksm_wrong(mem + n * PGSZ, n, 4));
}

TEST_HARNESS_MAIN
