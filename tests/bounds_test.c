// SPDX-License-Identifier: GPL-2.0-only
/*
 * bounds_test.c - at the limits: what a user makes others pay, and what he is told at his own
 *
 * What is unbounded is paid for by everybody: pages that are all alike and cannot be merged, however
 * many; the numbers that page tables get. And who asks for something where his cgroup has no room
 * is told so, and nobody is killed for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_cgroup.h"
#include "ksm_harness.h"
#include "ksm_told.h"

#define N	2048
#define GROUP	"ksm-bounds"
#define PARAM	"/sys/module/ksmdev/parameters/chunks_per_user"

/* A page in each page table. */
static long fn_fill_apart(long addr, long ntables, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	for (long i = 0; i < ntables; i++)
		ksm_fill_page((char *)addr + i * KSM_HUGE_SIZE, 1, i);
	return 0;
}

/* ---- what is alike and cannot be merged ---- */

/* Pipes hold references to pages. */
#define PIPE_PAGES 256
#define PIPES (N / PIPE_PAGES)

FIXTURE(held) {
	struct ksm k;
	char *mem, *twins;
	int pipes[PIPES][2];
};

FIXTURE_VARIANT(held)
{
	bool zero;
};

/* The partner is the zero page, or a shared page. */
FIXTURE_VARIANT_ADD(held, zeros) { .zero = true };
FIXTURE_VARIANT_ADD(held, contents) { .zero = false };

FIXTURE_SETUP(held)
{
	ksm_begin(&self->k);
	self->mem = ksm_mmap(N);
	self->twins = ksm_mmap(2);
	ASSERT_EQ(madvise(self->mem, N * PGSZ, MADV_NOHUGEPAGE), 0);
	for (int i = 0; i < PIPES; i++) {
		ASSERT_EQ(pipe(self->pipes[i]), 0);
		ASSERT_EQ(fcntl(self->pipes[i][1], F_SETPIPE_SZ, PIPE_PAGES * PGSZ),
			  (int)(PIPE_PAGES * PGSZ));
	}
}

static void hold_all(char *mem, int (*pipes)[2])
{
	for (int i = 0; i < PIPES; i++) {
		struct iovec iov = { mem + i * PIPE_PAGES * PGSZ, PIPE_PAGES * PGSZ };

		if (vmsplice(pipes[i][1], &iov, 1, 0) != (ssize_t)iov.iov_len)
			ksm_die("a pipe does not take the pages: %m");
	}
}

static void let_go(int (*pipes)[2])
{
	for (int i = 0; i < PIPES; i++) {
		close(pipes[i][0]);
		close(pipes[i][1]);
	}
}

FIXTURE_TEARDOWN(held)
{
	ksm_finish(&self->k);
}

/*
 * Each has a partner, so none is of use to others as a candidate: they would be in one chain of the
 * index, which is gone along for each that changes, with a lock held that everybody wants.
 */
TEST_F(held, no_candidates)
{
	int area = ksm_area(&self->k);
	long long unshared;

	if (variant->zero) {
		memset(self->mem, 0, N * PGSZ);
	} else {
		ksm_fill_same(self->mem, N, 1);
		ksm_fill_same(self->twins, 2, 1);
		ASSERT_EQ(ksm_register(area, self->twins, 2), 0);
		ksm_merge_all(&self->k);
		ASSERT_EQ(ksm_stat("pages_shared"), 1);
	}
	hold_all(self->mem, self->pipes);
	unshared = ksm_stat("pages_unshared");
	ASSERT_EQ(ksm_register(area, self->mem, N), 0);
	ksm_merge_all(&self->k);
	/* They were looked at, are held, and so are still there. */
	EXPECT_EQ(ksm_distinct(0, self->mem, N), N);
	EXPECT_GE(ksm_stat("pages_unshared"), unshared);
	EXPECT_LE(ksm_stat("pages_unshared"), unshared + 4);
	/* Nobody has forgotten them. */
	let_go(self->pipes);
	ksm_merge_held(&self->k);
	if (variant->zero) {
		EXPECT_EQ(ksm_stat("zero_pages"), N);
		EXPECT_EQ(ksm_wrong_zero(self->mem, N), 0);
	} else {
		EXPECT_LE(N / 2, ksm_stat("pages_sharing"));
		EXPECT_EQ(ksm_wrong_same(self->mem, N, 1), 0);
	}
}

