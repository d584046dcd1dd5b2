// SPDX-License-Identifier: GPL-2.0-only
/*
 * uffd_test.c - memory that a userfaultfd watches is merged, and its owner sees all it asked for
 *
 * Whoever restores guests lazily has all their memory watched by userfaultfd: what is
 * missing is brought when it is touched, what is write-protected is reported when it is
 * written. A page that is there can be merged all the same: it stays there, so there is
 * no missing page to report; a write to a merged page is reported if it was protected,
 * and gets its copy if it was not. Left alone are pages that are protected already, and
 * what is missing stays missing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_monitor.h"
#include "ksm_told.h"
#include "ksm_twins.h"

#define N 64

/* Of Linux 6.8; Debian 12's headers are older. */
struct move_arg {
	uint64_t dst, src, len, mode;
	int64_t moved;
};

#define MOVE_IOCTL	_IOWR(UFFDIO, 0x05, struct move_arg)
#define FEATURE_MOVE	(1 << 16)
#define FEATURE_WP_ASYNC (1 << 15)

/* Nothing is reported now, and whoever caused something has gone on since. */
static bool silent(int uffd)
{
	struct pollfd pfd = { .fd = uffd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 0;
}

/* Half of it is there, and merged; half is missing, and stays so until it is touched. */
TEST_F(device, missing)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 1), *content = ksm_mmap(N);
	int uffd = ksm_uffd_open(0);
	struct monitor m = { .uffd = uffd, .base = a, .source = content };

	ksm_fill(content, N, 1);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_MISSING);
	ASSERT_EQ(copy_in(uffd, a, N / 2, content, 0), 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_PRESENT, 0), N / 2);
	EXPECT_TRUE(silent(uffd));
	EXPECT_STATS(N / 2, N / 2, N / 2, 0, 0);
	EXPECT_EQ(ksm_wrong(a, N / 2, 1), 0);
	/* Written: a copy, and no report. */
	ksm_fill(a, N / 4, 2);
	EXPECT_TRUE(silent(uffd));
	EXPECT_EQ(ksm_wrong(a, N / 4, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
	/* Given back: what is missing still is. */
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_PRESENT, 0), N / 2);
	EXPECT_TRUE(silent(uffd));
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 4);

	monitor_start(&m);
	ksm_fill(a, N / 4, 1);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
	monitor_stop(&m);
	EXPECT_EQ(m.missing, N / 2);
	EXPECT_EQ(m.wrong, 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	/* Discarded, merged pages are missing and reported. */
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_DONTNEED), 0);
	m.stop = false;
	m.missing = 0;
	monitor_start(&m);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
	monitor_stop(&m);
	EXPECT_EQ(m.missing, N);
	EXPECT_EQ(m.wrong, 0);
	close(uffd);
}

/* Pages of zeros become the zero page, which is there, too; that of UFFDIO_ZEROPAGE stays. */
TEST_F(device, missing_zeros)
{
	char *a = ksm_mmap(N);
	int uffd = ksm_uffd_open(0);
	struct uffdio_zeropage zero = {
		.range = { .start = (uintptr_t)ksm_page(a, N / 2), .len = N / 4 * PGSZ },
	};
	struct monitor m = { .uffd = uffd, .base = a };

	ksm_fn_zero((long)a, N / 2, 0, 0);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_MISSING);
	ASSERT_EQ(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, a, N / 4 * 3), 1);
	EXPECT_EQ(ksm_stat("zero_pages"), N / 2);
	monitor_start(&m);
	EXPECT_EQ(ksm_wrong_zero(a, N / 4 * 3), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_wrong_zero(a, N / 4 * 3), 0);
	EXPECT_EQ(ksm_distinct(0, a, N / 2), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 4 * 3), N / 4, PM_PRESENT, 0), N / 4);
	ksm_merge_all(&self->k);
	ksm_fill(a, N / 4 * 3, 3);
	EXPECT_EQ(ksm_wrong(a, N / 4 * 3, 3), 0);
	monitor_stop(&m);
	EXPECT_EQ(m.missing + m.minor + m.wp + m.wrong, 0);
	close(uffd);
}

