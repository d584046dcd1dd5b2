// SPDX-License-Identifier: GPL-2.0-only
/*
 * trace_test.c - the tracepoints of system ksmdev say what really happened
 *
 * What an event claims is compared with pagemap: the frame that a merge names
 * must be the one that is mapped at the address that it names.
 *
 * And the kernel's own functions say how often they were called on our behalf.
 *
 * Enabling a tracepoint has the kernel patch its text (the scheduler's, too: it traces the names
 * of tasks), so tests/suite gives this a VM where that is safe.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_harness.h"

#define TRACING		"/sys/kernel/tracing"
#define INSTANCE	TRACING "/instances/ksmdev-test"
#define MAX_EVENTS	4096
/* A kprobe of our own. */
#define PROBE		"ksmdev_test/drain"

struct event {
	char name[32];
	unsigned long addr, pfn, pages, visited, merged;
	long err;
	char reason[32];
};

FIXTURE(trace) {
	struct ksm k;
	int area;
	struct event *events;
	int nr;
};

/* If there is one, in use by our instance alone. */
static void remove_probe(void)
{
	ksm_write_file(INSTANCE "/events/" PROBE "/enable", "0");
	ksm_write_file(TRACING "/kprobe_events", "-:" PROBE);
}

FIXTURE_SETUP(trace)
{
	int err;

	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->events = calloc(MAX_EVENTS, sizeof(*self->events));
	ASSERT_NE(NULL, self->events);
	/* An instance of our own: what others trace is not our business. */
	remove_probe();
	rmdir(INSTANCE);
	ASSERT_EQ(0, mkdir(INSTANCE, 0700)) {
		TH_LOG("%s: %s; is tracefs mounted?", INSTANCE, strerror(errno));
	}
	err = ksm_write_file(INSTANCE "/events/ksmdev/enable", "1");
	ASSERT_EQ(0, err) {
		TH_LOG("cannot enable the events of system ksmdev: %s", strerror(-err));
	}
}

FIXTURE_TEARDOWN(trace)
{
	EXPECT_EQ(0, ksm_write_file(INSTANCE "/events/ksmdev/enable", "0"));
	remove_probe();
	EXPECT_EQ(0, rmdir(INSTANCE));
	free(self->events);
	close(self->area);
	ksm_finish(&self->k);
}

static unsigned long field(const char *line, const char *name)
{
	const char *p = strstr(line, name);

	return p ? strtoul(p + strlen(name), NULL, 0) : 0;
}

/* Reads what was traced since it was cleared. */
static int peek_events(struct event *events)
{
	char line[512], *p;
	int n = 0;
	FILE *f = fopen(INSTANCE "/trace", "re");

	if (!f)
		ksm_die("cannot open " INSTANCE "/trace: %s", strerror(errno));
	while (n < MAX_EVENTS && fgets(line, sizeof(line), f)) {
		struct event *e = &events[n];

		if (strstr(line, "LOST"))
			ksm_die("the trace buffer was too small: %s", line);
		p = strstr(line, " ksmdev_");
		if (line[0] == '#' || !p)
			continue;
		memset(e, 0, sizeof(*e));
		if (sscanf(p, " ksmdev_%31[a-z_]:", e->name) != 1)
			ksm_die("cannot read the event \"%s\"", line);
		p += strlen(e->name);
		e->addr = field(p, "addr=");
		e->pfn = field(p, "pfn=");
		e->pages = field(p, " pages=");
		e->visited = field(p, "visited=");
		e->merged = field(p, "merged=");
		e->err = (long)field(p, "err=");
		p = strstr(p, "reason=");
		if (p)
			sscanf(p, "reason=%31s", e->reason);
		n++;
	}
	fclose(f);
	return n;
}

