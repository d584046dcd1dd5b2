/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bench.h - how the parts of bench say how it goes on, and what they measured
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "scanner.h"

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void sample(const char *workload, const char *figure, const char *unit,
	    const struct scanner *scanner, double value);

#endif /* BENCH_BENCH_H */