/* Merged, then write-protected: every first write is reported, and the right bytes are there. */
TEST_F(device, protected_after_merge)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N / 2, 4);
	int uffd = ksm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	struct monitor m = { .uffd = uffd, .base = a };

	/* Half of it equals b, half is zeros. */
	ksm_fill(a, N / 2, 4);
	ksm_fn_zero((long)ksm_page(a, N / 2), N / 2, 0, 0);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N / 2), N / 2);
	EXPECT_EQ(ksm_distinct(0, ksm_page(a, N / 2), N / 2), 1);
	EXPECT_TRUE(silent(uffd));
	EXPECT_EQ(told_pagemap(0, a, N, PM_UFFD_WP, 0), N);

	protect(uffd, a, N, true);
	EXPECT_EQ(told_pagemap(0, a, N, PM_UFFD_WP, PM_UFFD_WP), N);
	EXPECT_EQ(ksm_wrong(a, N / 2, 4), 0);
	/* Scans, and an unmerge, neither report anything nor take the protection away. */
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_TRUE(silent(uffd));
	EXPECT_EQ(told_pagemap(0, a, N, PM_UFFD_WP, PM_UFFD_WP), N);
	EXPECT_EQ(ksm_wrong(a, N / 2, 4), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(a, N / 2), N / 2), 0);

	monitor_start(&m);
	ksm_fill(a, N, 5);
	monitor_stop(&m);
	EXPECT_EQ(m.wp, N);
	EXPECT_EQ(m.missing + m.minor + m.wrong, 0);
	EXPECT_EQ(ksm_wrong(a, N, 5), 0);
	EXPECT_EQ(ksm_wrong(b, N / 2, 4), 0);
	close(uffd);
}

/* The same without an unmerge in between: the writes go to merged pages. */
TEST_F(device, protected_while_merged)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 6);
	int uffd = ksm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	struct monitor m = { .uffd = uffd, .base = a };

	ksm_fill(a, N, 6);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_WP);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	protect(uffd, a, N / 2, true);
	ksm_passes(&self->k, 3);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	monitor_start(&m);
	ksm_fill(a, N, 7);
	monitor_stop(&m);
	EXPECT_EQ(m.wp, N / 2);
	EXPECT_EQ(m.missing + m.minor + m.wrong, 0);
	EXPECT_EQ(ksm_wrong(a, N, 7), 0);
	EXPECT_EQ(ksm_wrong(b, N, 6), 0);
	close(uffd);
}

/* Protected before: the owner may be saving these, so they stay; the others merge. */
TEST_F(device, protected_before)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 8);
	int uffd = ksm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	struct monitor m = { .uffd = uffd, .base = a };
	uint64_t pfns[N];

	ksm_fill(a, N, 8);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_WP);
	protect(uffd, a, N / 2, true);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_moved(0, a, N / 2, pfns), 0);
	EXPECT_EQ(told_pagemap(0, a, N / 2, PM_UFFD_WP, PM_UFFD_WP), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_UFFD_WP, 0), N / 2);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_moved(0, a, N / 2, pfns), 0);
	EXPECT_TRUE(silent(uffd));
	monitor_start(&m);
	ksm_fill(a, N, 8);
	monitor_stop(&m);
	EXPECT_EQ(m.wp, N / 2);
	EXPECT_EQ(m.missing + m.minor + m.wrong, 0);
	/* Their protection is gone, so they merge as well. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	close(uffd);
}

/*
 * A private mapping of shared memory: a page that is written is the process's own, and
 * one that is only in the page cache is minor.
 */
