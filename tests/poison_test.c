// SPDX-License-Identifier: GPL-2.0-only
/*
 * poison_test.c - memory that has failed
 *
 * The kernel marks a frame that the hardware reports as bad (here MADV_HWPOISON says so).
 * If it is a shared page, those who map it can only be told by the kernel; but nobody
 * else may get it, it may not be read again to merge or to copy it, and it is not kept
 * when nobody maps it. A page of a process's own that failed is gone, and a scan passes
 * over what is left of it.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_told.h"

#define N 16

/* From the kernel's mman-common.h. */
#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

static long fn_advise(long addr, long npages, long advice, long unused)
{
	(void)unused;
	return madvise((void *)addr, npages * PGSZ, advice) ? -errno : 0;
}

/* The kernel tells who maps a bad page; ignored, that would kill. */
static void told(int signal)
{
	(void)signal;
}

/* ---- who reads a frame ---- */

#define MAX_CPUS 64

/* A hardware breakpoint on each CPU, on where the kernel has the frame's first bytes. */
struct reads {
	int fd[MAX_CPUS];
	int cpus;
};

/*
 * The kernel's own address of a frame: of the ranges of /proc/kcore that of RAM, the last. 0 if
 * this kernel has no such file.
 */
static uint64_t kernel_address(uint64_t pfn)
{
	int fd = open("/proc/kcore", O_RDONLY);
	uint64_t addr = 0;
	Elf64_Ehdr elf;
	Elf64_Phdr range;

	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0 || read(fd, &elf, sizeof(elf)) != sizeof(elf))
		ksm_die("cannot read /proc/kcore: %s", strerror(errno));
	for (int i = 0; i < elf.e_phnum; i++) {
		if (pread(fd, &range, sizeof(range), elf.e_phoff + i * sizeof(range)) !=
		    sizeof(range))
			ksm_die("/proc/kcore ends early");
		if (range.p_type == PT_LOAD && range.p_paddr != UINT64_MAX &&
		    pfn * PGSZ - range.p_paddr < range.p_memsz)
			addr = range.p_vaddr + (pfn * PGSZ - range.p_paddr);
	}
	close(fd);
	if (!addr)
		ksm_die("/proc/kcore does not have frame %#llx", (unsigned long long)pfn);
	return addr;
}

/* Return: false if it cannot be done on this machine. */
static bool reads_begin(struct reads *reads, uint64_t pfn)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT,
		.size = sizeof(attr),
		.bp_type = HW_BREAKPOINT_RW,
		.bp_addr = kernel_address(pfn),
		.bp_len = HW_BREAKPOINT_LEN_8,
	};

	if (!attr.bp_addr)
		return false;
	reads->cpus = sysconf(_SC_NPROCESSORS_ONLN);
	if (reads->cpus > MAX_CPUS)
		ksm_die("more than %d CPUs", MAX_CPUS);
	for (int cpu = 0; cpu < reads->cpus; cpu++) {
		reads->fd[cpu] = syscall(SYS_perf_event_open, &attr, -1, cpu, -1, 0);
		if (reads->fd[cpu] >= 0)
			continue;
		if (cpu || (errno != ENOENT && errno != EOPNOTSUPP && errno != ENODEV))
			ksm_die("perf_event_open: %s", strerror(errno));
		return false;
	}
	return true;
}

/* Return: how often the frame was read or written. */
static uint64_t reads_end(struct reads *reads)
{
	uint64_t sum = 0, count;

	for (int cpu = 0; cpu < reads->cpus; cpu++) {
		if (read(reads->fd[cpu], &count, sizeof(count)) != sizeof(count))
			ksm_die("cannot read a breakpoint's counter: %s", strerror(errno));
		sum += count;
		close(reads->fd[cpu]);
	}
	return sum;
}

/* ---- a shared page fails ---- */

FIXTURE(poison) {
	struct ksm k;
	char *mem;
	struct ksm_child c[4];
	long area[4];
	uint64_t bad, seed;
};

