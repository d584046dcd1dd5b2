/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * alone.h - what is measured of /dev/ksm alone, for bench.c: several threads, huge pages that are
 * split, a virtual machine's memory
 */
#ifndef BENCH_ALONE_H
#define BENCH_ALONE_H

extern const char *young_module;

void speed_up(void);
/*
 * What does it take to split a huge page, and what to merge a page of it? With more and
 * more pages to merge in each, the CPU time is on a straight line.
 */
void split_cost(void);
/*
 * A virtual machine's memory. The write bit: what passes cost, and the guest. The accessed
 * bit: what it costs to ask for it, and for how many pages it says nothing.
 */
void guest(void);

#endif /* BENCH_ALONE_H */
