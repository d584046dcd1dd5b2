/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * workload.h - what memory is filled with, and what is to be measured of it, for bench.c
 */
#ifndef BENCH_WORKLOAD_H
#define BENCH_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../ksm_util.h"

#define MIB		(1UL << 20)
#define MIB_PAGES	(MIB / PGSZ)

/* What to measure of a workload. */
enum {
	CONVERGE	= 1 << 0,	/* from attaching to 99 % of what can be saved */
	TWO_PASSES	= 1 << 1,	/* the first two passes, where nothing can be saved */
	IDLE		= 1 << 2,	/* passes over memory that nobody writes */
	CHURN		= 1 << 3,	/* passes with a tenth of it rewritten before each */
	FIRST_WRITE	= 1 << 4,	/* how long a write to a merged page takes */
	LATENCY		= 1 << 5,	/* random writes of another process meanwhile */
	SPEED_UP	= 1 << 6,	/* two threads against one */
	TLB		= 1 << 7,	/* interrupts for flushes while merging */
	COST		= 1 << 8,	/* CPU a page instead of in all */
	SPARSE		= 1 << 9,	/* a few pages in a large range */
	SLOW		= 1 << 10,	/* takes ksmd long: left out under emulation */
	HELD		= 1 << 11,	/* somebody else holds references to all pages */
	SPLITS		= 1 << 12,	/* huge pages of which a part can be shared */
	GUEST		= 1 << 13,	/* a virtual machine maps the memory */
	NO_ROOM		= 1 << 14,	/* max_kernel_pages allows no shared page; not for ksmd */
};

/**
 * struct workload - what memory is filled with
 * @name: in the results
 * @workers: number of processes
 * @mib: memory of each
 * @page: write page @index of worker @rank
 * @saved: of 1000 pages that all workers have, how many can be saved
 * @what: what to measure
 * @huge: on huge pages
 * @zero: there are zero pages among them
 */
struct workload {
	const char *name;
	unsigned int workers;
	size_t mib;
	void (*page)(uint64_t *page, size_t rank, size_t index);
	unsigned int saved;
	unsigned int what;
	bool huge;
	bool zero;
};

#define SPARSE_PAGES 64

extern const struct workload *load;
extern size_t load_pages;	/* of one worker */

unsigned long all_pages(void);
double possible(void);

void unique_page(uint64_t *page, uint64_t seed, size_t index);
/* A field map that all have, seven tenths of the memory, and data of one's own. */
void fieldmap_page(uint64_t *page, size_t rank, size_t index);
/* The same in one process: four quarters that are like four processes. */
void quarters_page(uint64_t *page, size_t rank, size_t index);
void zero_page(uint64_t *page, size_t rank, size_t index);
void own_page(uint64_t *page, size_t rank, size_t index);
/* Equal but for the last eight bytes. */
void tail_page(uint64_t *page, size_t rank, size_t index);
/* All the same. */
void same_page(uint64_t *page, size_t rank, size_t index);
/* Of each huge page the first ones; the same in all workers. */
void part_page(uint64_t *page, size_t rank, size_t index, size_t part);

#endif /* BENCH_WORKLOAD_H */