/* Two processes share N pages, of which the first fails. */
FIXTURE_SETUP(poison)
{
	long ret;

	ksm_begin(&self->k);
	signal(SIGBUS, told);
	self->mem = ksm_mmap(N);
	/* Contents that no bad page of another test has. */
	self->seed = getpid();
	for (int i = 0; i < 4; i++) {
		ksm_spawn(&self->c[i]);
		self->area[i] = -1;
	}
	for (int i = 0; i < 2; i++) {
		ksm_call(&self->c[i], ksm_fn_fill, self->mem, N, self->seed);
		self->area[i] = ksm_call(&self->c[i], ksm_fn_area_register, self->k.dev, self->mem,
					 N);
	}
	ksm_merge_all(&self->k);
	if (ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N) != N)
		ksm_die("two processes with equal memory do not share it");
	self->bad = ksm_pfn(self->c[0].pid, self->mem);
	ret = ksm_call(&self->c[0], fn_advise, self->mem, 1, MADV_HWPOISON);
	/* The kernel need not know what to do with it, but it marks it. */
	if (!ksm_pfn_is(self->bad, KPF_BIT_HWPOISON))
		ksm_die("MADV_HWPOISON said %ld and left the page unmarked", ret);
}

FIXTURE_TEARDOWN(poison)
{
	for (int i = 0; i < 4; i++)
		if (self->c[i].pid > 0)
			ksm_kill(&self->c[i]);
	ksm_finish(&self->k);
}

TEST_F(poison, nobody_else_gets_it)
{
	for (int i = 2; i < 4; i++) {
		ksm_call(&self->c[i], ksm_fn_fill, self->mem, N, self->seed);
		self->area[i] = ksm_call(&self->c[i], ksm_fn_area_register, self->k.dev, self->mem,
					 N);
		ksm_merge_all(&self->k);
		EXPECT_NE(ksm_pfn(self->c[i].pid, self->mem), self->bad);
		EXPECT_EQ(told_flag(self->c[i].pid, self->mem, N, KPF_BIT_HWPOISON), 0);
	}
	ksm_merge_all(&self->k);
	/* The two have one healthy page for it, and share the rest with the first two. */
	EXPECT_EQ(ksm_same_frames(self->c[2].pid, self->mem, self->c[3].pid, self->mem, N), N);
	EXPECT_EQ(ksm_same_frames(self->c[0].pid, self->mem, self->c[2].pid, self->mem, N), N - 1);
	for (int i = 2; i < 4; i++)
		EXPECT_EQ(ksm_call(&self->c[i], ksm_fn_wrong, self->mem, N, self->seed), 0);
	/* When all are gone, so are the pages; the bad one is the kernel's to keep. */
	for (int i = 0; i < 4; i++)
		ksm_kill(&self->c[i]);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	EXPECT_TRUE(ksm_wait_stat("pages_shared", 0));
}

/*
 * Not for equals, nor to copy it, by a call or by a pass; the page beside it is. The call comes
 * first: it compares all of a page, where a pass compares a sample, in which these bytes may not be;
 * and soon nothing will lead to that page.
 */
TEST_F(poison, never_read)
{
	int area = ksm_area(&self->k);
	struct reads bad, healthy;
	uint64_t merged;

	if (!reads_begin(&bad, self->bad))
		SKIP(return, "no hardware breakpoints, or no /proc/kcore");
	ASSERT_TRUE(reads_begin(&healthy, ksm_pfn(self->c[0].pid, ksm_page(self->mem, 1))));
	ksm_fill(self->mem, N, self->seed);
	ASSERT_EQ(ksm_register(area, self->mem, N), 0);
	ASSERT_EQ(ksm_merge_range(area, self->mem, N, &merged), 0);
	EXPECT_EQ(merged, N - 1);
	EXPECT_LT(0, reads_end(&healthy));
	ksm_call(&self->c[2], ksm_fn_fill, self->mem, N, self->seed);
	self->area[2] = ksm_call(&self->c[2], ksm_fn_area_register, self->k.dev, self->mem, N);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_call(&self->c[0], ksm_fn_unmerge, self->area[0], 0, 0), 0);
	ksm_kill(&self->c[1]);
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, reads_end(&bad));
	close(area);
}

