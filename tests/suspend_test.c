// SPDX-License-Identifier: GPL-2.0-only
/*
 * suspend_test.c - neither kksmd nor a task in a call of ours holds up a suspend, or scans in it
 *
 * The kernel's test mode freezes all tasks, waits, and thaws them. A thread of ours that could
 * not be frozen would fail it; one that was exempt from it would go on scanning meanwhile.
 *
 * Suspending flips a static branch that every freezable thread runs through, so tests/suite
 * gives this a VM where the kernel may patch its text.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_busy.h"
#include "ksm_harness.h"

static bool can_suspend(void)
{
	return !access("/sys/power/state", W_OK) && !access("/sys/power/pm_test", W_OK);
}

/* What a suspend tests, and within how many ms all tasks must be frozen; 0 or -errno. */
static int suspend_mode(const char *what, const char *limit_ms)
{
	int err = ksm_write_file("/sys/power/pm_freeze_timeout", limit_ms);

	return err ? err : ksm_write_file("/sys/power/pm_test", what);
}

struct scanner {
	int fd;
	_Atomic int stop;
	int error;
};

static void *scanner_main(void *arg)
{
	struct scanner *s = arg;
	/* It does not come to its end by itself. */
	struct ksm_user_scan scan = { .pages_to_scan = UINT32_MAX };

	while (!s->stop && !s->error) {
		if (ioctl(s->fd, KSM_SCAN, &scan) && errno != EINTR)
			s->error = errno;
	}
	return NULL;
}

static void on_signal(int sig)
{
	(void)sig;
}

/* End a call that waits for a signal, or begins just after one. */
static void scanner_end(struct scanner *s, pthread_t thread)
{
	s->stop = 1;
	while (pthread_tryjoin_np(thread, NULL)) {
		pthread_kill(thread, SIGUSR1);
		usleep(10000);
	}
}

TEST_F(device, suspend)
{
	struct sigaction sa = { .sa_handler = on_signal };
	const size_t n = 1024;
	struct scanner s = { .fd = self->k.scan };
	char *mem = ksm_mmap(n);
	long long before, rate, scanned = 0;
	double began, took = 0;
	pthread_t scan;

	if (!can_suspend())
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
	sigaction(SIGUSR1, &sa, NULL);
	ASSERT_EQ(0, pthread_create(&scan, NULL, scanner_main, &s));
	/* Not longer: the kernel spins meanwhile, and has a watchdog. */
	ksm_write_file("/sys/module/suspend/parameters/pm_test_delay", "3");
	ASSERT_EQ(0, suspend_mode("freezer", "1000"));
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
	EXPECT_EQ(0, suspend_mode("none", "20000"));
	TH_LOG("%lld pages a second before, %lld in %.1f s of suspend", rate, scanned, took);
	EXPECT_LT(2.5, took);
	/* What it scans before all are frozen, and afterwards; not in those three seconds. */
	EXPECT_GT(rate * 2, scanned);
	scanner_end(&s, scan);
	EXPECT_EQ(0, s.error);
	/* Thawed, it goes on. */
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 100, KSM_PATIENCE));
}

/* From then on its mmap lock is never free. */
static long fn_be_busy(long area, long addr, long npages, long unused)
{
	(void)unused;
	ksm_fill((void *)addr, npages, 1);
	if (ksm_register(area, (void *)addr, npages))
		return -errno;
	return ksm_busy_threads(4, ksm_busy_mapper) ? 0 : -EAGAIN;
}

