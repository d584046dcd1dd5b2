// SPDX-License-Identifier: GPL-2.0-only
/*
 * unmerge_test.c - merging can be undone: by a write, or on request
 *
 * Proven by page frame numbers and contents. What nobody undoes outlives the area; pages that
 * cannot be written or read come back with the same rights; and an unmerge whose cgroup has no
 * memory left ends half way, and goes on from there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64

TEST_F(device, write_after_merge)
{
	struct ksm_child c[2];
	char *buf = ksm_mmap(N);
	uint64_t pfns[N];

	ksm_fill(buf, N, 20);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&c[i]);
		ksm_call(&c[i], ksm_fn_zero, buf, N, 0);
		ksm_call(&c[i], ksm_fn_fill, buf, N, 20);
		ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, N), 0);
	}
	ksm_merge_all(&self->k);
	ksm_pfns(0, buf, N, pfns);
	EXPECT_EQ(ksm_moved(c[0].pid, buf, N, pfns), 0);
	EXPECT_EQ(ksm_moved(c[1].pid, buf, N, pfns), 0);

	/* Reading breaks nothing. */
	EXPECT_EQ(ksm_wrong(buf, N, 20), 0);
	EXPECT_EQ(ksm_moved(0, buf, N, pfns), 0);

	/* One byte written in one process, then all pages in another. */
	buf[5 * PGSZ + 77] ^= 0xff;
	EXPECT_EQ(ksm_moved(0, buf, N, pfns), 1);
	EXPECT_NE(ksm_pfn(0, ksm_page(buf, 5)), pfns[5]);
	EXPECT_EQ(ksm_wrong(buf, N, 20), 1);
	buf[5 * PGSZ + 77] ^= 0xff;
	EXPECT_EQ(ksm_wrong(buf, N, 20), 0);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 20), 0);
	ksm_call(&c[0], ksm_fn_fill, buf, N, 21);
	EXPECT_EQ(ksm_moved(c[0].pid, buf, N, pfns), N);
	EXPECT_EQ(ksm_same_frames(0, buf, c[0].pid, buf, N), 0);
	EXPECT_EQ(ksm_distinct(c[0].pid, buf, N), N);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 21), 0);
	EXPECT_EQ(ksm_wrong(buf, N, 20), 0);
	EXPECT_EQ(ksm_call(&c[1], ksm_fn_wrong, buf, N, 20), 0);
	EXPECT_EQ(ksm_moved(c[1].pid, buf, N, pfns), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), N - 1);

	/* The last mapper of a merged page writes: a copy, or the page itself. */
	ksm_end(&c[1]);
	ksm_fill(buf, N, 22);
	EXPECT_EQ(ksm_wrong(buf, N, 22), 0);
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 21), 0);
	ksm_merge_all(&self->k);
	EXPECT_STATS(0, 0, 2 * N, 0, 0);
	EXPECT_EQ(ksm_wrong(buf, N, 22), 0);
	ksm_end(&c[0]);
}

/* Closing an area or removing its regions leaves what was merged as it is. */
TEST_F(device, merged_outlives_area)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *late = ksm_mmap(N);
	int area = ksm_area(&self->k);
	uint64_t pfns[N];

	ksm_fill(a, N, 25);
	ksm_fill(b, N, 25);
	ASSERT_EQ(ksm_register(area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(ksm_moved(0, b, N, pfns), 0);
	close(area);
	ASSERT_EQ(ksm_remove(self->area), 0);
	EXPECT_EQ(ksm_stat("regions"), 0);
	EXPECT_EQ(ksm_stat("areas"), 1);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
	EXPECT_EQ(ksm_wrong(a, N, 25), 0);

	/* A newcomer may join pages whose owners are no longer registered. */
	ksm_fill(late, N, 25);
	ASSERT_EQ(ksm_register(self->area, late, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(late, N, 25), 0);
	EXPECT_EQ(ksm_wrong(a, N, 25), 0);

	ksm_fill(a, N, 26);
	EXPECT_EQ(ksm_wrong(a, N, 26), 0);
	EXPECT_EQ(ksm_wrong(b, N, 25), 0);
	EXPECT_EQ(ksm_wrong(late, N, 25), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
}

TEST_F(device, unmerge)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);
	struct ksm_child c;
	uint64_t pfns[N];

	ksm_spawn(&c);
	ksm_fill(a, N, 30);
	ksm_fill(b, N, 30);
	ksm_fn_zero((long)zero, N, 0, 0);
	ksm_call(&c, ksm_fn_fill, a, N, 30);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, a, N), 0);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_moved(c.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_distinct(0, zero, N), 1);
	EXPECT_STATS(N, 2 * N, 0, 0, N);

	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), N);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), N);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	EXPECT_EQ(ksm_distinct(0, b, N), N);
	EXPECT_EQ(ksm_distinct(0, zero, N), N);
	EXPECT_FALSE(ksm_pfn_is(ksm_pfn(0, zero), KPF_BIT_ZERO_PAGE));
	EXPECT_TRUE(ksm_pfn_is(ksm_pfn(0, a), KPF_BIT_ANON));
	EXPECT_EQ(ksm_wrong(a, N, 30), 0);
	EXPECT_EQ(ksm_wrong(b, N, 30), 0);
	EXPECT_EQ(ksm_wrong_zero(zero, N), 0);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);

	/* The other process did not ask: its pages are where they were. */
	EXPECT_EQ(ksm_moved(c.pid, a, N, pfns), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 30), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);

	/* Still registered, so the next scans merge again. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_same_frames(0, a, c.pid, a, N), N);
	EXPECT_STATS(N, 2 * N, 0, 0, N);

	/* When everybody unmerges, all counters are back at nothing. */
	ksm_end(&c);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	/* An unmerge with nothing merged or nothing mapped is no error. */
	EXPECT_EQ(ksm_unmerge(self->area), 0);
	munmap(a, N * PGSZ);
	EXPECT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_wrong(b, N, 30), 0);
}

