// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork_test.c - processes and threads come and go around registered memory
 *
 * A registration belongs to an address space, not to a file descriptor and not
 * to a process: fork does not inherit it, and exec or exit ends it at once,
 * whoever still holds the descriptors. Memory must come back (MemFree) and
 * contents must survive in every process that is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64

/* Two buffers of the same pages, registered with @area. */
static void make_twins(int area, char **a, char **b, size_t n, uint64_t seed)
{
	*a = ksm_mmap(n);
	*b = ksm_mmap(n);
	ksm_fill(*a, n, seed);
	ksm_fill(*b, n, seed);
	if (ksm_register(area, *a, n) || ksm_register(area, *b, n))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
}

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

/* Who made the pages goes first, or last. */
TEST_F(device, exit_order)
{
	char *buf = ksm_mmap(N);
	struct ksm_child c[3];
	uint64_t pfns[N];

	for (int first = 0; first < 3; first++) {
		for (int i = 0; i < 3; i++) {
			ksm_spawn(&c[i]);
			ksm_call(&c[i], ksm_fn_fill, buf, N, 10 + first);
			ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, N), 0);
		}
		ksm_merge_all(&self->k);
		ksm_pfns(c[0].pid, buf, N, pfns);
		for (int i = 0; i < 3; i++) {
			struct ksm_child *next = &c[(first + i) % 3];

			/* With one mapper left, the driver may return them to it. */
			if (i < 2) {
				EXPECT_EQ(ksm_moved(next->pid, buf, N, pfns), 0);
			}
			EXPECT_EQ(ksm_call(next, ksm_fn_wrong, buf, N, 10 + first), 0);
			EXPECT_EQ(ksm_stat("pages_sharing"), (2 - i) * N);
			ksm_end(next);
			ksm_passes(&self->k, 1);
		}
		EXPECT_TRUE(ksm_wait_no_regions(&self->k));
		EXPECT_STATS(0, 0, 0, 0, 0);
		EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	}
}

/* ---- an address space ends while descriptors stay open ---- */

#define BIG_PAGES 8192	/* 32 MiB */
#define SLACK 1024

static long fn_map_and_register(long area, long npages, long seed, long unused)
{
	char *buf = ksm_mmap(npages);

	(void)unused;
	ksm_fill(buf, npages / 2, seed);
	ksm_fill(ksm_page(buf, npages / 2), npages / 2, seed);
	return ksm_register(area, buf, npages);
}

