// SPDX-License-Identifier: GPL-2.0-only
/*
 * race_test.c - a write that comes just when its page is being merged is not lost
 *
 * One thread writes, another one scans, each on a CPU of its own. The writer makes
 * no system call, so that its TLB keeps what it has; it lets pages rest until they
 * are about to be merged and then writes to them, over and over, and each time
 * looks whether the value of the time before is still there. A comparison that is
 * left out, one that is made before the page is protected, a TLB flush that is
 * late, or a page table entry that is not looked at again: each loses a write.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "ksm_harness.h"

#define PAIRS	64
#define SECONDS	8

struct writer {
	char *mem;
	size_t word;
	double began;
	_Atomic unsigned long calls;	/* of the other thread, one pass each */
	_Atomic int stop;
	unsigned long writes;
	_Atomic unsigned long lost;
};

static volatile uint64_t *word_of(struct writer *w, size_t page)
{
	return (volatile uint64_t *)(w->mem + page * PGSZ) + w->word;
}

/* Spin for up to @passes times as long as a pass has taken so far. */
static void rest(struct writer *w, uint64_t *rng, double passes)
{
	double t = ksm_now();
	double until = t + passes * (t - w->began) / (w->calls + 1);

	*rng = *rng * 6364136223846793005ULL + 1442695040888963407ULL;
	until = t + (until - t) * (*rng >> 40) / (1 << 24);
	while (ksm_now() < until && !w->stop)
		;
}

static void write_all(struct writer *w, uint64_t expected, uint64_t value)
{
	for (size_t i = 0; i < PAIRS; i++) {
		volatile uint64_t *p = word_of(w, i);
		const uint64_t base = *word_of(w, i + PAIRS);

		if (*p != base + expected)
			w->lost++;
		*p = base + value;
		w->writes++;
	}
}

/*
 * Pages i and i + PAIRS are equal, but for a while after each write. They are
 * merged in the second or third pass after they became equal again: that is when
 * the next write should come.
 */
static void *writer_main(void *arg)
{
	struct writer *w = arg;
	uint64_t rng = 12345, n = 0;

	ksm_use_cpu(0);
	while (!w->stop) {
		n++;
		rest(w, &rng, 4);
		write_all(w, 0, n);
		rest(w, &rng, 2);
		write_all(w, n, 0);
	}
	return NULL;
}

