/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * measure.h - what is measured of ksmd and of /dev/ksm, one at a time, for bench.c
 */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include "scanner.h"

/* One side: fill the memory, and have it scanned. */
void measure(const struct scanner *scanner);
/*
 * A process next to the others, whose memory is scanned too: how long do its writes
 * take? Once with nobody scanning, then with each of the two.
 */
void latency(const struct scanner *scanner);
/* A range that is nearly all holes: what a pass costs, and what there is to know of it. */
void sparse(const struct scanner *scanner);

#endif /* BENCH_MEASURE_H */