/* Reads what was traced since the last time. */
static int read_events(struct event *events)
{
	int n = peek_events(events);
	/* To truncate it is what empties the buffer. */
	FILE *f = fopen(INSTANCE "/trace", "we");

	if (!f)
		ksm_die("cannot clear " INSTANCE "/trace: %s", strerror(errno));
	fclose(f);
	return n;
}

static int count(const struct event *events, int nr, const char *name)
{
	int n = 0;

	for (int i = 0; i < nr; i++)
		n += !strcmp(events[i].name, name);
	return n;
}

TEST_F(trace, all_are_there)
{
	static const char *const names[] = {
		"scan_start", "scan_end", "merge", "merge_failed", "unmerge",
	};
	char path[128];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), TRACING "/events/ksmdev/ksmdev_%s/format", names[i]);
		EXPECT_EQ(0, access(path, R_OK)) {
			TH_LOG("%s: %s", path, strerror(errno));
		}
	}
	/* The kernel's own ksm has its own system. */
	EXPECT_EQ(0, access(TRACING "/events/ksmdev/enable", W_OK));
}

TEST_F(trace, merge_and_unmerge)
{
	const size_t n = 64, total = 2 * n + 4;
	char *mem = ksm_mmap(total);
	struct ksm_user_scan s = { .pages_to_scan = 4 * total };
	unsigned char seen[2 * 64 + 4] = { 0 };
	const uint64_t zero = ksm_zero_pfn();
	unsigned long merged = 0;

	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ksm_fn_zero((long)(mem + 2 * n * PGSZ), 4, 0, 0);
	ASSERT_EQ(0, ksm_register(self->area, mem, total));
	EXPECT_EQ(0, read_events(self->events));
	ASSERT_EQ(0, ioctl(self->k.scan, KSM_SCAN, &s));
	ASSERT_EQ(n, ksm_stat("pages_sharing"));

	self->nr = read_events(self->events);
	ASSERT_EQ(1, count(self->events, self->nr, "scan_start"));
	ASSERT_EQ(1, count(self->events, self->nr, "scan_end"));
	EXPECT_STREQ("scan_start", self->events[0].name);
	EXPECT_EQ(4 * total, self->events[0].pages);
	EXPECT_STREQ("scan_end", self->events[self->nr - 1].name);
	EXPECT_EQ(4 * total, self->events[self->nr - 1].visited);
	EXPECT_EQ(0, self->events[self->nr - 1].err);
	for (int i = 0; i < self->nr; i++) {
		struct event *e = &self->events[i];
		size_t page = (e->addr - (uintptr_t)mem) / PGSZ;

		if (strcmp(e->name, "merge"))
			continue;
		merged++;
		ASSERT_GT(total, page);
		seen[page]++;
		EXPECT_EQ(ksm_pfn(0, (void *)e->addr), e->pfn);
		if (page >= 2 * n)
			EXPECT_EQ(zero, e->pfn);
	}
	EXPECT_EQ(total, merged);
	EXPECT_EQ(merged, self->events[self->nr - 1].merged);
	for (size_t i = 0; i < total; i++)
		EXPECT_EQ(1, seen[i]);

	memset(seen, 0, sizeof(seen));
	ASSERT_EQ(0, ksm_unmerge(self->area));
	self->nr = read_events(self->events);
	EXPECT_EQ(total, count(self->events, self->nr, "unmerge"));
	for (int i = 0; i < self->nr; i++) {
		size_t page = (self->events[i].addr - (uintptr_t)mem) / PGSZ;

		ASSERT_GT(total, page);
		seen[page]++;
		EXPECT_EQ(0, self->events[i].err);
	}
	for (size_t i = 0; i < total; i++)
		EXPECT_EQ(1, seen[i]);
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
}

