/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * unit.h - what a unit test of the indexes has: pages to share, and a place to say what is wrong
 */
#ifndef UNIT_H
#define UNIT_H

#include "kernel.h"

/* Shared pages are locked by others now and then. */
extern bool unit_busy;
/* How many shared pages there are. */
extern long unit_pages;

/* What must be so. Says what is not, and ends the test. */
#define CHECK(so, ...) do {						\
	if (!(so)) {							\
		printf("# %s:%d: %s\n# ", __FILE__, __LINE__, #so);	\
		unit_die(" " __VA_ARGS__);				\
	}								\
} while (0)

/* TAP. */
#define UNIT_PLAN(n)	printf("1..%u\n", n)
#define UNIT_OK(n, ...)	(printf("ok %u - ", n), printf(__VA_ARGS__), puts(""))

#endif /* UNIT_H */
