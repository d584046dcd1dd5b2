/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ranges.h - what ranges.c has for preload.c, and what it wants of it
 */
#ifndef LIBKSM_RANGES_H
#define LIBKSM_RANGES_H

#include <stdbool.h>

/* For range.area, where no area is. */
#define PENDING (-1)	/* to be registered at once */
#define PRIVATE (-2)	/* MADV_UNMERGEABLE: LIBKSM_AUTO shall leave it alone */

struct range {
	unsigned long start, end;
	int area;
};

extern struct range ranges[];
extern unsigned int nr_ranges;

int register_pending(void);
int add(unsigned long start, unsigned long end, int area, unsigned long least);
int take_out(unsigned long start, unsigned long end, bool private);

/* In preload.c */
int register_range(const struct range *range);

#endif /* LIBKSM_RANGES_H */
