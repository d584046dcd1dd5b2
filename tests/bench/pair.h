/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pair.h - two processes with the same memory, for a benchmark that has a VM of its own
 */
#ifndef BENCH_PAIR_H
#define BENCH_PAIR_H

#include "../ksm_util.h"
#include "scanner.h"

#define MIB_PAGES	((long)((1UL << 20) / PGSZ))

/**
 * struct pair - two processes, and their memory
 * @scanner: who is to share it, or NULL for nobody
 * @worker: the processes
 * @mem: where it is in both
 * @npages: how much
 */
struct pair {
	const struct scanner *scanner;
	struct ksm_child worker[2];
	char *mem;
	long npages;
};

/* Both have filled their memory, and let @scanner have it, which does not run yet. Dies if refused. */
void pair_begin(struct pair *pair, const struct scanner *scanner, long npages);
/* How many of their pages are shared by both. */
long pair_shared(const struct pair *pair);
/* Let the scanner pass over it so often that all is shared. */
void pair_share(struct pair *pair);
void pair_end(struct pair *pair);

#endif /* BENCH_PAIR_H */
