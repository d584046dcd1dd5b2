// SPDX-License-Identifier: GPL-2.0-only
/*
 * scan_test.c - KSM_SCAN: signals, the limits of one call, several scanners at once
 *
 * kksmd_test.c, pace_test.c and suspend_test.c have kksmd.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"

/* ---- signals ---- */

static void on_alarm(int sig)
{
	(void)sig;
}

static void set_alarm(unsigned int usec)
{
	/* Again and again, lest the first one comes before the call that it is to interrupt. */
	struct itimerval timer = { .it_value.tv_usec = usec, .it_interval.tv_usec = usec };
	struct sigaction sa = { .sa_handler = on_alarm };

	sigaction(SIGVTALRM, &sa, NULL);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/*
 * Interrupted again and again, the scan must neither lose its place nor visit
 * pages twice: after one pass' worth of visits one pass is done.
 */
TEST_F(device, interrupted)
{
	const size_t n = 8192;
	struct ksm_user_scan s = { .pages_to_scan = UINT32_MAX };
	char *mem = ksm_mmap(2 * n);
	long long scanned, start, passes;
	int interrupted = 0, calls = 0, idle = 0;
	double began, took, longest = 0;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	start = ksm_stat("pages_scanned");
	passes = ksm_stat("full_scans");
	do {
		scanned = ksm_stat("pages_scanned");
		set_alarm(20000);
		began = ksm_now();
		EXPECT_EQ(-1, ioctl(self->k.scan, KSM_SCAN, &s));
		EXPECT_EQ(EINTR, errno);
		took = ksm_now() - began;
		if (took > longest)
			longest = took;
		interrupted += errno == EINTR;
		calls++;
		/* The struct is the caller's: nothing of it is written back. */
		EXPECT_EQ(UINT32_MAX, s.pages_to_scan);
		ASSERT_GT(2000, calls);
		/* A call may do nothing but wait for a lock to rest, 0.1 s at most. */
		idle = scanned < ksm_stat("pages_scanned") ? 0 : idle + 1;
		EXPECT_GT(20, idle);
	} while (ksm_stat("full_scans") < passes + 4);
	set_alarm(0);
	EXPECT_LT(2, interrupted);
	/* By the signal, which comes every 20 ms: all of the pages take hours. */
	EXPECT_GT(KSM_PATIENCE, longest);

	/*
	 * A call may stop within a chunk that the next one starts over, and the
	 * last one may have gone into the passes after the fourth.
	 */
	scanned = ksm_stat("pages_scanned") - start;
	passes = ksm_stat("full_scans") - passes;
	TH_LOG("%d calls, %lld pages in %lld passes, longest call %.3f s", calls,
	       scanned, passes, longest);
	EXPECT_LE(passes * 2 * (long long)n, scanned);
	EXPECT_GE((passes + 1) * 2 * (long long)n + 512 * calls, scanned);
	/* And the work is done as if nobody had disturbed it. */
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
	EXPECT_EQ(n, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(mem + n * PGSZ, n, 1));
}

static long fn_scan_for_ever(long scan, long unused, long unused2, long unused3)
{
	struct ksm_user_scan s = { .pages_to_scan = UINT32_MAX };

	(void)unused;
	(void)unused2;
	(void)unused3;
	while (!ioctl(scan, KSM_SCAN, &s))
		;
	return -errno;
}

TEST_F(device, killed)
{
	char *mem = ksm_mmap(2048);
	struct ksm_child c;
	double began;
	int status;

	ksm_fill(mem, 2048, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2048));
	ksm_spawn(&c);
	ksm_call_start(&c, fn_scan_for_ever, self->k.scan, 0, 0, 0);
	EXPECT_TRUE(ksm_wait_more("pages_scanned", 1000, KSM_PATIENCE));
	began = ksm_now();
	status = ksm_kill(&c);
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	/* Nobody scans any more, and others can. */
	EXPECT_FALSE(ksm_wait_more("pages_scanned", 1, 0.2));
	ksm_merge_all(&self->k);
	EXPECT_EQ(2048, ksm_stat("pages_unshared"));
}

/* A debugger's stop and go on must not end it, and must not be held up by it. */
TEST_F(device, stopped_process_is_scanned)
{
	const size_t n = 256;
	char *mem = ksm_mmap(n);
	struct ksm_child c;
	int status;

	ksm_spawn(&c);
	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, n));
	ASSERT_EQ(0, kill(c.pid, SIGSTOP));
	ASSERT_EQ(c.pid, waitpid(c.pid, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));
	ksm_merge_all(&self->k);
	EXPECT_EQ(n, ksm_same_frames(0, mem, c.pid, mem, n));
	ASSERT_EQ(0, kill(c.pid, SIGCONT));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_end(&c));
}

/* ---- limits of one call ---- */