/* The same by a call that merges at once, and by a process that asks for the page alone. */
TEST_F(poison, merge_range)
{
	int area = ksm_area(&self->k);
	uint64_t merged;

	ksm_fill(self->mem, N, self->seed);
	ASSERT_EQ(ksm_register(area, self->mem, N), 0);
	ASSERT_EQ(ksm_merge_range(area, self->mem, N, &merged), 0);
	EXPECT_EQ(merged, N - 1);
	EXPECT_NE(ksm_pfn(0, self->mem), self->bad);
	EXPECT_EQ(told_flag(0, self->mem, N, KPF_BIT_HWPOISON), 0);
	EXPECT_EQ(ksm_wrong(self->mem, N, self->seed), 0);
	close(area);
}

/* One process leaves: the page that is left with one mapper is not copied for it. */
TEST_F(poison, not_copied)
{
	ksm_kill(&self->c[1]);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_TRUE(ksm_pfn(self->c[0].pid, self->mem) == self->bad ||
		    ksm_pfn(self->c[0].pid, self->mem) == 0);
	/* The others are. */
	EXPECT_TRUE(ksm_wait_stat("pages_shared", 0));
	EXPECT_EQ(told_flag(self->c[0].pid, ksm_page(self->mem, 1), N - 1, KPF_BIT_ANON), N - 1);
	ksm_kill(&self->c[0]);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
}

/* Everything is asked back: what can be given back is. */
TEST_F(poison, unmerge)
{
	uint64_t before[N];

	ksm_pfns(self->c[0].pid, self->mem, N, before);
	ksm_call(&self->c[0], ksm_fn_unmerge, self->area[0], 0, 0);
	/* The bad one is not copied. */
	EXPECT_EQ(ksm_moved(self->c[0].pid, self->mem, 1, before), 0);
	EXPECT_EQ(ksm_moved(self->c[0].pid, ksm_page(self->mem, 1), N - 1, before + 1), N - 1);
	EXPECT_EQ(ksm_same_frames(self->c[0].pid, ksm_page(self->mem, 1), self->c[1].pid,
				  ksm_page(self->mem, 1), N - 1), 0);
	ksm_kill(&self->c[0]);
	ksm_kill(&self->c[1]);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
}

/* ---- a page of one's own fails ---- */

/* A page of the process's own fails while it is registered, as a candidate and before. */
TEST_F(device, own_page)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);

	signal(SIGBUS, told);
	ksm_fill(a, N, 2);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_passes(&self->k, 3);
	ASSERT_EQ(madvise(a, PGSZ, MADV_HWPOISON), 0);
	ksm_fill(b, N, 2);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N - 1);
	EXPECT_EQ(ksm_wrong(b, N, 2), 0);
	EXPECT_FALSE(ksm_can_read(a));
	EXPECT_TRUE(ksm_can_read(ksm_page(a, 1)));
	EXPECT_EQ(told_flag(0, b, N, KPF_BIT_HWPOISON), 0);
	ksm_unmerge(self->area);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_FALSE(ksm_can_read(a));
	EXPECT_EQ(ksm_wrong(b, N, 2), 0);
}

/* The kernel is asked to move away from a page that may fail soon. */
TEST_F(device, soft_offline)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);

	ksm_fill(a, N, 3);
	ksm_fill(b, N, 3);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	/* A shared page cannot be moved; that must be all that it means. */
	if (madvise(a, N * PGSZ, MADV_SOFT_OFFLINE))
		TH_LOG("MADV_SOFT_OFFLINE: %s", strerror(errno));
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, N, 3), 0);
	EXPECT_EQ(ksm_wrong(b, N, 3), 0);
	EXPECT_EQ(told_flag(0, a, N, KPF_BIT_HWPOISON), 0);
	ksm_fill(a, N, 4);
	EXPECT_EQ(ksm_wrong(a, N, 4), 0);
	EXPECT_EQ(ksm_wrong(b, N, 3), 0);
}

TEST_HARNESS_MAIN
