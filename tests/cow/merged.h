/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * merged.h - the kernel's own cow selftest, over merged memory
 *
 * cow.c comes out of Debian's linux-source package as it is, and is compiled with this in
 * front of it (-include). It fills each piece of memory with ones before it forks, pins
 * and splices it; with COW_MERGE in the environment such a piece is merged with a page
 * of this header's then, so that every one of its tests begins with merged pages. At the
 * end it says how many pages were.
 */
#ifndef KSMDEV_COW_MERGED_H
#define KSMDEV_COW_MERGED_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm.h"

static unsigned long merged_pages, merged_pieces, unmerged_pieces;

/* Kernels for arm64 have pages of 4 or of 16 KiB. */
static unsigned long page_bytes(void)
{
	return sysconf(_SC_PAGESIZE);
}

static void merged_report(void)
{
	/* Not its children. */
	if (getpid() == getpgrp())
		printf("# merged %lu pages in %lu pieces, %lu pieces were not\n", merged_pages,
		       merged_pieces, unmerged_pieces);
}

static int merged_area(char **twin)
{
	static int area = -1;
	static char *page;

	if (area < 0) {
		int dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);

		area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA);
		page = mmap(NULL, page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (dev < 0 || area < 0 || page == MAP_FAILED) {
			perror("/dev/ksm");
			exit(1);
		}
		close(dev);
		memset(page, 1, page_bytes());
		setpgid(0, 0);
		atexit(merged_report);
	}
	*twin = page;
	return area;
}

/* Merge what can be merged of a range, now. */
static void merge_now(int area, void *mem, unsigned long npages)
{
	struct ksm_merge_range range = {
		.size = sizeof(range), .addr = (unsigned long)mem, .npages = npages,
	};

	/* io_uring's work interrupts, too. */
	while (ioctl(area, KSM_MERGE_RANGE, &range)) {
		if (errno != EINTR) {
			perror("KSM_MERGE_RANGE");
			exit(1);
		}
	}
}

/* How many pages are mapped more than once: nothing was forked yet. */
static unsigned long count_merged(void *mem, unsigned long npages)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	unsigned long n = 0, entry;

	for (unsigned long i = 0; i < npages; i++)
		if (pread(fd, &entry, 8, ((unsigned long)mem / page_bytes() + i) * 8) == 8)
			n += entry >> 63 && !(entry >> 56 & 1);
	close(fd);
	return n;
}

/*
 * Is all merged that can be? Where a shared page takes no more mappings, one page may be
 * left that has nobody to share with.
 */
static int all_merged(unsigned long merged, unsigned long npages)
{
	return (npages - merged) * 256 <= npages;
}

/* Ones were written to all of it: merge it with a page that holds the same. */
static void merged_fill(void *mem, size_t size)
{
	struct ksm_memory_region region = { .npages = 1 };
	unsigned long merged = 0, npages = size / page_bytes();
	char *twin;
	int area = merged_area(&twin);

	/* A page of its own, not what is left of the last merge. */
	memset(twin, 1, page_bytes());
	region.addr = (unsigned long)twin;
	ioctl(area, KSM_REGISTER_MEMORY_REGION, &region);
	region.addr = (unsigned long)mem;
	region.npages = npages;
	ioctl(area, KSM_REGISTER_MEMORY_REGION, &region);
	/* A page is known once it was looked at, and a huge page is split the first time. */
	for (int i = 0; i < 4 && !all_merged(merged, npages); i++) {
		merge_now(area, twin, 1);
		merge_now(area, mem, npages);
		merged = count_merged(mem, npages);
	}
	/* The pages stay merged. */
	ioctl(area, KSM_REMOVE_MEMORY_REGION);
	merged_pages += merged;
	merged_pieces += all_merged(merged, npages);
	unmerged_pieces += !all_merged(merged, npages);
}

/*
 * cow.c asks which sizes huge pages have, and does everything with each: one between a page
 * and 2 MiB is enough. Called in place of thp_supported_orders(), by ld's --wrap.
 */
unsigned long __wrap_thp_supported_orders(void);
unsigned long __real_thp_supported_orders(void);

unsigned long __wrap_thp_supported_orders(void)
{
	return __real_thp_supported_orders() & 1 << 4;
}

static inline void *merged_memset(void *mem, int c, size_t size)
{
	memset(mem, c, size);
	if (c == 1 && getenv("COW_MERGE"))
		merged_fill(mem, size);
	return mem;
}

#define memset merged_memset

#endif /* KSMDEV_COW_MERGED_H */