TEST_F(device, pages_to_scan)
{
	static const unsigned int steps[] = {
		1, 7, KSM_HUGE_PAGES - 1, KSM_HUGE_PAGES, KSM_HUGE_PAGES + 1, 1000
	};
	const size_t n = 1200;
	char *mem = ksm_mmap(n);
	long long before;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		before = ksm_stat("pages_scanned");
		ASSERT_EQ(0, ksm_scan(self->k.scan, steps[i]));
		EXPECT_EQ(steps[i], ksm_stat("pages_scanned") - before);
	}
	/* A whole number of passes is counted as such. */
	before = ksm_stat("full_scans");
	ASSERT_EQ(0, ksm_scan(self->k.scan, 5 * n));
	EXPECT_EQ(5, ksm_stat("full_scans") - before);
}

TEST_F(device, max_pages_to_merge)
{
	const size_t n = 256;
	struct ksm_user_scan s = {
		.pages_to_scan = 8 * n, .max_pages_to_merge = 10,
	};
	char *mem = ksm_mmap(2 * n);
	long long merged = 0, before, scanned;
	int calls = 0;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	while (merged < (long long)n) {
		ASSERT_GT(100, ++calls);
		before = merged;
		scanned = ksm_stat("pages_scanned");
		ASSERT_EQ(0, ioctl(self->k.scan, KSM_SCAN, &s));
		merged = ksm_stat("pages_sharing");
		scanned = ksm_stat("pages_scanned") - scanned;
		EXPECT_GE(before + 10, merged);
		/*
		 * Either it came back early, for it had merged enough (both pages of
		 * a pair count), or eight passes could not find any more.
		 */
		if (scanned < 8 * (long long)n)
			EXPECT_LE(before + 4, merged);
	}
	/* ... and so more often than without a limit. */
	EXPECT_LE(n / 10, calls);
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));

	/* One a call, and no limit at all. */
	ksm_fill(mem, n, 2);
	ksm_fill(mem + n * PGSZ, n, 2);
	s.max_pages_to_merge = 1;
	ASSERT_EQ(0, ioctl(self->k.scan, KSM_SCAN, &s));
	EXPECT_GE(1, ksm_stat("pages_sharing"));
	s.max_pages_to_merge = 0;
	ASSERT_EQ(0, ioctl(self->k.scan, KSM_SCAN, &s));
	EXPECT_EQ(n, ksm_stat("pages_sharing"));
}

TEST_F(device, nothing_to_do)
{
	struct ksm_user_scan s = { .pages_to_scan = UINT32_MAX };
	double began = ksm_now();
	long long passes = ksm_stat("full_scans");

	ASSERT_EQ(0, ioctl(self->k.scan, KSM_SCAN, &s));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	EXPECT_EQ(passes, ksm_stat("full_scans"));
}

/* ---- several at once ---- */

struct scanner {
	int fd;
	_Atomic int stop;
	_Atomic long calls;
	int error;
};

static void *scanner_main(void *arg)
{
	struct scanner *s = arg;
	struct ksm_user_scan scan = { .pages_to_scan = 300 };

	while (!s->stop && !s->error) {
		if (ioctl(s->fd, KSM_SCAN, &scan) && errno != EINTR)
			s->error = errno;
		s->calls++;
	}
	return NULL;
}

TEST_F(device, two_scanners_and_kksmd)
{
	const size_t n = 4096;
	struct scanner scanners[2] = { 0 };
	struct ksm_child c;
	pthread_t threads[2];
	char *mem = ksm_mmap(n);

	ksm_spawn(&c);
	ksm_fill(mem, n, 3);
	ksm_call(&c, ksm_fn_fill, mem, n, 3);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, n));
	for (int i = 0; i < 2; i++) {
		scanners[i].fd = ioctl(self->k.dev, KSM_CREATE_SCAN);
		ASSERT_LE(0, scanners[i].fd);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, scanner_main, &scanners[i]));
	}
	ASSERT_EQ(0, ksm_start(self->k.dev, 300, 0, 0));
	EXPECT_TRUE(ksm_wait_least("pages_sharing", n));
	for (int i = 0; i < 2; i++)
		scanners[i].stop = 1;
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		EXPECT_EQ(0, scanners[i].error);
		EXPECT_LT(0, scanners[i].calls);
		close(scanners[i].fd);
	}
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	/* One page for each content, however many looked for it at once. */
	EXPECT_EQ(n, ksm_same_frames(0, mem, c.pid, mem, n));
	EXPECT_EQ(n, ksm_distinct(0, mem, n));
	EXPECT_EQ(n, ksm_stat("pages_shared"));
	EXPECT_EQ(n, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_wrong(mem, n, 3));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 3));
	EXPECT_EQ(0, ksm_end(&c));
}

/* Works on what threads of it share: the area fd is closed under the others. */
struct racer {
	int dev;
	char *mem;
	_Atomic int area, stop;
	_Atomic long done;
};