/* Pages that only can be read, or not at all, come back with the same rights. */
TEST_F(device, unmerge_read_only)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	int fds[2];

	ksm_fill(a, N, 31);
	ksm_fill(b, N, 31);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_wrong(a, N, 31), 0);
	EXPECT_EQ(ksm_wrong(b, N, 31), 0);
	/* Not writable: the kernel refuses to read(2) into it. */
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(write(fds[1], "x", 1), 1);
	EXPECT_EQ(read(fds[0], a, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(a, N, 32);
	EXPECT_EQ(ksm_wrong(a, N, 32), 0);
	EXPECT_EQ(ksm_wrong(b, N, 31), 0);
}

TEST_F(device, unmerge_no_access)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);
	int fds[2];

	ksm_fill(a, N, 34);
	ksm_fill(b, N, 34);
	ksm_fn_zero((long)zero, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_NONE), 0);
	ASSERT_EQ(mprotect(zero, N * PGSZ, PROT_NONE), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	ASSERT_EQ(pipe(fds), 0);
	EXPECT_EQ(write(fds[1], a, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(write(fds[1], zero, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(mprotect(zero, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_distinct(0, zero, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 34), 0);
	EXPECT_EQ(ksm_wrong(b, N, 34), 0);
	EXPECT_EQ(ksm_wrong_zero(zero, N), 0);
	ksm_fill(a, N, 35);
	EXPECT_EQ(ksm_wrong(a, N, 35), 0);
	EXPECT_EQ(ksm_wrong(b, N, 34), 0);
}

#define CGROUP "/sys/fs/cgroup"
#define GROUP CGROUP "/ksm_merge_test"

static long join_group(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	/*
	 * Without a task that may be killed, a charge over the limit fails
	 * instead of killing: that is the only way to see -ENOMEM.
	 */
	if (ksm_write_file("/proc/self/oom_score_adj", "-1000"))
		ksm_die("cannot set oom_score_adj; run the tests as root");
	if (ksm_write_file(GROUP "/cgroup.procs", "0"))
		ksm_die("cannot enter %s; mount cgroup2 on %s", GROUP, CGROUP);
	return 0;
}

/* @limit is open for writing: at the limit, neither opening nor answering works. */
static long unmerge_then_lift(long area, long limit, long unused, long unused2)
{
	long ret = ksm_unmerge(area);

	(void)unused;
	(void)unused2;
	if (write(limit, "max", 3) != 3)
		return -EIO;
	return ret;
}

static long group_current(void)
{
	FILE *f = fopen(GROUP "/memory.current", "re");
	long bytes;

	if (!f || fscanf(f, "%ld", &bytes) != 1)
		ksm_die("cannot read %s/memory.current; the kernel needs the memory controller",
			GROUP);
	fclose(f);
	return bytes;
}

/*
 * The group's memory ends half way through: -ENOMEM, every page is either merged
 * or private with the right contents, and the counters say which.
 */
TEST_F(device, unmerge_out_of_memory)
{
	const size_t pages = 1024;
	char *a = ksm_mmap(pages), *b = ksm_mmap(pages);
	size_t same;
	struct ksm_child c;
	char limit[32];
	int area, limit_fd;

	ksm_write_file(CGROUP "/cgroup.subtree_control", "+memory");
	rmdir(GROUP);
	ASSERT_EQ(mkdir(GROUP, 0755), 0) TH_LOG("mount cgroup2 on " CGROUP);
	limit_fd = open(GROUP "/memory.max", O_WRONLY);
	ASSERT_GE(limit_fd, 0);
	ksm_spawn(&c);
	ksm_call(&c, join_group, 0, 0, 0);
	ksm_call(&c, ksm_fn_fill, a, pages, 33);
	ksm_call(&c, ksm_fn_fill, b, pages, 33);
	area = ksm_call(&c, ksm_fn_area_register, self->k.dev, a, pages);
	ASSERT_GE(area, 0);
	ASSERT_EQ(ksm_call(&c, ksm_fn_register, area, b, pages), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(c.pid, a, c.pid, b, pages), pages);

	snprintf(limit, sizeof(limit), "%ld", group_current() + (2 << 20));
	ASSERT_EQ(ksm_write_file(GROUP "/memory.max", limit), 0);
	EXPECT_EQ(ksm_call(&c, unmerge_then_lift, area, limit_fd, 0), -ENOMEM);
	same = ksm_same_frames(c.pid, a, c.pid, b, pages);
	TH_LOG("%zu of %zu pages were unmerged before the memory ended", pages - same, pages);
	EXPECT_GT(same, 0);
	EXPECT_LT(same, pages);
	EXPECT_EQ(ksm_distinct(c.pid, a, pages), pages);
	EXPECT_EQ(ksm_distinct(c.pid, b, pages), pages);
	EXPECT_EQ(ksm_stat("pages_sharing"), (long long)same);
	EXPECT_EQ(ksm_stat("pages_shared"), (long long)pages);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, pages, 33), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, pages, 33), 0);

	/* With memory again it goes on from there. */
	EXPECT_EQ(ksm_call(&c, unmerge_then_lift, area, limit_fd, 0), 0);
	EXPECT_EQ(ksm_same_frames(c.pid, a, c.pid, b, pages), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, pages, 33), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, pages, 33), 0);
	ksm_end(&c);
	EXPECT_EQ(rmdir(GROUP), 0);
}

TEST_HARNESS_MAIN