/* The kernel threads are frozen also while they wait for a lock that others always have. */
TEST_F_TIMEOUT(device, beside_a_busy_process, 600)
{
	const size_t n = 4 * KSM_HUGE_PAGES;
	char *mem = ksm_mmap(n);
	struct ksm_child c;

	if (!can_suspend())
		SKIP(return, "this kernel has no /sys/power/pm_test to suspend with");
	ksm_spawn(&c);
	ASSERT_EQ(0, ksm_call(&c, fn_be_busy, self->area, mem, n));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 8));
	ASSERT_EQ(0, ksm_start(self->k.dev, UINT32_MAX, 0, 0));
	ksm_write_file("/sys/module/suspend/parameters/pm_test_delay", "1");
	ASSERT_EQ(0, suspend_mode("freezer", "1000"));
	for (int i = 0; i < 4; i++) {
		usleep(200000);
		EXPECT_EQ(0, ksm_write_file("/sys/power/state", "freeze"));
	}
	EXPECT_EQ(0, suspend_mode("none", "20000"));
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 100, KSM_PATIENCE));
	EXPECT_EQ(0, ksm_stop(self->k.dev));
	ksm_kill(&c);
}

static long fn_merge(long area, long addr, long npages, long unused)
{
	uint64_t merged;

	(void)unused;
	return ksm_merge_range(area, (void *)addr, npages, &merged);
}

/* What a process that walks tells of itself. @longest: of its calls that were not ended, in ms */
struct walk {
	_Atomic int stop, merging;
	double longest;
};

/*
 * Until told to stop, the calls that go over much memory, which is new each time; a suspend may
 * end them early.
 */
static long fn_walk(long area, long addr, long npages, long shared)
{
	struct walk *walk = (struct walk *)shared;
	long ret = 0;

	for (int seed = 2; !ret && !walk->stop; seed++) {
		double took;

		madvise((void *)addr, npages * PGSZ, MADV_DONTNEED);
		ksm_fill((void *)addr, npages, seed);
		ksm_fdinfo(area, "pages_sharing");
		took = ksm_now();
		walk->merging = 1;
		ret = fn_merge(area, addr, npages, 0);
		walk->merging = 0;
		took = (ksm_now() - took) * 1000;
		if (!ret && took > walk->longest)
			walk->longest = took;
		if (ret == -EINTR)
			ret = 0;
	}
	return ret;
}

/*
 * A long call does not make suspending fail, which waits for a second for all tasks to be
 * frozen; afterwards it goes on, and its caller sees nothing of that.
 */
TEST_F_TIMEOUT(device, long_calls, 1200)
{
	const size_t n = 16384;
	char *mem = ksm_mmap(2 * n), *more = ksm_mmap(2 * n);
	struct walk *walk = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				 -1, 0);
	struct ksm_child c, walker;
	int area;

	if (!can_suspend())
		SKIP(return, "this kernel has no /sys/power/pm_test to suspend with");
	ksm_spawn(&c);
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	ksm_call(&c, ksm_fn_fill, mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, 2 * n));
	ASSERT_EQ(0, ksm_call(&c, fn_merge, self->area, mem, 2 * n));
	area = ksm_area(&self->k);
	ksm_spawn(&walker);
	ASSERT_EQ(0, ksm_call(&walker, ksm_fn_register, area, more, 2 * n));

	ksm_write_file("/sys/module/suspend/parameters/pm_test_delay", "1");
	ASSERT_EQ(0, suspend_mode("freezer", "1000"));
	ksm_call_start(&walker, fn_walk, area, (long)more, 2 * n, (long)walk);
	for (double end = ksm_now() + KSM_PATIENCE; !walk->merging; usleep(100))
		ASSERT_GT(end, ksm_now());
	ksm_call_start(&c, ksm_fn_unmerge, self->area, 0, 0, 0);
	while (ksm_same_frames(c.pid, ksm_page(mem, 64), c.pid, ksm_page(mem, n + 64), 1))
		usleep(100);
	EXPECT_EQ(0, ksm_write_file("/sys/power/state", "freeze"));
	/* It was in the middle. */
	EXPECT_LT(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, suspend_mode("none", "20000"));
	EXPECT_EQ(0, ksm_call_finish(&c));
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	walk->stop = 1;
	EXPECT_EQ(0, ksm_call_finish(&walker));
	TH_LOG("KSM_MERGE_RANGE took up to %.0f ms", walk->longest);
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem + n * PGSZ, n, 1));
	EXPECT_EQ(0, ksm_end(&c));
	EXPECT_EQ(0, ksm_end(&walker));
}

TEST_HARNESS_MAIN