TEST_F(trace, merge_failed)
{
	char *mem = ksm_mmap(3);
	struct iovec iov = { mem, PGSZ };
	char buf[PGSZ];
	int p[2], failed = 0;

	ksm_fill_same(mem, 3, 1);
	ASSERT_EQ(0, pipe(p));
	/* The pipe holds a reference to the first page. */
	ASSERT_EQ((ssize_t)PGSZ, vmsplice(p[1], &iov, 1, 0));
	ASSERT_EQ(0, ksm_register(self->area, mem, 3));
	ksm_merge_all(&self->k);
	self->nr = read_events(self->events);
	for (int i = 0; i < self->nr; i++) {
		struct event *e = &self->events[i];

		if (strcmp(e->name, "merge_failed"))
			continue;
		EXPECT_EQ((uintptr_t)mem, e->addr);
		EXPECT_STREQ("busy", e->reason);
		failed++;
	}
	EXPECT_LT(0, failed);
	EXPECT_EQ(2, count(self->events, self->nr, "merge"));
	EXPECT_EQ(1, ksm_distinct(0, mem + PGSZ, 2));
	EXPECT_EQ(2, ksm_distinct(0, mem, 3));

	/* Once the pipe lets go it merges, and says so. */
	ASSERT_EQ((ssize_t)PGSZ, read(p[0], buf, PGSZ));
	EXPECT_TRUE(ksm_page_is(buf, 1, 0));
	ksm_merge_held(&self->k);
	self->nr = read_events(self->events);
	EXPECT_EQ(1, count(self->events, self->nr, "merge"));
	EXPECT_EQ(1, ksm_distinct(0, mem, 3));
}

static void on_alarm(int sig)
{
	(void)sig;
}

TEST_F(trace, interrupted_scan)
{
	struct ksm_user_scan s = { .pages_to_scan = UINT32_MAX };
	struct itimerval timer = { .it_value.tv_usec = 50000 };
	struct sigaction sa = { .sa_handler = on_alarm };
	char *mem = ksm_mmap(256);

	ksm_fill(mem, 256, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 256));
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	ASSERT_EQ(-1, ioctl(self->k.scan, KSM_SCAN, &s));
	ASSERT_EQ(EINTR, errno);
	self->nr = read_events(self->events);
	ASSERT_EQ(1, count(self->events, self->nr, "scan_end"));
	EXPECT_EQ(-EINTR, self->events[self->nr - 1].err);
	EXPECT_GT(UINT32_MAX, self->events[self->nr - 1].visited);
}

/*
 * A round is one of all threads: its number of pages is not each one's, and is neither
 * more nor less than that with any number of threads.
 */
TEST_F(trace, a_round_of_several_threads)
{
	static const struct {
		unsigned int pages, threads;
	} rounds[] = { { 10, 1 }, { 10, 4 }, { 3, 8 }, { 1, 64 }, { 65, 64 }, { 2000, 3 } };
	const size_t n = 512;
	char *mem = ksm_mmap(n);

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (size_t i = 0; i < sizeof(rounds) / sizeof(rounds[0]); i++) {
		const unsigned int pages = rounds[i].pages, threads = rounds[i].threads;
		unsigned long visited = 0;
		int scans = 0;

		ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, threads));
		read_events(self->events);
		ASSERT_EQ(0, ksm_start(self->k.dev, pages, 0, 3600000000U));
		/* What comes in the half second after it is done is too much. */
		for (int wait = 0; wait < 100 + 5; wait++) {
			usleep(100000);
			self->nr = peek_events(self->events);
			visited = 0;
			scans = 0;
			for (int e = 0; e < self->nr; e++) {
				if (strcmp(self->events[e].name, "scan_end"))
					continue;
				scans++;
				visited += self->events[e].visited;
			}
			if (visited >= pages && wait < 100)
				wait = 100;
		}
		EXPECT_EQ(pages, visited) {
			TH_LOG("%u threads", threads);
		}
		EXPECT_EQ(pages < threads ? pages : threads, (unsigned int)scans);
		ASSERT_EQ(0, ksm_stop(self->k.dev));
	}
}

/* ---- what the kernel does for us ---- */

