// SPDX-License-Identifier: GPL-2.0-only
/*
 * long_test.c - calls that take long: they end early when they must, and lose nothing
 *
 * What was done is counted, not how long it took. suspend_test.c is about the same calls
 * while the machine suspends.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_cgroup.h"
#include "ksm_harness.h"
#include "ksm_told.h"

#define GROUP	"ksm-long"

/* Seconds after which something hangs. */
#define HANGS	60

/* Pages of each half of what is unmerged: takes a second or so in an emulated VM. */
#define N	8192UL

/* Let the child be one that can be frozen. */
static void cgroup_take(struct ksm_child *c)
{
	ksm_cgroup_make(GROUP);
	ksm_cgroup_write(GROUP, "cgroup.procs", c->pid);
}

/* Freeze it, and wait until it is: how long that took, in ms. */
static double cgroup_freeze(void)
{
	double begin = ksm_now();

	ksm_cgroup_write(GROUP, "cgroup.freeze", 1);
	while (!ksm_cgroup_read(GROUP, "cgroup.events", "frozen"))
		if (ksm_now() > begin + HANGS)
			ksm_die("not frozen after %d s", HANGS);
	return (ksm_now() - begin) * 1000;
}

static void cgroup_thaw(void)
{
	ksm_cgroup_write(GROUP, "cgroup.freeze", 0);
}

/* Kill it; how long until it is gone, with its memory, in ms. */
static double kill_took(struct ksm_child *c)
{
	double begin = ksm_now();

	ksm_kill(c);
	return (ksm_now() - begin) * 1000;
}

/* ---- KSM_UNMERGE, while it is at work ---- */

FIXTURE(unmerge)
{
	struct ksm k;
	int area;
	struct ksm_child c;
	char *mem;
};

/* A process with two equal halves, merged. */
FIXTURE_SETUP(unmerge)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->mem = ksm_mmap(2 * N);
	ksm_spawn(&self->c);
	ksm_call(&self->c, ksm_fn_fill, self->mem, N, 1);
	ksm_call(&self->c, ksm_fn_fill, self->mem + N * PGSZ, N, 1);
	ASSERT_EQ(0, ksm_call(&self->c, ksm_fn_register, self->area, self->mem, 2 * N));
	ASSERT_LT(0, ksm_call(&self->c, ksm_fn_merge_range, self->area, self->mem, 2 * N));
	ASSERT_LT(N - 16, ksm_stat("pages_sharing"));
}

FIXTURE_TEARDOWN(unmerge)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* Let the child unmerge, and come back when it is at it. */
static bool begin_unmerge(struct ksm_child *c, int area)
{
	long long sharing = ksm_stat("pages_sharing");
	double end = ksm_now() + HANGS;

	ksm_call_start(c, ksm_fn_unmerge, area, 0, 0, 0);
	while (ksm_stat("pages_sharing") > sharing - 64)
		if (ksm_now() > end)
			return false;
	return true;
}

TEST_F_TIMEOUT(unmerge, killed, 600)
{
	long long faults = told_vmstat("pgfault");

	ASSERT_TRUE(begin_unmerge(&self->c, self->area));
	TH_LOG("killed in %.1f ms", kill_took(&self->c));
	/*
	 * To the end, that is a fault for each page of the first half; those of the second are then
	 * mapped there alone, and stay. A few pages may not have been merged.
	 */
	faults = told_vmstat("pgfault") - faults;
	TH_LOG("%lld page faults", faults);
	EXPECT_GT(N - 64, faults);
}

TEST_F_TIMEOUT(unmerge, stopped, 600)
{
	int status;

	ASSERT_TRUE(begin_unmerge(&self->c, self->area));
	ASSERT_EQ(0, kill(self->c.pid, SIGSTOP));
	ASSERT_EQ(self->c.pid, waitpid(self->c.pid, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));
	TH_LOG("%lld left", ksm_stat("pages_sharing"));
	EXPECT_LT(0, ksm_stat("pages_sharing"));
	/* It goes on where it was, and the program sees nothing of it. */
	ASSERT_EQ(0, kill(self->c.pid, SIGCONT));
	EXPECT_EQ(0, ksm_call_finish(&self->c));
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem, N, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem + N * PGSZ, N, 1));
	EXPECT_EQ(0, ksm_end(&self->c));
}