FIXTURE(race) {
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(race) {
	size_t word;
};

/* The first word and the last are compared at different times. */
FIXTURE_VARIANT_ADD(race, first_word) { .word = 0 };
FIXTURE_VARIANT_ADD(race, last_word) { .word = 511 };

FIXTURE_SETUP(race)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(race)
{
	close(self->area);
	ksm_finish(&self->k);
}

TEST_F(race, no_write_is_lost)
{
	struct ksm_user_scan s = { .pages_to_scan = 2 * PAIRS };
	struct writer w = { .word = variant->word };
	long long shared = 0, passes, most = 0;
	pthread_t thread;
	double end;

	w.mem = ksm_mmap(2 * PAIRS);
	ksm_fill(w.mem, PAIRS, 1);
	ksm_fill(w.mem + PAIRS * PGSZ, PAIRS, 1);
	ASSERT_EQ(0, ksm_register(self->area, w.mem, 2 * PAIRS));
	passes = ksm_stat("full_scans");
	w.began = ksm_now();
	ASSERT_EQ(0, pthread_create(&thread, NULL, writer_main, &w));
	ksm_use_cpu(1);
	end = ksm_now() + SECONDS;
	for (unsigned int i = 0; ksm_now() < end && !w.lost; i++) {
		ASSERT_EQ(0, ioctl(self->k.scan, KSM_SCAN, &s));
		w.calls++;
		if (i % 4)
			continue;
		/* As it is now: the statistics are those of some passes ago. */
		shared = ksm_same_frames(0, w.mem, 0, w.mem + PAIRS * PGSZ, PAIRS);
		if (shared > most)
			most = shared;
	}
	w.stop = 1;
	pthread_join(thread, NULL);
	TH_LOG("%lu writes, %lld passes, at most %lld pairs merged, %lu writes lost",
	       w.writes, ksm_stat("full_scans") - passes, most, (unsigned long)w.lost);
	EXPECT_EQ(0, w.lost);
	/* And they did merge in between. */
	EXPECT_LT(PAIRS / 4, most);
	EXPECT_EQ(0, ksm_wrong(w.mem, PAIRS, 1));
	EXPECT_EQ(0, ksm_wrong(w.mem + PAIRS * PGSZ, PAIRS, 1));
}

struct joiner {
	int area;
	char *mem;
	uint64_t merged;
	_Atomic int go;
};

static void *joiner_main(void *arg)
{
	struct joiner *j = arg;
	int ret;

	ksm_use_cpu(1);
	while (!j->go)
		;
	ret = ksm_merge_range(j->area, j->mem, PAIRS, &j->merged);
	if (ret)
		ksm_die("KSM_MERGE_RANGE: %s", strerror(-ret));
	return NULL;
}

/*
 * The last one who maps a shared page writes to it, and the kernel lets him have the page, just when
 * another page is merged with it. One of both gets a page of its own, whoever was faster.
 */
TEST_F(device, joined_while_the_last_one_writes)
{
	char *a = ksm_mmap(PAIRS), *b = ksm_mmap(PAIRS), *c = ksm_mmap(PAIRS);
	unsigned long joined = 0, rounds = 0, wrong = 0;
	double end = ksm_now() + SECONDS;

	ASSERT_EQ(0, ksm_register(self->area, a, PAIRS));
	ASSERT_EQ(0, ksm_register(self->area, b, PAIRS));
	ASSERT_EQ(0, ksm_register(self->area, c, PAIRS));
	ksm_use_cpu(0);
	while (ksm_now() < end && !wrong) {
		struct joiner j = { .area = self->area, .mem = c };
		pthread_t thread;

		ksm_fill(a, PAIRS, 2 * rounds);
		ksm_fill(b, PAIRS, 2 * rounds);
		ASSERT_EQ(0, madvise(c, PAIRS * PGSZ, MADV_DONTNEED));
		ksm_merge_all(&self->k);
		ASSERT_EQ(0, madvise(b, PAIRS * PGSZ, MADV_DONTNEED));
		ksm_fill(c, PAIRS, 2 * rounds);
		ASSERT_EQ(0, pthread_create(&thread, NULL, joiner_main, &j));
		usleep(1000);
		j.go = 1;
		/* It begins by something that takes its time. */
		usleep(rounds * 37 % 4000);
		for (size_t i = 0; i < PAIRS; i++)
			ksm_fill_page(ksm_page(a, i), 2 * rounds + 1, i);
		pthread_join(thread, NULL);
		joined += j.merged;
		/* Once more: where two map one page that one may write to, this is seen. */
		ksm_fill(a, PAIRS, 2 * rounds + 1);
		wrong = ksm_wrong(c, PAIRS, 2 * rounds);
		wrong += ksm_wrong(a, PAIRS, 2 * rounds + 1);
		rounds++;
	}
	TH_LOG("%lu rounds, %lu of %lu pages were joined, %lu wrong", rounds, joined,
	       rounds * PAIRS, wrong);
	EXPECT_EQ(0, wrong);
	EXPECT_LT(0, joined);
}

/* One of several that write few different contents, each to memory of his own, while all is merged. */
struct player {
	int area;
	char *mem;
	_Atomic int stop;
	_Atomic unsigned long merged;
};

#define PLAYERS	3
#define FACES	4

static void *player_main(void *arg)
{
	struct player *p = arg;
	uint64_t merged;

	while (!p->stop) {
		if (ksm_merge_range(p->area, p->mem, PAIRS, &merged))
			ksm_die("KSM_MERGE_RANGE failed");
		p->merged += merged;
	}
	return NULL;
}

/* Write, and see whether what was written last is still there. Return: pages merged, or -1. */
static long fn_play(long dev, long seed, long seconds, long unused)
{
	struct player p = { .area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA) };
	uint64_t rng = seed, face[PAIRS] = { 0 };
	double end = ksm_now() + seconds;
	pthread_t thread;
	bool wrong = false;

	(void)unused;
	p.mem = ksm_mmap(PAIRS);
	ksm_fill(p.mem, PAIRS, 0);
	if (ksm_register(p.area, p.mem, PAIRS) || pthread_create(&thread, NULL, player_main, &p))
		ksm_die("cannot begin to play");
	while (!wrong && ksm_now() < end) {
		size_t page;

		rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
		page = (rng >> 40) % PAIRS;
		wrong = !ksm_page_is(ksm_page(p.mem, page), face[page], page);
		face[page] = (rng >> 33) % FACES;
		ksm_fill_page(ksm_page(p.mem, page), face[page], page);
	}
	for (size_t i = 0; i < PAIRS; i++)
		wrong |= !ksm_page_is(ksm_page(p.mem, i), face[i], i);
	p.stop = 1;
	pthread_join(thread, NULL);
	return wrong ? -1 : (long)p.merged;
}

/*
 * Pages get and lose their last company all the time, are given back, found to be strays, and merged
 * again, by scans in each process and by threads.
 */
TEST_F(device, everybody_writes)
{
	struct ksm_child c[PLAYERS];

	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 2));
	ASSERT_EQ(0, ksm_start(self->k.dev, 1000, 0, 0));
	for (int i = 0; i < PLAYERS; i++) {
		ksm_spawn(&c[i]);
		ksm_call_start(&c[i], fn_play, self->k.dev, i, SECONDS, 0);
	}
	for (int i = 0; i < PLAYERS; i++) {
		long merged = ksm_call_finish(&c[i]);

		TH_LOG("%d: %ld pages merged", i, merged);
		EXPECT_LT(0, merged);
		ksm_end(&c[i]);
	}
	ASSERT_EQ(0, ksm_stop(self->k.dev));
}

TEST_HARNESS_MAIN
