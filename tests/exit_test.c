// SPDX-License-Identifier: GPL-2.0-only
/*
 * exit_test.c - processes with registered memory end
 *
 * A registration belongs to an address space, not to a file descriptor and not
 * to a process: exec or exit ends it at once, whoever still holds the descriptors; who only
 * shares the address space (vfork, CLONE_VM) does not. Memory must come back (MemFree) and
 * contents must survive in every process that is left, also while others scan.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_scan_until.h"
#include "ksm_twins.h"

#define N 64

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
	char *argv[] = { "exit_test", "--wait-for-end-of-file", NULL, NULL };
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