TEST_F_TIMEOUT(unmerge, frozen, 600)
{
	double took;

	cgroup_take(&self->c);
	ASSERT_TRUE(begin_unmerge(&self->c, self->area));
	took = cgroup_freeze();
	TH_LOG("frozen in %.1f ms, %lld left", took, ksm_stat("pages_sharing"));
	EXPECT_LT(0, ksm_stat("pages_sharing"));
	cgroup_thaw();
	EXPECT_EQ(0, ksm_call_finish(&self->c));
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem, N, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem + N * PGSZ, N, 1));
	EXPECT_EQ(0, ksm_end(&self->c));
	ksm_cgroup_remove(GROUP);
}

static volatile int alarms;

static void on_alarm(int sig)
{
	(void)sig;
	alarms++;
}

static long fn_unmerge_alarmed(long area, long unused, long unused2, long unused3)
{
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
	struct sigaction sa = { .sa_handler = on_alarm };
	int ret;

	(void)unused;
	(void)unused2;
	(void)unused3;
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	ret = ksm_unmerge(area);
	setitimer(ITIMER_REAL, &never, NULL);
	return ret ? ret : alarms;
}

/* A timer that goes off all the time does not keep it from its end, nor is it an error. */
TEST_F_TIMEOUT(unmerge, alarmed, 600)
{
	EXPECT_LT(0, ksm_call(&self->c, fn_unmerge_alarmed, self->area, 0, 0));
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_end(&self->c));
}

/* ---- KSM_MERGE_RANGE and KSM_SCAN, while they are at work ---- */

/* All of it has two equal halves, and nobody has scanned it yet. */
static long fn_merge_halves(long area, long mem, long unused, long merged)
{
	uint64_t now;
	long ret = ksm_merge_range(area, (void *)mem, 2 * N, &now);

	(void)unused;
	*(volatile uint64_t *)merged += now;
	return ret;
}

/* So many pages that it does not come to its end. */
static long fn_scan_on(long scan, long unused, long unused2, long unused3)
{
	struct ksm_user_scan arg = { .pages_to_scan = UINT32_MAX };

	(void)unused;
	(void)unused2;
	(void)unused3;
	return ioctl(scan, KSM_SCAN, &arg) ? -errno : 0;
}

FIXTURE(scans)
{
	struct ksm k;
	int area;
	struct ksm_child c;
	char *mem;
	volatile uint64_t *merged;
};

FIXTURE_SETUP(scans)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->mem = ksm_mmap(2 * N);
	self->merged = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->merged);
	ksm_spawn(&self->c);
	cgroup_take(&self->c);
	ksm_call(&self->c, ksm_fn_fill, self->mem, N, 1);
	ksm_call(&self->c, ksm_fn_fill, self->mem + N * PGSZ, N, 1);
	ASSERT_EQ(0, ksm_call(&self->c, ksm_fn_register, self->area, self->mem, 2 * N));
}

FIXTURE_TEARDOWN(scans)
{
	close(self->area);
	ksm_finish(&self->k);
	ksm_cgroup_remove(GROUP);
}

/* Is this page of one half the same as in the other? */
static bool is_merged(struct ksm_child *c, char *mem, size_t i)
{
	return ksm_same_frames(c->pid, ksm_page(mem, i), c->pid, ksm_page(mem, N + i), 1);
}

/* Let the child merge, and come back when it is at it: the second half is what takes long. */
static bool begin_merge(struct ksm_child *c, int area, char *mem, volatile uint64_t *merged)
{
	double end = ksm_now() + HANGS;

	ksm_call_start(c, fn_merge_halves, area, (long)mem, 0, (long)merged);
	while (!is_merged(c, mem, 8))
		if (ksm_now() > end)
			return false;
	return true;
}