TEST_F(device, minor)
{
	int fd = memfd_create("uffd_test", MFD_CLOEXEC), uffd;
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 9), *page = malloc(PGSZ);
	struct monitor m = { .base = a };

	ASSERT_EQ(ftruncate(fd, N * PGSZ), 0);
	for (int i = 0; i < N; i++) {
		ksm_fill_page(page, 10, i);
		ASSERT_EQ(pwrite(fd, page, PGSZ, i * PGSZ), (ssize_t)PGSZ);
	}
	ASSERT_EQ(mmap(a, N * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0), a);
	ksm_fill(a, N / 2, 9);
	uffd = m.uffd = ksm_uffd_open(UFFD_FEATURE_MINOR_SHMEM);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_MINOR);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	/* None is, as long as somebody watches: see ksmdev_mergeable(). */
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_TRUE(silent(uffd));
	EXPECT_EQ(told_pagemap(0, a, N / 2, PM_PRESENT, PM_PRESENT), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_PRESENT, 0), N / 2);
	EXPECT_EQ(ksm_wrong(a, N / 2, 9), 0);
	ksm_fill(a, N / 2, 11);
	EXPECT_EQ(ksm_wrong(a, N / 2, 11), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_wrong(b, N, 9), 0);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_PRESENT, 0), N / 2);
	EXPECT_TRUE(silent(uffd));
	close(uffd);
	close(fd);
}

/* The kernel moves only pages that are one process's own. */
TEST_F(device, move)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 13), *to = ksm_mmap(N);
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURE_MOVE };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct move_arg move = {
		.dst = (uintptr_t)to, .src = (uintptr_t)a, .len = PGSZ,
	};

	ASSERT_GE(uffd, 0);
	if (ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "this kernel has no UFFDIO_MOVE");
	ksm_uffd_register(uffd, to, N, UFFDIO_REGISTER_MODE_MISSING);
	ksm_fill(a, N, 13);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ioctl(uffd, MOVE_IOCTL, &move), -1);
	EXPECT_EQ(errno, EBUSY);
	EXPECT_EQ(ksm_wrong(a, N, 13), 0);
	EXPECT_EQ(told_pagemap(0, to, N, PM_PRESENT, 0), N);
	EXPECT_TRUE(silent(uffd));
	/* Written, or given back, it is its own, and moves. */
	ksm_fill(a, 1, 13);
	EXPECT_EQ(ioctl(uffd, MOVE_IOCTL, &move), 0);
	EXPECT_TRUE(ksm_page_is(to, 13, 0));
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	move.src += PGSZ;
	move.dst += PGSZ;
	move.len = (N - 1) * PGSZ;
	EXPECT_EQ(ioctl(uffd, MOVE_IOCTL, &move), 0);
	EXPECT_EQ(ksm_wrong(to, N, 13), 0);
	EXPECT_EQ(ksm_wrong(b, N, 13), 0);
	/* And merges where it came to. */
	ASSERT_EQ(ksm_register(self->area, to, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, to, 0, b, N), N);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);
	close(uffd);
}

/* PAGEMAP_SCAN tells what was written since it was protected; a merge is no write, nor undoes it. */
TEST_F(device, protected_asynchronously)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 14);
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = FEATURE_WP_ASYNC | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	size_t equal;

	ASSERT_GE(uffd, 0);
	if (ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "this kernel has no UFFD_FEATURE_WP_ASYNC");
	ksm_fill(a, N, 14);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_WP);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	protect(uffd, a, N, true);
	for (int i = 0; i < N / 2; i++)
		ksm_fill_page(ksm_page(a, i), 14, i);
	EXPECT_EQ(told_pagemap(0, a, N / 2, PM_UFFD_WP, 0), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_UFFD_WP, PM_UFFD_WP), N / 2);
	ksm_merge_all(&self->k);
	equal = ksm_same_frames(0, a, 0, b, N / 2);
	EXPECT_EQ(equal, N / 2);
	EXPECT_EQ(told_pagemap(0, a, N / 2, PM_UFFD_WP, 0), N / 2);
	EXPECT_EQ(told_pagemap(0, ksm_page(a, N / 2), N / 2, PM_UFFD_WP, PM_UFFD_WP), N / 2);
	EXPECT_EQ(ksm_wrong(a, N, 14), 0);
	close(uffd);
}

/*
 * A snapshot restored four times: twice by a private mapping of its file, twice by a
 * userfaultfd whose monitor brings each page. Each guest runs on and writes.
 */