#define USERS	3
#define SECONDS	5

/* A user's own. */
static long user_area;

static long fn_become_scanner(long uid, long dev, long mem, long npages)
{
	long err = ksm_become(uid);

	if (err)
		return err;
	user_area = ksm_fn_area_register(dev, mem, npages, 0);
	return user_area < 0 ? user_area : ioctl(dev, KSM_CREATE_SCAN);
}

/* Pages that were just written are what it is done for; KSM_MERGE_RANGE asks for it by itself. */
static long fn_write_and_scan(long scan, long mem, long npages, long seconds)
{
	double end = ksm_now() + seconds;
	long n = 0;

	while (ksm_now() < end) {
		madvise((void *)mem, npages * PGSZ, MADV_DONTNEED);
		ksm_fill((void *)mem, npages / 2, n);
		ksm_fill((char *)mem + npages / 2 * PGSZ, npages / 2, n);
		if (ksm_scan(scan, 4 * npages) ||
		    ksm_merge_range(user_area, (void *)mem, npages, NULL))
			return -errno;
		n++;
	}
	return n;
}

/* How often a function of the kernel was called, as a kprobe of our own says. */
static int calls(const char *function)
{
	char line[512];
	int n = 0;
	FILE *f = fopen(INSTANCE "/trace", "re");

	if (!f)
		ksm_die("cannot open " INSTANCE "/trace: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		n += line[0] != '#' && strstr(line, function);
	fclose(f);
	return n;
}

/*
 * All CPUs put back what they hold once a second at most, whoever has a use for it, and however
 * many they are: users who scan their own memory, and the kernel thread.
 */
TEST_F(trace, drains_of_all_cpus)
{
	const size_t n = 64;
	char *mem = ksm_mmap(n);
	struct ksm_child c[USERS];
	long scan[USERS];
	double took;
	int drains;

	/* What we see is not of our making alone, so nothing else is there to see. */
	ASSERT_EQ(0, ksm_write_file(INSTANCE "/events/ksmdev/enable", "0"));
	if (access(TRACING "/kprobe_events", W_OK))
		SKIP(return, "this kernel has no kprobe events");
	ASSERT_EQ(0, ksm_write_file(TRACING "/kprobe_events", "p:" PROBE " lru_add_drain_all"));
	ASSERT_EQ(0, ksm_write_file(INSTANCE "/events/" PROBE "/enable", "1"));
	read_events(self->events);
	for (int i = 0; i < USERS; i++) {
		ksm_spawn(&c[i]);
		scan[i] = ksm_call4(&c[i], fn_become_scanner, 1000 + i, self->k.dev, (long)mem, n);
		ASSERT_LE(0, scan[i]);
	}
	ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 0));
	took = ksm_now();
	for (int i = 0; i < USERS; i++)
		ksm_call_start(&c[i], fn_write_and_scan, scan[i], (long)mem, n, SECONDS);
	for (int i = 0; i < USERS; i++)
		EXPECT_LT(0, ksm_call_finish(&c[i]));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	took = ksm_now() - took;
	drains = calls("lru_add_drain_all");
	TH_LOG("%d in %.1f s", drains, took);
	EXPECT_LT(0, drains);
	/* The kernel has some use for it, too. */
	EXPECT_GE(took + 3, drains);
	for (int i = 0; i < USERS; i++)
		ksm_end(&c[i]);
}

/* ---- the kernel's own account of mmap locks ---- */

#define LOCKS		INSTANCE "/events/mmap_lock"
#define LOCK_TAKEN	"mmap_lock_acquire_returned"
#define LOCK_LEFT	"mmap_lock_released"

/* In microseconds. */
struct holds {
	double sum, longest;
	unsigned int nr, nested;
};