/* Pairs that cannot be merged: of what was made to share them nothing is left. */
TEST_F(held, leave_no_page)
{
	int area = ksm_area(&self->k);

	for (int i = 0; i < N; i++)
		if (variant->zero)
			memset(ksm_page(self->mem, i), 0, PGSZ);
		else
			ksm_fill_page(ksm_page(self->mem, i), 1, i / 2);
	hold_all(self->mem, self->pipes);
	ASSERT_EQ(ksm_register(area, self->mem, N), 0);
	ksm_merge_held(&self->k);
	EXPECT_EQ(ksm_distinct(0, self->mem, N), N);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	let_go(self->pipes);
}

/* ---- numbers ---- */

#define TABLES 16

FIXTURE(numbers) {
	struct ksm k;
	struct ksm_child c[2];
	char *mem, *apart;
	char old[32];
};

FIXTURE_SETUP(numbers)
{
	ssize_t n;
	int fd;

	ksm_begin(&self->k);
	self->mem = ksm_mmap(64);
	self->apart = ksm_mmap(4 * TABLES * KSM_HUGE_PAGES);
	ASSERT_EQ(madvise(self->apart, 4 * TABLES * KSM_HUGE_SIZE, MADV_NOHUGEPAGE), 0);
	for (int i = 0; i < 2; i++)
		ksm_spawn(&self->c[i]);
	fd = open(PARAM, O_RDONLY);
	ASSERT_LE(0, fd);
	n = read(fd, self->old, sizeof(self->old) - 1);
	close(fd);
	ASSERT_LT(0, n);
	self->old[n] = '\0';
}

FIXTURE_TEARDOWN(numbers)
{
	ksm_write_file(PARAM, self->old);
	for (int i = 0; i < 2; i++)
		ksm_end(&self->c[i]);
	ksm_finish(&self->k);
}

/* One user has as many page tables kept track of as he may, is told so, and others do not notice. */
TEST_F(numbers, one_users_tables)
{
	long area[2], n = 4 * TABLES, merged;
	double end;

	ASSERT_EQ(ksm_write_file(PARAM, "16"), 0);
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(ksm_call(&self->c[i], ksm_fn_become, 1000 + i, 0, 0), 0);
	area[0] = ksm_call(&self->c[0], ksm_fn_area_register, self->k.dev, self->apart,
			   n * KSM_HUGE_PAGES);
	ASSERT_LE(0, area[0]);
	ksm_call(&self->c[0], fn_fill_apart, self->apart, n, 0);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_merge_range, area[0], self->apart,
			   n * KSM_HUGE_PAGES), -ENOMEM);
	ksm_passes(&self->k, 1);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_merge_range, area[0], self->apart,
			   TABLES / 4 * KSM_HUGE_PAGES), 0);

	ksm_call(&self->c[1], ksm_fn_fill, self->mem, 32, 1);
	ksm_call(&self->c[1], ksm_fn_fill, self->mem + 32 * PGSZ, 32, 1);
	area[1] = ksm_call(&self->c[1], ksm_fn_area_register, self->k.dev, self->mem, 64);
	ASSERT_LE(0, area[1]);
	EXPECT_EQ(ksm_call(&self->c[1], ksm_fn_merge_range, area[1], self->mem, 64), 64);

	/* With room there is nothing that was lost. */
	ASSERT_EQ(ksm_write_file(PARAM, self->old), 0);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_merge_range, area[0], self->apart,
			   n * KSM_HUGE_PAGES), 0);
	/* And numbers come back, if in a while: a work item frees what close() has no time for. */
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_close, area[0], 0, 0), 0);
	ASSERT_EQ(ksm_write_file(PARAM, "16"), 0);
	ksm_call(&self->c[0], ksm_fn_fill, self->mem, 32, 2);
	ksm_call(&self->c[0], ksm_fn_fill, self->mem + 32 * PGSZ, 32, 2);
	area[0] = ksm_call(&self->c[0], ksm_fn_area_register, self->k.dev, self->mem, 64);
	ASSERT_LE(0, area[0]);
	end = ksm_now() + KSM_PATIENCE;
	do {
		usleep(20000);
		merged = ksm_call(&self->c[0], ksm_fn_merge_range, area[0], self->mem, 64);
	} while (merged == -ENOMEM && ksm_now() < end);
	EXPECT_LE(0, merged);
	EXPECT_EQ(ksm_distinct(self->c[0].pid, self->mem, 64), 32);
}