TEST_F_TIMEOUT(device, snapshot_restored, 120)
{
	enum { GUESTS = 4, PAGES = 256 };
	int fd = memfd_create("snapshot", MFD_CLOEXEC), uffd;
	char *snapshot, *guest[GUESTS], *restored[2];
	struct monitor m[2] = {};
	size_t wrong = 0;

	ASSERT_EQ(ftruncate(fd, PAGES * PGSZ), 0);
	snapshot = mmap(NULL, PAGES * PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(snapshot, MAP_FAILED);
	ksm_fill(snapshot, PAGES, 15);
	for (int g = 0; g < GUESTS; g++) {
		guest[g] = ksm_mmap(PAGES);
		if (g < 2) {
			ASSERT_EQ(mmap(guest[g], PAGES * PGSZ, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_FIXED, fd, 0), guest[g]);
		} else {
			uffd = ksm_uffd_open(0);
			ksm_uffd_register(uffd, guest[g], PAGES, UFFDIO_REGISTER_MODE_MISSING);
			m[g - 2].uffd = uffd;
			m[g - 2].base = guest[g];
			m[g - 2].source = snapshot;
			monitor_start(&m[g - 2]);
			restored[g - 2] = guest[g];
		}
		ASSERT_EQ(ksm_register(self->area, guest[g], PAGES), 0);
	}
	ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 1000), 0);
	/* All write the same to a quarter, each its own to another, and read all. */
	for (int round = 0; round < 4; round++) {
		for (int g = 0; g < GUESTS; g++) {
			for (size_t i = 0; i < PAGES / 4; i++)
				ksm_fill_page(ksm_page(guest[g], i), 16 + round, i);
			for (size_t i = PAGES / 4; i < PAGES / 2; i++)
				ksm_fill_page(ksm_page(guest[g], i), 100 * g + round, i);
		}
		for (int g = 0; g < GUESTS; g++)
			for (size_t i = 0; i < PAGES; i++)
				wrong += !ksm_page_is(ksm_page(guest[g], i),
						      i < PAGES / 4 ? 16 + round :
						      i < PAGES / 2 ? 100 * g + round : 15, i);
		/* In the last round all is quiet, and what is equal becomes one. */
		if (round < 3)
			ksm_wait_more("full_scans", 3, 20);
	}
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(wrong, 0);
	for (int g = 1; g < GUESTS; g++)
		EXPECT_EQ(ksm_same_frames(0, guest[0], 0, guest[g], PAGES / 4), PAGES / 4);
	/* What nobody wrote: the file's own pages in the first two, merged in the others. */
	EXPECT_EQ(ksm_same_frames(0, ksm_page(guest[0], PAGES / 2), 0,
				  ksm_page(guest[1], PAGES / 2), PAGES / 2), PAGES / 2);
	EXPECT_EQ(ksm_same_frames(0, ksm_page(restored[0], PAGES / 2), 0,
				  ksm_page(restored[1], PAGES / 2), PAGES / 2), PAGES / 2);
	/* One guest goes on by itself. */
	ksm_fill(guest[3], PAGES, 20);
	ksm_fill(guest[1], PAGES, 21);
	EXPECT_EQ(ksm_wrong(guest[3], PAGES, 20), 0);
	EXPECT_EQ(ksm_wrong(guest[1], PAGES, 21), 0);
	EXPECT_EQ(ksm_wrong(guest[0], PAGES / 4, 19), 0);
	EXPECT_EQ(ksm_wrong(guest[2], PAGES / 4, 19), 0);
	EXPECT_EQ(ksm_wrong(snapshot, PAGES, 15), 0);
	for (int i = 0; i < 2; i++) {
		monitor_stop(&m[i]);
		EXPECT_EQ(m[i].missing, PAGES);
		EXPECT_EQ(m[i].wrong + m[i].wp + m[i].minor, 0);
		close(m[i].uffd);
	}
	for (int g = 0; g < 2; g++)
		munmap(guest[g], PAGES * PGSZ);
	munmap(snapshot, PAGES * PGSZ);
	close(fd);
}

TEST_HARNESS_MAIN