/* What a thread's lines of the trace come to: "COMM-PID [CPU] FLAGS SECONDS: EVENT: ..." */
static void read_holds(struct holds *holds)
{
	double now, since = 0;
	char line[512], *p;
	FILE *f = fopen(INSTANCE "/trace", "re");

	if (!f)
		ksm_die("cannot open " INSTANCE "/trace: %s", strerror(errno));
	memset(holds, 0, sizeof(*holds));
	while (fgets(line, sizeof(line), f)) {
		if (strstr(line, "LOST"))
			ksm_die("the trace buffer was too small: %s", line);
		p = strstr(line, ": mmap_lock_");
		if (line[0] == '#' || !p)
			continue;
		*p = '\0';
		now = strtod(strrchr(line, ' '), NULL) * 1e6;
		if (!strncmp(p + 2, LOCK_TAKEN, strlen(LOCK_TAKEN))) {
			/* One that was only tried says so. */
			if (strstr(p + 1, "success=false"))
				continue;
			holds->nested += since > 0;
			since = now;
		} else if (!strncmp(p + 2, LOCK_LEFT, strlen(LOCK_LEFT)) && since > 0) {
			holds->nr++;
			holds->sum += now - since;
			if (now - since > holds->longest)
				holds->longest = now - since;
			since = 0;
		}
	}
	fclose(f);
}

/*
 * For how long kksmd holds mmap locks, and the longest time of it, are told as the kernel's own
 * tracepoints have it. And it never holds two.
 */
TEST_F(trace, holds_are_told)
{
	const size_t n = 512;
	char *mem = ksm_mmap(2 * n);
	struct ksm_thread kksmd;
	struct holds holds;
	long long told;
	char pid[16];

	if (access(LOCKS, F_OK))
		SKIP(return, "this kernel does not trace mmap locks");
	ASSERT_TRUE(ksm_find_thread("kksmd", &kksmd));
	ASSERT_EQ(0, ksm_write_file(INSTANCE "/events/ksmdev/enable", "0"));
	ASSERT_EQ(0, ksm_write_file(INSTANCE "/buffer_size_kb", "16384"));
	snprintf(pid, sizeof(pid), "%d", kksmd.pid);
	ASSERT_EQ(0, ksm_write_file(INSTANCE "/set_event_pid", pid));
	ksm_fill(mem, n, 1);
	ksm_fill(mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ASSERT_EQ(0, ksm_write_file("/sys/class/misc/ksm/longest_hold_us", "0"));
	told = ksm_stat("held_us");
	ASSERT_EQ(0, ksm_write_file(LOCKS "/" LOCK_TAKEN "/enable", "1"));
	ASSERT_EQ(0, ksm_write_file(LOCKS "/" LOCK_LEFT "/enable", "1"));
	ASSERT_EQ(0, ksm_start(self->k.dev, 2 * n, 0, 0));
	for (int i = 0; i < 10; i++) {
		usleep(100000);
		/* Something to read, to merge, and to give back. */
		ksm_fill(mem, n / 4, i + 2);
	}
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	told = ksm_stat("held_us") - told;
	EXPECT_EQ(0, ksm_write_file(LOCKS "/" LOCK_TAKEN "/enable", "0"));
	EXPECT_EQ(0, ksm_write_file(LOCKS "/" LOCK_LEFT "/enable", "0"));
	read_holds(&holds);
	TH_LOG("%u holds, %.0f us of %lld told, the longest %.0f us of %lld", holds.nr, holds.sum, told,
	       holds.longest, ksm_stat("longest_hold_us"));
	EXPECT_LT(100, holds.nr);
	EXPECT_EQ(0, holds.nested);
	/*
	 * A time stamp is a microsecond's. Between the kernel's and ours there is little, unless an
	 * interrupt comes there, and more where the kernel checks itself.
	 */
	EXPECT_LE(0.9 * holds.sum - 2 * holds.nr, told);
	EXPECT_LE(0.5 * holds.longest - 2, ksm_stat("longest_hold_us"));
}

TEST_HARNESS_MAIN