static void *racer_register(void *arg)
{
	struct racer *r = arg;

	for (unsigned int i = 0; !r->stop; i++) {
		int err = ksm_register(r->area, r->mem + (i * 37 % 512) * PGSZ, 1 + i % 64);

		if (err && err != -EEXIST && err != -EBADF && err != -ENOMEM)
			ksm_die("register in a race: %s", strerror(-err));
		if (i % 5 == 0)
			ksm_remove(r->area);
		r->done += !err;
	}
	return NULL;
}

static void *racer_unmerge(void *arg)
{
	struct racer *r = arg;

	while (!r->stop) {
		int err = ksm_unmerge(r->area);

		if (err && err != -EBADF && err != -ENOMEM)
			ksm_die("unmerge in a race: %s", strerror(-err));
	}
	return NULL;
}

/* Whoever waits for the mmap lock to write makes those wait that come to read. */
static void *racer_map(void *arg)
{
	struct racer *r = arg;

	while (!r->stop) {
		char *page = ksm_mmap(1);

		*page = 1;
		munmap(page - PGSZ, 3 * PGSZ);
	}
	return NULL;
}

static void *racer_close(void *arg)
{
	struct racer *r = arg;

	while (!r->stop) {
		int area = ioctl(r->dev, KSM_CREATE_SHARED_MEMORY_AREA);
		/* dup2() replaces it under the others' hands, as a program may. */
		if (area < 0)
			ksm_die("CREATE_SHARED_MEMORY_AREA in a race: %s", strerror(errno));
		if (dup2(area, r->area) < 0)
			ksm_die("dup2: %s", strerror(errno));
		close(area);
		usleep(300);
	}
	return NULL;
}

TEST_F(device, area_calls_race)
{
	static void *(*const mains[])(void *) = {
		racer_register, racer_register, racer_unmerge, racer_map, racer_close,
	};
	struct racer r = { .dev = self->k.dev };
	struct scanner s = { .fd = self->k.scan };
	pthread_t threads[ARRAY_SIZE(mains)], scan;

	r.mem = ksm_mmap(1024);
	r.area = ksm_area(&self->k);
	ksm_fill_same(r.mem, 1024, 9);
	ASSERT_EQ(0, pthread_create(&scan, NULL, scanner_main, &s));
	ASSERT_EQ(0, ksm_start(self->k.dev, 100, 0, 0));
	for (size_t i = 0; i < ARRAY_SIZE(mains); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, mains[i], &r));
	sleep(3);
	for (double end = ksm_now() + KSM_PATIENCE; r.done <= 10 && ksm_now() < end; )
		usleep(100000);
	r.stop = 1;
	for (size_t i = 0; i < ARRAY_SIZE(mains); i++)
		pthread_join(threads[i], NULL);
	s.stop = 1;
	pthread_join(scan, NULL);
	EXPECT_EQ(0, s.error);
	EXPECT_LT(10, r.done);
	EXPECT_EQ(0, ksm_wrong_same(r.mem, 1024, 9));
	close(r.area);
	EXPECT_EQ(1, ksm_stat("areas"));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_stat("pages_registered"));
}

/* Processes that register and exit, with everybody scanning all the while. */
TEST_F(device, exit_while_scanned)
{
	struct scanner s = { .fd = self->k.scan };
	char *mem = ksm_mmap(128);
	struct ksm_child c[3];
	pthread_t scan;
	int status;

	ASSERT_EQ(0, pthread_create(&scan, NULL, scanner_main, &s));
	ASSERT_EQ(0, ksm_start(self->k.dev, 100, 0, 0));
	ksm_fill(mem, 128, 4);
	for (int round = 0; round < 30; round++) {
		for (int i = 0; i < 3; i++) {
			ksm_spawn(&c[i]);
			ASSERT_EQ(0, ksm_call(&c[i], ksm_fn_register, self->area, mem, 128));
			/* Its own copies, equal to those of the others. */
			ksm_call(&c[i], ksm_fn_fill, mem, 128, 4);
		}
		usleep(1000 * (round % 7) * 5);
		for (int i = 0; i < 3; i++) {
			EXPECT_EQ(0, ksm_call(&c[i], ksm_fn_wrong, mem, 128, 4));
			status = i ? ksm_end(&c[i]) : ksm_kill(&c[i]);
			EXPECT_EQ(i ? 0 : SIGKILL, status);
		}
	}
	s.stop = 1;
	pthread_join(scan, NULL);
	EXPECT_EQ(0, s.error);
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	/* The area is open still, but those it knew are gone. */
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	/*
	 * Where a scan was the last to let go of a process' memory, a work item unmaps it:
	 * the process is gone by then, and its region, but not yet its mappings.
	 */
	EXPECT_TRUE(ksm_wait_stat("pages_shared", 0));
	EXPECT_EQ(0, ksm_wrong(mem, 128, 4));
}

TEST_HARNESS_MAIN
