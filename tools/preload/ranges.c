// SPDX-License-Identifier: GPL-2.0-only
/*
 * ranges.c - what libksm-preload has to share: a table of ranges, and their areas
 *
 * Ranges are added, split and taken out, and those that are PENDING are registered. The helper
 * does that, with the lock of preload.c held.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm.h"
#include "ranges.h"

/*
 * Ranges do not overlap and are sorted. There are never as many as there is room for, unless
 * the limit of open files is raised: each takes a descriptor.
 */
#define MAX_RANGES 16384

struct range ranges[MAX_RANGES];
unsigned int nr_ranges;

static void delete_range(unsigned int i)
{
	memmove(&ranges[i], &ranges[i + 1], (--nr_ranges - i) * sizeof(*ranges));
}

/* Return whether there was room. */
static bool insert_range(unsigned int i, unsigned long start, unsigned long end, int area)
{
	if (nr_ranges == MAX_RANGES)
		return false;
	memmove(&ranges[i + 1], &ranges[i], (nr_ranges++ - i) * sizeof(*ranges));
	ranges[i] = (struct range) { .start = start, .end = end, .area = area };
	return true;
}

/* Register what is not yet, and forget what is refused. Return 0, or the first errno. */
int register_pending(void)
{
	unsigned int i = 0;
	int err = 0;

	while (i < nr_ranges) {
		if (ranges[i].area == PENDING) {
			ranges[i].area = register_range(&ranges[i]);
			if (ranges[i].area < 0) {
				err = err ? err : errno;
				delete_range(i);
				continue;
			}
		}
		i++;
	}
	return err;
}

/*
 * Add what no range has yet between @start and @end, in pieces of at least @least bytes.
 * Return 0, or an errno.
 */
int add(unsigned long start, unsigned long end, int area, unsigned long least)
{
	unsigned int i = 0;
	int err = 0;

	while (start < end && !err) {
		unsigned long stop = end;

		while (i < nr_ranges && ranges[i].end <= start)
			i++;
		if (i < nr_ranges && ranges[i].start < end)
			stop = ranges[i].start;
		if (stop <= start) {
			start = ranges[i].end;
			continue;
		}
		if (stop - start >= least && !insert_range(i, start, stop, area))
			err = EMFILE;
		start = stop;
	}
	return err;
}

/*
 * Make two of a range that covers @addr. Its area goes; the pages in it stay shared, and both
 * will be registered again. Return whether there was room.
 */
static bool split(unsigned long addr, bool private)
{
	unsigned int i;

	for (i = 0; i < nr_ranges; i++) {
		struct range *range = &ranges[i];

		if (range->start >= addr || range->end <= addr ||
		    (range->area == PRIVATE) != private)
			continue;
		if (!insert_range(i + 1, addr, range->end, private ? PRIVATE : PENDING))
			return false;
		range->end = addr;
		if (range->area >= 0) {
			close(range->area);
			range->area = PENDING;
		}
		break;
	}
	return true;
}

/*
 * Take what is shared, or what is private, out of @start to @end, and give shared pages back
 * their own copies. Return 0, or an errno.
 */
int take_out(unsigned long start, unsigned long end, bool private)
{
	unsigned int i = 0;
	int err = 0;

	if (!split(start, private) || !split(end, private))
		err = EMFILE;
	while (i < nr_ranges) {
		struct range *range = &ranges[i];

		if (range->start < start || range->end > end ||
		    (range->area == PRIVATE) != private) {
			i++;
			continue;
		}
		/* Unmerging is by area, too. */
		if (range->area == PENDING) {
			range->area = register_range(range);
			if (range->area < 0)
				err = errno;
		}
		if (range->area >= 0) {
			if (ioctl(range->area, KSM_UNMERGE))
				err = errno;
			close(range->area);
		}
		delete_range(i);
	}
	return err;
}
