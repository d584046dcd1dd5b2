// SPDX-License-Identifier: GPL-2.0-only
/*
 * anon_test.c - merged memory is private memory, to whoever asks the kernel
 *
 * A checkpoint asks PAGEMAP_SCAN or pagemap which pages it must save, and leaves out a
 * file's. Monitors read smaps, RssAnon, AnonPages. What they are told of merged pages
 * is what they were told before the merge: in every process that maps them, after fork,
 * write, discard and unmerge, when the area is closed and when the module is gone.
 *
 * The kernel checks the sums of its counters itself, as processes end ("Bad
 * rss-counter"), and the VM's runner reads its log.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_module.h"
#include "ksm_told.h"
#include "ksm_twins.h"

#define N 128

/* All of a range is present, anonymous and to be saved. */
#define EXPECT_PRIVATE(pid, addr, n) do { \
	long dumpable_ = told_dumpable(pid, addr, n); \
	if (dumpable_ != -ENOTTY) \
		EXPECT_EQ(dumpable_, (long)(n)); \
	EXPECT_EQ(told_pagemap(pid, addr, n, PM_PRESENT | PM_FILE, PM_PRESENT), (size_t)(n)); \
	EXPECT_EQ(told_flag(pid, addr, n, KPF_BIT_ANON), (size_t)(n)); \
	EXPECT_EQ(told_flag(pid, addr, n, KPF_BIT_SWAPBACKED), (size_t)(n)); \
} while (0)

/* What the kernel tells of the mapping that a range is in: so many pages, and its part of them. */
#define EXPECT_MAPPING(pid, addr, rss_, pss) do { \
	EXPECT_EQ(ksm_smaps_of(pid, addr, "Rss"), (long)(rss_)); \
	EXPECT_EQ(ksm_smaps_of(pid, addr, "Anonymous"), (long)(rss_)); \
	EXPECT_EQ(ksm_smaps_of(pid, addr, "LazyFree"), 0); \
	EXPECT_EQ(ksm_smaps_of(pid, addr, "Private_Clean") + \
		  ksm_smaps_of(pid, addr, "Shared_Clean"), 0); \
	EXPECT_EQ(ksm_smaps_of(pid, addr, "Pss"), (long)(pss)); \
	EXPECT_EQ(told_numa(pid, addr, "anon"), (long)(rss_)); \
} while (0)

static long fn_discard(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return madvise((void *)addr, npages * PGSZ, MADV_DONTNEED);
}

static long fn_unmap(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return munmap((void *)addr, npages * PGSZ);
}

/* CRIU's own question, which 6.1 does not know. */
TEST_F(device, pagemap_scan)
{
	struct ksm_child c;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 1);
	if (told_dumpable(0, a, N) == -ENOTTY)
		SKIP(return, "this kernel has no PAGEMAP_SCAN");
	ASSERT_EQ(told_dumpable(0, a, N), N);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(told_dumpable(0, a, N), N);
	ASSERT_EQ(ksm_remove(self->area), 0);
	EXPECT_EQ(told_dumpable(0, a, N), N);
	ksm_spawn(&c);
	ASSERT_EQ(ksm_same_frames(0, a, c.pid, b, N), N);
	EXPECT_EQ(told_dumpable(c.pid, b, N), N);
	ksm_end(&c);
}

/* Registered, with the area closed, and of a child that never registered. */
TEST_F(device, merged_is_private)
{
	struct ksm_child c;
	char *a, *b;
	int area = ksm_area(&self->k);
	size_t ksm;

	make_twins(area, &a, &b, N, 2);
	EXPECT_PRIVATE(0, a, N);
	/* 6.12 shows this bit for every anonymous page, other kernels for those of mm/ksm.c. */
	ksm = told_flag(0, a, N, KPF_BIT_KSM);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(told_flag(0, a, N, KPF_BIT_KSM), ksm);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_PRIVATE(0, b, N);
	ASSERT_EQ(ksm_remove(area), 0);
	close(area);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_PRIVATE(0, b, N);
	ksm_spawn(&c);
	ASSERT_EQ(ksm_same_frames(0, a, c.pid, a, N), N);
	EXPECT_PRIVATE(c.pid, a, N);
	/* Each page is mapped twice in both. */
	EXPECT_MAPPING(0, a, N, N / 4);
	EXPECT_MAPPING(c.pid, a, N, N / 4);

	/* The child writes to half of them, discards a quarter, unmaps another. */
	ksm_call(&c, ksm_fn_fill, a, N / 2, 3);
	EXPECT_PRIVATE(c.pid, a, N);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	ASSERT_EQ(ksm_call(&c, fn_discard, ksm_page(a, N / 2), N / 4, 0), 0);
	EXPECT_EQ(told_pagemap(c.pid, ksm_page(a, N / 2), N / 4, PM_PRESENT, 0), N / 4);
	ASSERT_EQ(ksm_call(&c, fn_unmap, ksm_page(a, N / 4 * 3), N / 4, 0), 0);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_PRIVATE(0, b, N);
	ksm_end(&c);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 2), 0);
}