static long fn_exec(long vforked, long fd, long unused, long unused2)
{
	char *argv[] = { "fork_test", "--wait-for-end-of-file", NULL, NULL };
	char number[16];
	pid_t pid = 0;

	(void)unused;
	(void)unused2;
	snprintf(number, sizeof(number), "%ld", fd);
	argv[2] = number;
	if (vforked) {
		pid = vfork();
		if (pid < 0)
			return -errno;
	}
	if (!pid) {
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	return pid;
}

static long fn_dup2(long from, long to, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return dup2(from, to);
}

/*
 * exec with the area, the scan fd and the device open, in the child and here:
 * the old address space goes away, with all its memory and its region.
 */
TEST_F(device, exec_with_fds_open)
{
	int ready[2], hold[2], area = ksm_area(&self->k);
	struct ksm_child c;
	char *a, *b, token;
	long before, after;

	ASSERT_EQ(pipe(ready), 0);
	ASSERT_EQ(pipe(hold), 0);
	before = ksm_memfree();
	ksm_spawn(&c);
	ASSERT_EQ(ksm_call(&c, fn_map_and_register, area, BIG_PAGES, 20), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("pages_sharing"), BIG_PAGES / 2);
	after = ksm_memfree();
	EXPECT_GE(before - after, BIG_PAGES / 2 - SLACK);

	/* fd 1 of the new program tells that exec is done; it waits for input. */
	ASSERT_EQ(ksm_call(&c, fn_dup2, ready[1], 1, 0), 1);
	ksm_call_start(&c, fn_exec, 0, hold[0], 0, 0);
	ASSERT_EQ(read(ready[0], &token, 1), 1);
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	EXPECT_EQ(ksm_stat("pages_registered"), 0);
	EXPECT_EQ(ksm_stat("areas"), 2);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	EXPECT_TRUE(ksm_wait_memfree(before - SLACK));

	/* The area serves new registrations as if nothing had been. */
	make_twins(area, &a, &b, N, 21);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ksm_kill(&c);
	EXPECT_EQ(ksm_wrong(a, N, 21), 0);
	EXPECT_EQ(ksm_stat("regions"), 2);
	close(area);
}

/* The registrant is killed, the area fd is ours. */
TEST_F(device, killed_with_area_held)
{
	struct ksm_child c;
	long before;

	before = ksm_memfree();
	ksm_spawn(&c);
	ASSERT_EQ(ksm_call(&c, fn_map_and_register, self->area, BIG_PAGES, 22), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("pages_sharing"), BIG_PAGES / 2);
	ksm_kill(&c);
	/* At once, before any scan has looked at it again. */
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	EXPECT_TRUE(ksm_wait_memfree(before - SLACK - BIG_PAGES / 2));
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	EXPECT_TRUE(ksm_wait_memfree(before - SLACK));
}

/* The child of vfork shares our mm until it execs; our region must not notice. */
TEST_F(device, vfork_and_exec)
{
	int ready[2], hold[2], status;
	char *a, *b, token;
	long pid;

	make_twins(self->area, &a, &b, N, 23);
	ksm_merge_all(&self->k);
	ASSERT_EQ(pipe(ready), 0);
	ASSERT_EQ(pipe(hold), 0);
	for (int i = 0; i < 5; i++) {
		int out = dup(1);

		ASSERT_EQ(dup2(ready[1], 1), 1);
		pid = fn_exec(1, hold[0], 0, 0);
		ASSERT_EQ(dup2(out, 1), 1);
		close(out);
		ASSERT_GT(pid, 0);
		ASSERT_EQ(read(ready[0], &token, 1), 1);
		EXPECT_EQ(ksm_stat("regions"), 2);
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		ksm_fill(a, N, 24 + i);
		ksm_fill(b, N, 24 + i);
		ksm_merge_all(&self->k);
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		EXPECT_EQ(ksm_wrong(a, N, 24 + i), 0);
		kill(pid, SIGKILL);
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_EQ(ksm_stat("regions"), 2);
	}
	EXPECT_STATS(N, N, 0, 0, 0);
}

struct registration {
	int area;
	char *buf;
	long ret;
};

static int clone_registers(void *arg)
{
	struct registration *args = arg;

	args->ret = ksm_register(args->area, args->buf, N);
	return 0;
}

/* A process that shares our mm registers and exits: the mm is still there. */
TEST_F(device, clone_vm)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *stack = ksm_mmap(16);
	struct registration args = { .area = self->area, .buf = a };
	int status;
	pid_t pid;

	ksm_fill(a, N, 30);
	ksm_fill(b, N, 30);
	pid = clone(clone_registers, stack + 16 * PGSZ, CLONE_VM | SIGCHLD, &args);
	ASSERT_GT(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(args.ret, 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	EXPECT_EQ(ksm_register(self->area, a, N), -EEXIST);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_stat("regions"), 2);
	EXPECT_EQ(ksm_wrong(a, N, 30), 0);
}

/* ---- while scanning ---- */

static long fn_scan_until(long fd, long stop, long unused, long unused2)
{
	volatile int *stopped = (int *)stop;
	long calls = 0;

	(void)unused;
	(void)unused2;
	for (; !*stopped; calls++) {
		int ret = ksm_scan(fd, 1000);

		if (ret)
			return ret;
	}
	return calls;
}

static int *shared_flag(void)
{
	int *flag = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			 -1, 0);

	if (flag == MAP_FAILED)
		ksm_die("mmap: %s", strerror(errno));
	return flag;
}

