/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_told.h - what the kernel tells of a range of memory, to whoever asks
 *
 * Tools that save, move and account memory (CRIU, monitors) ask the kernel what kind
 * of page is where. A merged page of private memory is private memory to them.
 */
#ifndef KSM_TOLD_H
#define KSM_TOLD_H

#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm_util.h"

/* Of /proc/PID/pagemap: the page is a file's, or shared anonymous memory. */
#define PM_FILE			(1ULL << 61)

#define KPF_BIT_MMAP		11
#define KPF_BIT_SWAPBACKED	14
#define KPF_BIT_HWPOISON	19

/* PAGEMAP_SCAN of Linux 6.7; Debian 12's headers are older. */
struct told_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct told_region {
	uint64_t start, end, categories;
};

#define TOLD_PAGEMAP_SCAN	_IOWR('f', 16, struct told_scan_arg)
#define TOLD_IS_FILE		(1 << 2)
#define TOLD_IS_PRESENT		(1 << 3)
#define TOLD_IS_SWAPPED		(1 << 4)
#define TOLD_IS_PFNZERO		(1 << 5)

/**
 * told_dumpable() - how many pages CRIU would save
 * @pid: whose memory; 0: the caller's
 * @addr: start of the range
 * @npages: its length
 *
 * Asks as CRIU does: pages that are present or swapped out, neither the zero page nor
 * a file's.
 *
 * Return: how many; -ENOTTY if this kernel has no PAGEMAP_SCAN.
 */
static inline long told_dumpable(pid_t pid, const void *addr, size_t npages)
{
	struct told_region *regions = calloc(npages, sizeof(*regions));
	struct told_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + npages * PGSZ,
		.vec = (uintptr_t)regions,
		.vec_len = npages,
		.category_inverted = TOLD_IS_PFNZERO | TOLD_IS_FILE,
		.category_mask = TOLD_IS_PFNZERO | TOLD_IS_FILE,
		.category_anyof_mask = TOLD_IS_PRESENT | TOLD_IS_SWAPPED,
		.return_mask = TOLD_IS_PRESENT | TOLD_IS_SWAPPED,
	};
	char path[64] = "/proc/self/pagemap";
	long n = 0;
	int fd, ret;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || !regions)
		ksm_die("cannot open %s: %s", path, strerror(errno));
	ret = ioctl(fd, TOLD_PAGEMAP_SCAN, &arg);
	if (ret < 0)
		n = -errno;
	for (int i = 0; i < ret; i++)
		n += (regions[i].end - regions[i].start) / PGSZ;
	close(fd);
	free(regions);
	return n;
}

/* Of how many pages the bits of pagemap under @mask are @bits. */
static inline size_t told_pagemap(pid_t pid, const void *addr, size_t npages, uint64_t mask,
				  uint64_t bits)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += (ksm_pagemap(pid, ksm_page(addr, i)) & mask) == bits;
	return n;
}

/* How many pages have a bit of kpageflags. */
static inline size_t told_flag(pid_t pid, const void *addr, size_t npages, int kpf_bit)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++) {
		uint64_t pfn = ksm_pfn(pid, ksm_page(addr, i));

		n += pfn && ksm_pfn_is(pfn, kpf_bit);
	}
	return n;
}

/* The number after "NAME=" of the mapping that begins at @addr in numa_maps; 0: none. */
static inline long told_numa(pid_t pid, const void *addr, const char *name)
{
	char path[64] = "/proc/self/numa_maps", line[1024], key[32];
	unsigned long start;
	long value = 0;
	char *at;
	FILE *f;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/numa_maps", pid);
	f = fopen(path, "re");
	if (!f)
		ksm_die("cannot open %s: %s", path, strerror(errno));
	snprintf(key, sizeof(key), " %s=", name);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx ", &start) != 1 || start != (uintptr_t)addr)
			continue;
		at = strstr(line, key);
		if (at)
			value = strtol(at + strlen(key), NULL, 10);
	}
	fclose(f);
	return value;
}

/* A count of /proc/vmstat, per-CPU counts folded in. */
static inline long told_vmstat(const char *name)
{
	char line[128], key[64];
	long value = -1;
	FILE *f;

	ksm_write_file("/proc/sys/vm/stat_refresh", "1");
	f = fopen("/proc/vmstat", "re");
	snprintf(key, sizeof(key), "%s %%ld", name);
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, key, &value);
	if (f)
		fclose(f);
	if (value < 0)
		ksm_die("/proc/vmstat has no \"%s\"", name);
	return value;
}

#endif /* KSM_TOLD_H */