/* ---- a full cgroup ---- */

FIXTURE(full) {
	struct ksm k;
	struct ksm_child c[2];
	char *mem;
};

FIXTURE_SETUP(full)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	ksm_cgroup_make(GROUP);
	self->mem = ksm_mmap(N);
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&self->c[i]);
		ksm_cgroup_write(GROUP, "cgroup.procs", self->c[i].pid);
	}
}

FIXTURE_TEARDOWN(full)
{
	for (int i = 0; i < 2; i++)
		ksm_end(&self->c[i]);
	ksm_finish(&self->k);
	ksm_cgroup_remove(GROUP);
}

/* Shared pages are charged to the group: where it has no room, nobody is killed for having asked. */
TEST_F(full, nobody_is_killed_for_sharing)
{
	long area[2], merged, current;

	for (int i = 0; i < 2; i++) {
		ksm_call(&self->c[i], ksm_fn_fill, self->mem, N, 1);
		area[i] = ksm_call(&self->c[i], ksm_fn_area_register, self->k.dev, self->mem, N);
		ASSERT_LE(0, area[i]);
	}
	/* Their tables are there; what lacks is room for shared pages. */
	ksm_passes(&self->k, 1);
	ksm_cgroup_write(GROUP, "memory.swap.max", 0);
	/*
	 * CPUs have some pages charged in advance, which this takes from them, in the background;
	 * but not if the same is under way for another group.
	 */
	for (int i = 0; i < 2; i++) {
		ksm_cgroup_write(GROUP, "memory.high", 0);
		ksm_cgroup_write(GROUP, "memory.high", -1);
		usleep(300000);
	}
	current = ksm_cgroup_read(GROUP, "memory.current", NULL);
	ksm_cgroup_write(GROUP, "memory.max", current);
	ASSERT_EQ(ksm_start(self->k.dev, 5000, 0, 20), 0);
	EXPECT_TRUE(ksm_wait_more("full_scans", 4, KSM_PATIENCE));
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	EXPECT_EQ(ksm_cgroup_read(GROUP, "memory.events", "oom"), 0);
	merged = ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N);
	TH_LOG("%ld pages are shared", merged);
	EXPECT_GT(N, merged);

	/* Tasks of the group. */
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_scan, self->k.scan, 8 * N, 0), 0);
	merged = ksm_call(&self->c[1], ksm_fn_merge_range, area[1], self->mem, N);
	EXPECT_TRUE(merged >= 0 || merged == -ENOMEM);
	EXPECT_EQ(ksm_cgroup_read(GROUP, "memory.events", "oom"), 0);
	EXPECT_EQ(ksm_cgroup_read(GROUP, "memory.events", "oom_kill"), 0);
	for (int i = 0; i < 2; i++)
		EXPECT_EQ(ksm_call(&self->c[i], ksm_fn_wrong, self->mem, N, 1), 0);
	ksm_cgroup_write(GROUP, "memory.max", -1);
	ksm_merge_held(&self->k);
	EXPECT_EQ(ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N), N);
}