/* The mapping moves, and the pages that are alone with one mapper become its own. */
TEST_F(device, moved_and_alone)
{
	char *a, *b, *to = ksm_mmap(N);

	make_twins(self->area, &a, &b, N, 4);
	ksm_merge_all(&self->k);
	ASSERT_EQ(mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	ASSERT_EQ(ksm_same_frames(0, to, 0, b, N), N);
	EXPECT_PRIVATE(0, to, N);
	ASSERT_EQ(mprotect(to, N * PGSZ, PROT_READ), 0);
	EXPECT_PRIVATE(0, to, N);
	ASSERT_EQ(munmap(b, N * PGSZ), 0);
	EXPECT_PRIVATE(0, to, N);
	EXPECT_EQ(ksm_wrong(to, N, 4), 0);
	ASSERT_EQ(mremap(to, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	ksm_merge_all(&self->k);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_EQ(ksm_wrong(a, N, 4), 0);
}

TEST_F(device, unmerged_is_private)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 5);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_PRIVATE(0, a, N);
	EXPECT_PRIVATE(0, b, N);
	ksm_drain_batches();
	EXPECT_EQ(told_flag(0, a, N, KPF_BIT_LRU), (size_t)N);
	EXPECT_EQ(told_flag(0, b, N, KPF_BIT_LRU), (size_t)N);
}

/* A page of a huge page is merged when that was split. */
TEST_F(device, huge_is_private)
{
	char *a = ksm_mmap_huge(1), *b = ksm_mmap(KSM_HUGE_PAGES);

	ksm_fill(a, KSM_HUGE_PAGES, 6);
	ksm_fill(b, KSM_HUGE_PAGES, 6);
	ASSERT_EQ(ksm_register(self->area, a, KSM_HUGE_PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, b, KSM_HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, KSM_HUGE_PAGES), KSM_HUGE_PAGES);
	EXPECT_PRIVATE(0, a, KSM_HUGE_PAGES);
	EXPECT_PRIVATE(0, b, KSM_HUGE_PAGES);
}

/*
 * What a mapping and a process are told to hold. The kernel reads the process's
 * counters without what each CPU holds back, hence the slack.
 */
TEST_F(device, mapping_and_process)
{
	enum { PAGES = 2048, LESS = 256 };
	long anon, file, rss;
	char *a, *b;

#define EXPECT_PROCESS(change) do { \
	EXPECT_LE(labs(ksm_status(0, "RssAnon") - anon - (change)), LESS); \
	EXPECT_LE(labs(ksm_status(0, "RssFile") - file), LESS); \
	EXPECT_LE(labs(ksm_status(0, "VmRSS") - rss - (change)), 2 * LESS); \
} while (0)

	make_twins(self->area, &a, &b, PAGES, 7);
	anon = ksm_status(0, "RssAnon");
	file = ksm_status(0, "RssFile");
	rss = ksm_status(0, "VmRSS");
	ASSERT_GE(anon, 2 * PAGES - LESS);
	EXPECT_MAPPING(0, a, PAGES, PAGES);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_PROCESS(0);
	EXPECT_MAPPING(0, a, PAGES, PAGES / 2);
	EXPECT_MAPPING(0, b, PAGES, PAGES / 2);

	ksm_fill(a, PAGES / 2, 8);
	EXPECT_PROCESS(0);
	EXPECT_MAPPING(0, a, PAGES, PAGES / 4 * 3);
	ASSERT_EQ(madvise(a, PAGES / 4 * PGSZ, MADV_DONTNEED), 0);
	ASSERT_EQ(madvise(ksm_page(a, PAGES / 2), PAGES / 4 * PGSZ, MADV_DONTNEED), 0);
	EXPECT_PROCESS(-PAGES / 2);
	EXPECT_MAPPING(0, a, PAGES / 2, PAGES / 8 * 3);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_PROCESS(-PAGES / 2);
	EXPECT_MAPPING(0, a, PAGES / 2, PAGES / 2);
	EXPECT_MAPPING(0, b, PAGES, PAGES);
	munmap(a, PAGES * PGSZ);
	munmap(b, PAGES * PGSZ);
	EXPECT_PROCESS(-2 * PAGES);
}

