// SPDX-License-Identifier: GPL-2.0-only
/*
 * suspend_test.c - neither kksmd nor a task in KSM_SCAN holds up a suspend, or scans in it
 *
 * The kernel's test mode freezes all tasks, waits, and thaws them. A thread of ours that could
 * not be frozen would fail it; one that was exempt from it would go on scanning meanwhile.
 *
 * Suspending flips a static branch that every freezable thread runs through, so tests/suite
 * gives this a VM where the kernel may patch its text.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm_harness.h"

struct scanner {
	int fd;
	_Atomic int stop;
	int error;
};

static void *scanner_main(void *arg)
{
	struct scanner *s = arg;
	struct ksm_user_scan scan = { .pages_to_scan = 300 };

	while (!s->stop && !s->error) {
		if (ioctl(s->fd, KSM_SCAN, &scan) && errno != EINTR)
			s->error = errno;
	}
	return NULL;
}

TEST_F(device, suspend)
{
	const size_t n = 1024;
	struct scanner s = { .fd = self->k.scan };
	char *mem = ksm_mmap(n);
	long long before, rate, scanned = 0;
	double began, took = 0;
	pthread_t scan;

	if (access("/sys/power/state", W_OK) || access("/sys/power/pm_test", W_OK))
		SKIP(return, "this kernel has no /sys/power/pm_test to suspend with");
	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 3));
	ASSERT_EQ(0, ksm_start(self->k.dev, 1000, 0, 0));
	before = ksm_stat("pages_scanned");
	sleep(1);
	rate = ksm_stat("pages_scanned") - before;
	EXPECT_LT(100, rate);

	/* A task in KSM_SCAN must not hold it up either. */
	ASSERT_EQ(0, pthread_create(&scan, NULL, scanner_main, &s));
	ksm_write_file("/sys/module/suspend/parameters/pm_test_delay", "3");
	ASSERT_EQ(0, ksm_write_file("/sys/power/pm_test", "freezer"));
	usleep(50000);
	/* Any event of the machine's may wake it early: then once more, in a while. */
	for (int i = 0; i < 20 && took < 2.5; i++) {
		if (i)
			usleep(500000);
		began = ksm_now();
		before = ksm_stat("pages_scanned");
		EXPECT_EQ(0, ksm_write_file("/sys/power/state", "freeze"));
		scanned = ksm_stat("pages_scanned") - before;
		took = ksm_now() - began;
	}
	s.stop = 1;
	EXPECT_EQ(0, ksm_write_file("/sys/power/pm_test", "none"));
	TH_LOG("%lld pages a second before, %lld in %.1f s of suspend", rate, scanned, took);
	EXPECT_LT(2.5, took);
	EXPECT_GT(rate * 2, scanned);
	pthread_join(scan, NULL);
	EXPECT_EQ(0, s.error);
	/* Thawed, it goes on. */
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 100, 5));
}

TEST_HARNESS_MAIN
