// SPDX-License-Identifier: GPL-2.0-only
/*
 * workload.c - what memory is filled with, for bench.c
 */
#include <string.h>

#include "workload.h"

const struct workload *load;
size_t load_pages;	/* of one worker */

unsigned long all_pages(void)
{
	return load->workers * load_pages;
}

double possible(void)
{
	return (double)load_pages * load->saved / 1000;
}

void unique_page(uint64_t *page, uint64_t seed, size_t index)
{
	uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15 ^ (index + 1) * 0xd1342543de82ef95;
	size_t i;

	for (i = 0; i < PGSZ / sizeof(*page); i++) {
		x = x * 0x5851f42d4c957f2d + 0x14057b7ef767814f;
		page[i] = x;
	}
}

/* Whose pages nobody else has. */
#define PRIVATE(rank) (1000 + (rank))
#define COMMON 2008

void fieldmap_page(uint64_t *page, size_t rank, size_t index)
{
	unique_page(page, index < load_pages / 10 * 7 ? COMMON : PRIVATE(rank), index);
}

void quarters_page(uint64_t *page, size_t rank, size_t index)
{
	size_t quarter = load_pages / 4;

	(void)rank;
	index %= quarter * 4;
	unique_page(page, index % quarter < quarter / 10 * 7 ? COMMON : PRIVATE(index / quarter),
		    index % quarter);
}

void zero_page(uint64_t *page, size_t rank, size_t index)
{
	if (index % 10 < 6)
		memset(page, 0, PGSZ);
	else
		unique_page(page, PRIVATE(rank), index);
}

void own_page(uint64_t *page, size_t rank, size_t index)
{
	unique_page(page, PRIVATE(rank), index);
}

void tail_page(uint64_t *page, size_t rank, size_t index)
{
	unique_page(page, COMMON, 0);
	page[PGSZ / sizeof(*page) - 1] = rank << 32 | index;
}

void same_page(uint64_t *page, size_t rank, size_t index)
{
	(void)rank;
	(void)index;
	unique_page(page, COMMON, 0);
}

void part_page(uint64_t *page, size_t rank, size_t index, size_t part)
{
	unique_page(page, index % KSM_HUGE_PAGES < part ? COMMON : PRIVATE(rank), index);
}