/*
 * What the whole machine is told to hold: each frame once, as anonymous memory. The slack
 * is for what else runs in the VM.
 */
TEST_F(device, machine)
{
	enum { PAGES = 4096, LESS = 300 };
	long anon, mapped, file;
	struct ksm_child c;
	char *a, *b;

#define EXPECT_MACHINE(change) do { \
	EXPECT_LE(labs(told_vmstat("nr_anon_pages") - anon - (change)), LESS); \
	EXPECT_LE(labs(ksm_meminfo("AnonPages") - anon - (change)), LESS); \
	EXPECT_LE(labs(told_vmstat("nr_mapped") - mapped), LESS); \
	EXPECT_LE(labs(told_vmstat("nr_file_pages") - file), LESS); \
} while (0)

	make_twins(self->area, &a, &b, PAGES, 9);
	anon = told_vmstat("nr_anon_pages");
	mapped = told_vmstat("nr_mapped");
	file = told_vmstat("nr_file_pages");
	EXPECT_MACHINE(0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_MACHINE(-PAGES);
	ksm_spawn(&c);
	EXPECT_MACHINE(-PAGES);
	ksm_call(&c, ksm_fn_fill, a, PAGES / 2, 10);
	EXPECT_MACHINE(-PAGES / 2);
	ksm_end(&c);
	EXPECT_MACHINE(-PAGES);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_MACHINE(0);
	ksm_merge_all(&self->k);
	EXPECT_MACHINE(-PAGES);
	munmap(a, PAGES * PGSZ);
	/* Some frames may have been copied for their last mapper; each is there once. */
	EXPECT_MACHINE(-PAGES);
	munmap(b, PAGES * PGSZ);
	EXPECT_MACHINE(-2 * PAGES);
}

/* Pages outlive the module, and are private memory still. */
TEST_F(module, unloaded)
{
	enum { LESS = 100, PAGES = 1024 };
	long anon, machine, mapped;
	struct ksm_child c;
	char *a, *b;
	struct ksm k;
	int area;

	ksm_begin(&k);
	area = ksm_area(&k);
	make_twins(area, &a, &b, PAGES, 11);
	anon = ksm_status(0, "RssAnon");
	machine = told_vmstat("nr_anon_pages");
	mapped = told_vmstat("nr_mapped");
	ksm_merge_all(&k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	close(area);
	ksm_finish(&k);
	ASSERT_EQ(ksm_unload_soon(), 0);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_PRIVATE(0, a, PAGES);
	EXPECT_PRIVATE(0, b, PAGES);
	EXPECT_MAPPING(0, a, PAGES, PAGES / 2);
	EXPECT_MAPPING(0, b, PAGES, PAGES / 2);
	EXPECT_LE(labs(ksm_status(0, "RssAnon") - anon), LESS);
	EXPECT_LE(labs(told_vmstat("nr_anon_pages") - machine + PAGES), LESS);
	EXPECT_LE(labs(told_vmstat("nr_mapped") - mapped), LESS);
	ksm_spawn(&c);
	EXPECT_PRIVATE(c.pid, a, PAGES);
	ksm_call(&c, ksm_fn_fill, a, PAGES / 2, 12);
	EXPECT_PRIVATE(c.pid, a, PAGES);
	ASSERT_EQ(ksm_call(&c, fn_discard, b, PAGES, 0), 0);
	ASSERT_EQ(ksm_call(&c, fn_unmap, b, PAGES, 0), 0);
	ksm_end(&c);
	ksm_fill(a, PAGES / 2, 13);
	EXPECT_PRIVATE(0, a, PAGES);
	EXPECT_PRIVATE(0, b, PAGES);
	EXPECT_EQ(ksm_wrong(b, PAGES, 11), 0);
	munmap(a, PAGES * PGSZ);
	munmap(b, PAGES * PGSZ);
	EXPECT_LE(labs(told_vmstat("nr_anon_pages") - machine + 2 * PAGES), LESS);
	EXPECT_LE(labs(told_vmstat("nr_mapped") - mapped), LESS);
}

TEST_HARNESS_MAIN