/* Children exit, are killed and exec while kksmd and a scan fd work on them. */
TEST_F(device, exit_while_scanning)
{
	enum { ROUNDS = 15, CHILDREN = 3 };
	char *a, *b, *buf = ksm_mmap(N);
	int *stop = shared_flag();
	struct ksm_child scanner, c[CHILDREN];
	unsigned int seed = 2011;	/* CVE-2011-2183 */
	size_t wrong = 0;
	int hold[2];

	ASSERT_EQ(pipe(hold), 0);
	make_twins(self->area, &a, &b, N, 40);
	ksm_spawn(&scanner);
	ksm_call_start(&scanner, fn_scan_until, self->k.scan, KSM_ARG(stop), 0, 0);
	ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 0), 0);
	for (int round = 0; round < ROUNDS; round++) {
		for (int i = 0; i < CHILDREN; i++) {
			ksm_spawn(&c[i]);
			/* One with an area of its own, two through ours. */
			if (i)
				wrong += ksm_call(&c[i], ksm_fn_register, self->area, buf, N) != 0;
			else
				wrong += ksm_call(&c[i], ksm_fn_area_register, self->k.dev,
						  buf, N) < 0;
			ksm_call(&c[i], ksm_fn_fill, buf, N, 40);
		}
		usleep(rand_r(&seed) % 30000);
		for (int i = 0; i < CHILDREN; i++)
			wrong += ksm_call(&c[i], ksm_fn_wrong, buf, N, 40);
		for (int i = 0; i < CHILDREN; i++) {
			switch ((round + i) % 3) {
			case 0:
				ksm_end(&c[i]);
				break;
			case 1:
				ksm_kill(&c[i]);
				break;
			default:
				ksm_call_start(&c[i], fn_exec, 0, hold[0], 0, 0);
				usleep(rand_r(&seed) % 10000);
				ksm_kill(&c[i]);
			}
		}
		ASSERT_EQ(wrong, 0) TH_LOG("round %d", round);
	}
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	*stop = 1;
	EXPECT_GT(ksm_call_finish(&scanner), 0);
	ksm_end(&scanner);
	for (double end = ksm_now() + KSM_PATIENCE; ksm_stat("regions") > 2 && ksm_now() < end; ) {
		ksm_passes(&self->k, 1);
		usleep(20000);
	}
	EXPECT_EQ(ksm_stat("regions"), 2);
	ksm_merge_all(&self->k);
	/* What a scan was the last to let go of is unmapped by a work item. */
	EXPECT_TRUE(ksm_wait_stat("pages_sharing", N));
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 40), 0);
	EXPECT_EQ(ksm_wrong(b, N, 40), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
}

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

/* All threads but one sit in KSM_SCAN when the process is killed. */
static void *scan_forever(void *arg)
{
	int fd = *(int *)arg;

	while (!ksm_scan(fd, 1 << 20))
		;
	return NULL;
}

static long fn_scan_in_threads(long scan, long unused, long unused2, long unused3)
{
	static int fd;
	pthread_t thread;

	(void)unused;
	(void)unused2;
	(void)unused3;
	fd = scan;
	for (int i = 0; i < 3; i++)
		if (pthread_create(&thread, NULL, scan_forever, &fd))
			return -EAGAIN;
	return 0;
}

TEST_F(device, killed_while_scanning)
{
	struct ksm_child c;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 60);
	for (int i = 0; i < 10; i++) {
		ksm_spawn(&c);
		ASSERT_EQ(ksm_call(&c, fn_map_and_register, self->area, 4 * N, 60), 0);
		ASSERT_EQ(ksm_call(&c, fn_scan_in_threads, self->k.scan, 0, 0), 0);
		usleep(5000 * i);
		ksm_kill(&c);
	}
	EXPECT_EQ(ksm_wrong(a, N, 60), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 60), 0);
	EXPECT_EQ(ksm_wrong(b, N, 60), 0);
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

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--wait-for-end-of-file")) {
		char c;

		/* What exec_with_fds_open and others run: say hello, then stay. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (write(1, "x", 1) != 1)
			return 1;
		return read(atoi(argv[2]), &c, 1) != 0;
	}
	return test_harness_run(argc, argv);
}