TEST_F_TIMEOUT(scans, merge_range_frozen, 600)
{
	double took;

	ASSERT_TRUE(begin_merge(&self->c, self->area, self->mem, self->merged));
	took = cgroup_freeze();
	TH_LOG("frozen in %.1f ms, %lld merged", took, ksm_stat("pages_sharing"));
	EXPECT_FALSE(is_merged(&self->c, self->mem, N - 1));
	cgroup_thaw();
	EXPECT_EQ(-EINTR, ksm_call_finish(&self->c));
	/* What it has done is done, and told: the next call does the rest. */
	EXPECT_LE(16, *self->merged);
	EXPECT_GT(2 * N, *self->merged);
	EXPECT_EQ(0, ksm_call4(&self->c, fn_merge_halves, self->area, (long)self->mem, 0,
			       (long)self->merged));
	EXPECT_EQ(N, ksm_same_frames(self->c.pid, self->mem, self->c.pid,
				     self->mem + N * PGSZ, N));
	EXPECT_EQ(2 * N, *self->merged);
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem, N, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem + N * PGSZ, N, 1));
	EXPECT_EQ(0, ksm_end(&self->c));
}

TEST_F_TIMEOUT(scans, merge_range_killed, 600)
{
	long long scanned = ksm_stat("pages_scanned");

	ASSERT_TRUE(begin_merge(&self->c, self->area, self->mem, self->merged));
	TH_LOG("killed in %.1f ms", kill_took(&self->c));
	scanned = ksm_stat("pages_scanned") - scanned;
	TH_LOG("%lld pages scanned of %lu", scanned, 2 * N);
	EXPECT_LT(N, scanned);
	EXPECT_GT(2 * N, scanned);
}

TEST_F_TIMEOUT(scans, scan_frozen, 600)
{
	ksm_call_start(&self->c, fn_scan_on, self->k.scan, 0, 0, 0);
	ASSERT_TRUE(ksm_wait_more("pages_scanned", 4 * N, HANGS));
	TH_LOG("frozen in %.1f ms", cgroup_freeze());
	cgroup_thaw();
	EXPECT_EQ(-EINTR, ksm_call_finish(&self->c));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem, N, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, self->mem + N * PGSZ, N, 1));
	EXPECT_EQ(0, ksm_end(&self->c));
}

TEST_F_TIMEOUT(scans, scan_killed, 600)
{
	ksm_call_start(&self->c, fn_scan_on, self->k.scan, 0, 0, 0);
	ASSERT_TRUE(ksm_wait_more("pages_scanned", 4 * N, HANGS));
	/* To the end it would be a quarter of a million passes. */
	TH_LOG("killed in %.1f ms", kill_took(&self->c));
}

/* ---- fdinfo ---- */

static long fn_read_fdinfo(long area, long stop, long unused, long unused2)
{
	long incomplete = 0;
	char path[64], text[4096];

	(void)unused;
	(void)unused2;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", (int)area);
	while (!*(volatile int *)stop) {
		int fd = open(path, O_RDONLY);
		ssize_t size = read(fd, text, sizeof(text) - 1);

		if (fd < 0 || size <= 0)
			return -errno;
		text[size] = '\0';
		incomplete += !!strstr(text, "\nincomplete:\t1\n");
		close(fd);
	}
	return incomplete;
}

FIXTURE(fdinfo)
{
	struct ksm k;
	int area;
	struct ksm_child c;
	volatile int *stop;
};

/* A process that reads it without end. The walk is most of what it does. */
FIXTURE_SETUP(fdinfo)
{
	const size_t n = 32768;
	char *mem = ksm_mmap(n);

	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->stop = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->stop);
	ksm_fill_same(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ksm_spawn(&self->c);
	ksm_call_start(&self->c, fn_read_fdinfo, self->area, (long)self->stop, 0, 0);
}

FIXTURE_TEARDOWN(fdinfo)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* Who is stopped while he reads it gets what was counted by then, and is told. */
TEST_F_TIMEOUT(fdinfo, stopped, 600)
{
	for (int i = 0; i < 50; i++) {
		int status;

		usleep(1000 + 777 * i % 5000);
		ASSERT_EQ(0, kill(self->c.pid, SIGSTOP));
		ASSERT_EQ(self->c.pid, waitpid(self->c.pid, &status, WUNTRACED));
		ASSERT_EQ(0, kill(self->c.pid, SIGCONT));
	}
	*self->stop = 1;
	EXPECT_LT(0, ksm_call_finish(&self->c));
	EXPECT_EQ(0, ksm_end(&self->c));
}

