// SPDX-License-Identifier: GPL-2.0-only
/*
 * kksmd_test.c - kksmd: the limit of a round, the fixed pace, starting, stopping and sleeping
 *
 * pace_test.c and suspend_test.c have the rest.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm_harness.h"

/* ---- kksmd ---- */

TEST_F(device, kksmd_max_pages_to_merge)
{
	const size_t n = 256;
	char *mem = ksm_mmap(2 * n);
	long long before;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	/* A round each time, and the next one an hour away. */
	for (int round = 0; round < 6; round++) {
		before = ksm_stat("pages_sharing");
		ASSERT_EQ(0, ksm_start(self->k.dev, 8 * n, 16, 3600000000U));
		EXPECT_TRUE(ksm_wait_least("pages_sharing", before + 4));
		EXPECT_TRUE(ksm_wait_quiet("pages_scanned"));
		EXPECT_GE(before + 16, ksm_stat("pages_sharing"));
		ASSERT_EQ(0, ksm_stop(self->k.dev));
	}
	ASSERT_EQ(0, ksm_start(self->k.dev, 8 * n, 0, 0));
	EXPECT_TRUE(ksm_wait_stat("pages_sharing", n));
}

/* New settings wake it, and it may have to wait for its turn to see them. */
static bool comes_to_rest(struct ksm_thread *s)
{
	for (double end = ksm_now() + KSM_PATIENCE; ksm_now() < end; usleep(100000)) {
		if (!ksm_find_thread("kksmd", s))
			return false;
		if (s->state == 'S' || s->state == 'I')
			return true;
	}
	return false;
}

TEST_F(device, kksmd_is_polite)
{
	struct ksm_thread s, later;

	ASSERT_TRUE(ksm_find_thread("kksmd", &s));
	EXPECT_EQ(5, s.nice);
	EXPECT_EQ(0, s.flags & PF_NOFREEZE);
	/* Stopped it sleeps, without counting as load and without waking up. */
	EXPECT_TRUE(comes_to_rest(&s)) {
		TH_LOG("state %c", s.state);
	}
	sleep(1);
	ASSERT_TRUE(ksm_find_thread("kksmd", &later));
	EXPECT_GE(0.015, later.cpu - s.cpu);

	/* Sleeping for an hour it does so just as well. */
	ASSERT_EQ(0, ksm_start(self->k.dev, 1, 0, 3600000000U));
	EXPECT_TRUE(comes_to_rest(&s)) {
		TH_LOG("state %c", s.state);
	}
}

TEST_F(device, kksmd_retunes_at_once)
{
	const size_t n = 512;
	char *mem = ksm_mmap(n);
	double began;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 3600000000U));
	/* The first round is soon over, and the next one an hour away. */
	EXPECT_TRUE(ksm_wait_quiet("pages_scanned"));
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 0));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));

	/* Back to sleep, and out of it by a stop and a start. */
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 3600000000U));
	EXPECT_TRUE(ksm_wait_quiet("pages_scanned"));
	began = ksm_now();
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	EXPECT_EQ(0, ksm_stat("run"));
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 0));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
}

TEST_F(device, kksmd_stops_at_once)
{
	const size_t n = 2048;
	char *mem = ksm_mmap(n);
	long long scanned;
	double began;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (int i = 0; i < 20; i++) {
		/* A round that would last for minutes. */
		ASSERT_EQ(0, ksm_start(self->k.dev, UINT32_MAX, 0, 0));
		EXPECT_TRUE(ksm_wait_more("pages_scanned", 1, KSM_PATIENCE));
		usleep(1000 * i);
		began = ksm_now();
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		/* When the call is back, the thread is at rest. */
		scanned = ksm_stat("pages_scanned");
		EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
		usleep(30000);
		EXPECT_EQ(scanned, ksm_stat("pages_scanned"));
	}
}

/* 10 pages every 50 ms are 200 in a second: in no other unit. */
TEST_F(device, kksmd_sleeps_microseconds)
{
	const size_t n = 512;
	char *mem = ksm_mmap(n);
	long long scanned;
	double began, expected;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_start(self->k.dev, 10, 0, 50000));
	began = ksm_now();
	scanned = ksm_stat("pages_scanned");
	sleep(2);
	/* In milliseconds these would take minutes. */
	EXPECT_TRUE(ksm_wait_least("pages_scanned", scanned + 100));
	scanned = ksm_stat("pages_scanned") - scanned;
	expected = (ksm_now() - began) / 0.05 * 10;
	EXPECT_GE(expected + 20, scanned);
}

/* With nobody registered, even a thread at full speed has nothing to burn. */
TEST_F(device, kksmd_wakes_for_a_registration)
{
	char *mem = ksm_mmap(64);
	struct ksm_thread s, later;

	ASSERT_EQ(0, ksm_start(self->k.dev, 100, 0, 0));
	usleep(200000);
	ASSERT_TRUE(ksm_find_thread("kksmd", &s));
	sleep(1);
	ASSERT_TRUE(ksm_find_thread("kksmd", &later));
	EXPECT_GE(0.5, later.cpu - s.cpu);
	ksm_fill_same(mem, 64, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 64));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 256, KSM_PATIENCE));
}

static long fn_control(long dev, long seconds, long seed, long unused)
{
	double end = ksm_now() + seconds;
	unsigned int rng = seed;

	(void)unused;
	while (ksm_now() < end) {
		struct ksm_kthread_info k = {
			.sleep = rand_r(&rng) % 3 * 100,
			.pages_to_scan = 1 + rand_r(&rng) % 1000,
			.max_pages_to_merge = rand_r(&rng) % 50,
			.flags = rand_r(&rng) % 3 ? ksm_control_flags_run : 0,
		};

		if (ioctl(dev, KSM_START_STOP_KTHREAD, &k) ||
		    ioctl(dev, KSM_GET_INFO_KTHREAD, &k))
			return -errno;
		if (!k.pages_to_scan || k.flags & ~ksm_control_flags_run)
			return -ERANGE;
	}
	return 0;
}

TEST_F(device, control_races)
{
	const size_t n = 256;
	char *mem = ksm_mmap(n);
	struct ksm_child c[2];

	ksm_fill_same(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	/* The settings of all time before are not a valid answer in fn_control. */
	ASSERT_EQ(0, ksm_start(self->k.dev, 1, 0, 0));
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&c[i]);
		ksm_call_start(&c[i], fn_control, self->k.dev, 2, i, 0);
	}
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ(0, ksm_call_finish(&c[i]));
		EXPECT_EQ(0, ksm_end(&c[i]));
	}
	/* Whatever state they left, the next command is obeyed. */
	ASSERT_EQ(0, ksm_start(self->k.dev, 100, 0, 0));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	EXPECT_FALSE(ksm_wait_more("pages_scanned", 1, 0.2));
	EXPECT_EQ(0, ksm_wrong_same(mem, n, 1));
}

TEST_HARNESS_MAIN
