/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * saved.h - how much is saved already, as page tables say, for bench.c
 */
#ifndef BENCH_SAVED_H
#define BENCH_SAVED_H

#include <stddef.h>
#include <stdint.h>

#include "../ksm_util.h"

/**
 * saved_open() - choose pages to look at, and find out what can be saved of them
 * @workers: processes that have the memory
 * @nr: how many
 * @base: where it is in each
 * @npages: its length
 * @page: writes what page @index of worker @rank holds
 *
 * Dies if it cannot be done. saved_close() ends it.
 */
void saved_open(const struct ksm_child *workers, unsigned int nr, const char *base, size_t npages,
		void (*page)(uint64_t *page, size_t rank, size_t index));
/* The part of what can be saved that is saved now: 0 to 1. */
double saved_part(void);
void saved_close(void);

#endif /* BENCH_SAVED_H */