/* So is who is frozen. */
TEST_F_TIMEOUT(fdinfo, frozen, 600)
{
	double longest = 0;

	cgroup_take(&self->c);
	for (int i = 0; i < 50; i++) {
		double took;

		usleep(1000 + 777 * i % 5000);
		took = cgroup_freeze();
		longest = took > longest ? took : longest;
		cgroup_thaw();
	}
	TH_LOG("frozen in %.1f ms at most", longest);
	*self->stop = 1;
	EXPECT_LT(0, ksm_call_finish(&self->c));
	EXPECT_EQ(0, ksm_end(&self->c));
	ksm_cgroup_remove(GROUP);
}

/* ---- a CPU that a real-time task owns ---- */

/*
 * What the kernel gives others all the same: of each second some, all CPUs alike; since 6.12
 * each CPU by itself. Without the latter's file there is only the former.
 */
#define RT_RUNTIME	"/proc/sys/kernel/sched_rt_runtime_us"
#define FAIR_SERVER	"/sys/kernel/debug/sched/fair_server/cpu1/runtime"

static long fn_own_cpu(long cpu, long state, long mem, long npages)
{
	struct sched_param param = { .sched_priority = 50 };
	volatile int *at = (volatile int *)state;
	double end;

	ksm_use_cpu(cpu);
	/* What others left there, with some pages more, would do the work. */
	ksm_drain_batches();
	if (sched_setscheduler(0, SCHED_FIFO, &param))
		return -errno;
	end = ksm_now() + HANGS / 2;
	/* Work for the CPU, which nobody does. Last of all: a copy-on-write may do it by the way. */
	memset((void *)mem, 1, npages * PGSZ);
	*at = 1;
	/* Ends by itself: not even the harness might get rid of it. */
	while (*at == 1 && ksm_now() < end)
		;
	return *at;
}

/*
 * Merging wants a work item done on each CPU. It does not wait for one that is not to be
 * had: the call is back while that task still runs. No other call wants one at all.
 */
TEST_F_TIMEOUT(device, realtime_task, 120)
{
	const size_t n = 512, few = 5;
	char *mem = ksm_mmap(2 * n), *work = ksm_mmap(few), *other = ksm_mmap(few);
	volatile int *state = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct ksm_child c;
	uint64_t merged;
	int area;

	ksm_fill_same(other, few, 2);
	ASSERT_EQ(0, ksm_write_file(RT_RUNTIME, "-1"));
	if (!access(FAIR_SERVER, F_OK))
		ASSERT_EQ(0, ksm_write_file(FAIR_SERVER, "0"));
	ksm_use_cpu(0);
	ksm_spawn(&c);
	ksm_call_start(&c, fn_own_cpu, 1, (long)state, (long)work, few);
	while (!*state)
		usleep(1000);
	for (size_t i = 0; i < few; i++)
		ASSERT_FALSE(ksm_pfn_is(ksm_pfn(c.pid, ksm_page(work, i)), KPF_BIT_LRU));
	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	EXPECT_EQ(0, ksm_merge_range(self->area, mem, 2 * n, &merged));
	EXPECT_EQ(0, ksm_scan(self->k.scan, 4 * n));
	EXPECT_EQ(0, ksm_unmerge(self->area));
	EXPECT_LE(0, ksm_fdinfo(self->area, "pages_sharing"));
	EXPECT_LE(0, ksm_stat_told("pages_sharing"));
	area = ksm_area(&self->k);
	EXPECT_EQ(0, ksm_register(area, other, few));
	EXPECT_EQ(0, ksm_scan(self->k.scan, 4 * n));
	EXPECT_EQ(0, ksm_remove(area));
	EXPECT_EQ(0, ksm_register(area, other, few));
	EXPECT_EQ(0, ksm_scan(self->k.scan, 4 * n));
	EXPECT_EQ(0, close(area));
	*state = 2;
	/* It returns what it ended for: 1 is its time being up. */
	EXPECT_EQ(2, ksm_call_finish(&c));
	EXPECT_EQ(0, ksm_end(&c));
	if (!access(FAIR_SERVER, F_OK))
		EXPECT_EQ(0, ksm_write_file(FAIR_SERVER, "50000000"));
	EXPECT_EQ(0, ksm_write_file(RT_RUNTIME, "950000"));
	/* All that was left is merged now. */
	EXPECT_EQ(0, ksm_merge_range(self->area, mem, 2 * n, &merged));
	EXPECT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
}

TEST_HARNESS_MAIN