/* A group pays for the tables of its own memory, in proportion; the index is everybody's. */
TEST_F(full, index_is_nobodys)
{
	const long npages = (128L << 20) / PGSZ, bytes = 16 * 2 * npages + (256 << 10);
	char *mem = ksm_mmap(npages);
	long before, after, all;

	for (int i = 0; i < 2; i++) {
		struct ksm_child *c = &self->c[i];

		ksm_end(c);
		ksm_spawn(c);
		ksm_cgroup_write(GROUP, "cgroup.procs", c->pid);
		ksm_call(c, ksm_fn_fill, mem, npages, 1);
		ASSERT_LE(0, ksm_call(c, ksm_fn_area_register, self->k.dev, mem, npages));
	}
	before = ksm_cgroup_read(GROUP, "memory.stat", "kernel");
	/* It is the one who scans, too. */
	for (int pass = 0; pass < 4; pass++)
		ASSERT_EQ(ksm_call(&self->c[0], ksm_fn_scan, self->k.scan, 2 * npages, 0), 0);
	EXPECT_LE(npages / 100 * 99, (long)ksm_same_frames(self->c[0].pid, mem, self->c[1].pid, mem,
							   npages));
	/* The kernel adds it up now and then. */
	sleep(3);
	after = ksm_cgroup_read(GROUP, "memory.stat", "kernel");
	all = ksm_stat("metadata_bytes");
	TH_LOG("%ld pages of %ld processes: metadata_bytes %ld, of which the group pays %ld", npages,
	       2L, all, after - before);
	EXPECT_LE(after - before, bytes);
	EXPECT_LT(after - before, all);
}

/* Copies for all take twice the memory that there is room for. */
TEST_F(full, unmerge_is_told)
{
	long area[2], merged;

	for (int i = 0; i < 2; i++) {
		ksm_call(&self->c[i], ksm_fn_fill, self->mem, N, 1);
		area[i] = ksm_call(&self->c[i], ksm_fn_area_register, self->k.dev, self->mem, N);
		ASSERT_LE(0, area[i]);
	}
	ksm_merge_all(&self->k);
	merged = ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N);
	ASSERT_EQ(merged, N);
	ksm_cgroup_write(GROUP, "memory.max",
			 ksm_cgroup_read(GROUP, "memory.current", NULL) + N / 2 * PGSZ);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_unmerge, area[0], 0, 0), -ENOMEM);
	EXPECT_EQ(ksm_cgroup_read(GROUP, "memory.events", "oom_kill"), 0);
	EXPECT_EQ(ksm_cgroup_read(GROUP, "memory.events", "oom"), 0);
	/* What there was room for was done. */
	merged = ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N);
	TH_LOG("%ld of %d pages are still shared", merged, N);
	EXPECT_LT(0, merged);
	EXPECT_GT(N, merged);
	for (int i = 0; i < 2; i++)
		EXPECT_EQ(ksm_call(&self->c[i], ksm_fn_wrong, self->mem, N, 1), 0);
	/* And it may be repeated. */
	ksm_cgroup_write(GROUP, "memory.max", -1);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_unmerge, area[0], 0, 0), 0);
	EXPECT_EQ(ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N), 0);
}

/* Room for what is there, and for some of the tables. */
TEST_F(full, merge_range_is_told)
{
	const long tables = 8192, npages = tables * KSM_HUGE_PAGES;
	char *apart = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct ksm_child *c = &self->c[0];
	char path[64];
	long area;

	/* As if it had been there before the child. */
	ASSERT_NE(apart, MAP_FAILED);
	ASSERT_EQ(madvise(apart, npages * PGSZ, MADV_NOHUGEPAGE), 0);
	ksm_end(c);
	ksm_spawn(c);
	ksm_cgroup_write(GROUP, "cgroup.procs", c->pid);
	/* Once all is used up it cannot do anything itself, without being killed. */
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", c->pid);
	ASSERT_EQ(ksm_write_file(path, "-1000"), 0);
	ksm_call(c, fn_fill_apart, apart, tables, 0);
	area = ksm_call(c, ksm_fn_area_register, self->k.dev, apart, npages);
	ASSERT_LE(0, area);
	ksm_cgroup_write(GROUP, "memory.max", ksm_cgroup_read(GROUP, "memory.current", NULL));
	EXPECT_EQ(ksm_call(c, ksm_fn_merge_range, area, apart, npages), -ENOMEM);
	ksm_cgroup_write(GROUP, "memory.max", -1);
	EXPECT_EQ(ksm_call(c, ksm_fn_merge_range, area, apart, npages), 0);
}

TEST_HARNESS_MAIN
