// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_frames.c - page frames, as pagemap, kpageflags and kpagecount tell of them. See
 * ksm_frames.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_frames.h"
#include "ksm_memory.h"
#include "ksm_program.h"

static void read_words(const char *path, uint64_t first, uint64_t *words, size_t n)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t done = 0;

	if (fd < 0)
		ksm_die("cannot open %s: %s; run the tests as root", path, strerror(errno));
	while (done < n * sizeof(*words)) {
		ssize_t len = pread(fd, (char *)words + done,
				    n * sizeof(*words) - done,
				    first * sizeof(*words) + done);

		if (len <= 0)
			ksm_die("cannot read %s: %s; run the tests as root", path,
				len ? strerror(errno) : "end of file");
		done += len;
	}
	close(fd);
}

static void read_pagemap(pid_t pid, const void *addr, size_t npages, uint64_t *entries)
{
	char path[64] = "/proc/self/pagemap";

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	read_words(path, (uintptr_t)addr / PGSZ, entries, npages);
}

uint64_t ksm_pagemap(pid_t pid, const void *addr)
{
	uint64_t entry;

	read_pagemap(pid, addr, 1, &entry);
	return entry;
}

bool ksm_has_soft_dirty(void)
{
	char *page = ksm_mmap(1);
	bool has;

	*page = 1;
	has = ksm_pagemap(0, page) & PM_SOFT_DIRTY;
	munmap(page, PGSZ);
	return has;
}

void ksm_drain_batches(void)
{
	int node = 0, status = -1;
	void *here = &node;

	if (syscall(SYS_move_pages, 0, 1L, &here, &node, &status, MPOL_MF_MOVE) || status)
		ksm_die("move_pages() does not move a page to where it is: %s, %d", strerror(errno), status);
}

void ksm_pfns(pid_t pid, const void *addr, size_t npages, uint64_t *pfns)
{
	read_pagemap(pid, addr, npages, pfns);
	for (size_t i = 0; i < npages; i++) {
		if (!(pfns[i] & PM_PRESENT)) {
			pfns[i] = 0;
			continue;
		}
		pfns[i] &= PM_PFN_MASK;
		if (!pfns[i])
			ksm_die("pagemap shows no frame numbers; run the tests as root");
	}
}

uint64_t ksm_pfn(pid_t pid, const void *addr)
{
	uint64_t pfn;

	ksm_pfns(pid, addr, 1, &pfn);
	return pfn;
}

static uint64_t *alloc_pfns(size_t npages)
{
	uint64_t *pfns = malloc(npages * sizeof(*pfns) + 1);

	if (!pfns)
		ksm_die("out of memory; give the VM more (--mem)");
	return pfns;
}

size_t ksm_same_frames(pid_t pid_a, const void *a, pid_t pid_b, const void *b,
		       size_t npages)
{
	uint64_t *pfns_a = alloc_pfns(npages), *pfns_b = alloc_pfns(npages);
	size_t same = 0;

	ksm_pfns(pid_a, a, npages, pfns_a);
	ksm_pfns(pid_b, b, npages, pfns_b);
	for (size_t i = 0; i < npages; i++)
		same += pfns_a[i] && pfns_a[i] == pfns_b[i];
	free(pfns_a);
	free(pfns_b);
	return same;
}

size_t ksm_moved(pid_t pid, const void *addr, size_t npages, const uint64_t *pfns)
{
	uint64_t *now = alloc_pfns(npages);
	size_t moved = 0;

	ksm_pfns(pid, addr, npages, now);
	for (size_t i = 0; i < npages; i++)
		moved += now[i] != pfns[i];
	free(now);
	return moved;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

size_t ksm_distinct(pid_t pid, const void *addr, size_t npages)
{
	uint64_t *pfns = alloc_pfns(npages);
	size_t distinct = 0;

	ksm_pfns(pid, addr, npages, pfns);
	qsort(pfns, npages, sizeof(*pfns), compare_u64);
	for (size_t i = 0; i < npages; i++)
		distinct += pfns[i] && (!i || pfns[i] != pfns[i - 1]);
	free(pfns);
	return distinct;
}

uint64_t ksm_kpageflags(uint64_t pfn)
{
	uint64_t flags;

	read_words("/proc/kpageflags", pfn, &flags, 1);
	return flags;
}

bool ksm_pfn_is(uint64_t pfn, int kpf_bit)
{
	return pfn && ksm_kpageflags(pfn) >> kpf_bit & 1;
}

uint64_t ksm_kpagecount(uint64_t pfn)
{
	uint64_t count;

	read_words("/proc/kpagecount", pfn, &count, 1);
	return count;
}

uint64_t ksm_zero_pfn(void)
{
	volatile char *p = ksm_mmap(1);
	uint64_t pfn;

	/* A read fault on untouched anonymous memory maps the zero page. */
	(void)*p;
	pfn = ksm_pfn(0, (void *)p);
	munmap((char *)p - PGSZ, 3 * PGSZ);
	if (!ksm_pfn_is(pfn, KPF_BIT_ZERO_PAGE))
		ksm_die("a read fault did not map the zero page; frame %llx",
			(unsigned long long)pfn);
	return pfn;
}
