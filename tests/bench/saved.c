// SPDX-License-Identifier: GPL-2.0-only
/*
 * saved.c - how much is saved already, as page tables say, for bench.c
 *
 * Neither scanner is asked: what /dev/ksm tells was counted a while ago, up to a second, and to have
 * it counted again and again would cost the time that is measured. /proc/PID/pagemap tells which
 * frames are mapped, and which pages may be shared is known from what they hold. All of them would
 * take too long, so it is always the same 512, spread over the memory as evenly as chance allows; that
 * tells where between two looks 99 % are reached to a few thousandths. A look takes a few
 * milliseconds, on the CPU where no scanner is. It holds the lock of one page table at a time,
 * for one entry, and mmap locks for reading, as the scanners do.
 *
 * Of pages that hold the same, all but one can be saved; of those full of zeros that one, too,
 * for the kernel has its own. So far as their frames are the same, they are.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "saved.h"

#define SAMPLE		512
/* Memory of one process may be four times the same; then that is what must be looked at. */
#define QUARTERS	4

struct spot {
	int pagemap;
	off_t at;
};

static struct spot spots[SAMPLE];
static unsigned int nr_spots;
/* Of those. */
static unsigned int can_be_saved;
static uint64_t zero_frame;

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* How many could be missed, if one of each value stayed; of 0, none need to. */
static unsigned int count_spare(uint64_t values[SAMPLE])
{
	unsigned int i, n = 0;

	qsort(values, nr_spots, sizeof(*values), compare);
	for (i = 0; i < nr_spots; i++)
		n += !values[i] || (i && values[i] == values[i - 1]);
	return n;
}

/* 0: zeros. */
static uint64_t fingerprint(const uint64_t *page)
{
	uint64_t hash = 0xcbf29ce484222325;
	size_t i;

	if (ksm_page_is_zero(page))
		return 0;
	for (i = 0; i < PGSZ / sizeof(*page); i++)
		hash = (hash ^ page[i]) * 0x100000001b3;
	return hash;
}

static int open_pagemap(const struct ksm_child *worker)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", worker->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ksm_die("%s: %m", path);
	return fd;
}

void saved_open(const struct ksm_child *workers, unsigned int nr, const char *base, size_t npages,
		void (*page)(uint64_t *page, size_t rank, size_t index))
{
	size_t quarter = npages / QUARTERS, each = SAMPLE / QUARTERS / nr, part = quarter / each;
	static uint64_t contents[PGSZ / sizeof(uint64_t)];
	uint64_t values[SAMPLE];
	size_t rank, q, i;

	nr_spots = 0;
	for (rank = 0; rank < nr; rank++) {
		int fd = open_pagemap(&workers[rank]);

		for (q = 0; q < QUARTERS; q++) {
			for (i = 0; i < each; i++) {
				/* Anywhere in its part: what is there may repeat itself. */
				size_t chance = i * 0x9e3779b97f4a7c15 >> 32;
				size_t index = q * quarter + i * part + chance % part;

				spots[nr_spots].pagemap = fd;
				spots[nr_spots].at = ((uintptr_t)base / PGSZ + index) * sizeof(uint64_t);
				page(contents, rank, index);
				values[nr_spots++] = fingerprint(contents);
			}
		}
	}
	can_be_saved = count_spare(values);
	if (!can_be_saved)
		ksm_die("none of %u pages can be saved", nr_spots);
	zero_frame = ksm_zero_pfn();
}

double saved_part(void)
{
	uint64_t frames[SAMPLE], entry;
	unsigned int i;

	for (i = 0; i < nr_spots; i++) {
		if (pread(spots[i].pagemap, &entry, sizeof(entry), spots[i].at) != sizeof(entry))
			ksm_die("pagemap: %m");
		frames[i] = entry & PM_PFN_MASK;
		/* None, as it is moved, or its huge page split, just now: like no other. */
		if (!(entry & PM_PRESENT))
			frames[i] = ~(uint64_t)i;
		else if (frames[i] == zero_frame)
			frames[i] = 0;
	}
	return (double)count_spare(frames) / can_be_saved;
}

void saved_close(void)
{
	unsigned int i;

	for (i = 0; i < nr_spots; i++)
		if (!i || spots[i].pagemap != spots[i - 1].pagemap)
			close(spots[i].pagemap);
	nr_spots = 0;
}
