/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * meter.h - how long passes take and what they come to, for bench.c
 */
#ifndef BENCH_METER_H
#define BENCH_METER_H

#include <stdbool.h>

#include "scanner.h"

/* A point of the curve of what was saved, as a part of what can be. */
struct point {
	double wall;
	double cpu;
	double saved;
};

#define MOST_PASSES 20

/* Let /dev/ksm visit so many pages; the wall and CPU time of that. */
struct point scan(unsigned long pages);
/* Start the scanner and wait for @goal. It runs when this returns, if it is a thread. */
bool converge(const struct scanner *scanner, double goal, struct point *at);
/* The scanner runs; let it finish @n passes. */
void let_pass(const struct scanner *scanner, unsigned int n);
/* CPU of a pass over memory that nobody writes; the scanner runs. */
double idle(const struct scanner *scanner);
/* So many whole passes from a standing start; it stands again afterwards. */
struct point some_passes(const struct scanner *scanner, unsigned int n);
/* The sum of the line of flushes, over all CPUs. */
double tlb_interrupts(void);
/* Wait until what was freed with RCU's help is free. */
double free_pages(void);

#endif /* BENCH_METER_H */
