/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * worker.h - the processes whose memory is scanned, for bench.c
 *
 * What takes four numbers is run in them, as tell_all() and ksm_call() do it.
 */
#ifndef BENCH_WORKER_H
#define BENCH_WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "../ksm_util.h"
#include "scanner.h"

#define MAX_WORKERS	4

/* Shared between all processes. */
extern struct common {
	atomic_bool stop;
	atomic_long left;	/* pages that callers of KSM_SCAN still have to visit */
	atomic_int ready;
} *common;

extern char *base;		/* where they all have them */
extern char *place;		/* that, with space around it */
extern size_t place_size;
extern struct ksm_child worker[MAX_WORKERS];

/* Memory that nobody touched, nor its page tables. */
long renew(long unused, long unused2, long unused3, long unused4);
long fill(long rank, long unused, long unused2, long unused3);
/* Contents that no page had before, in a tenth of the pages: each @round in another. */
long rewrite(long rank, long round, long unused, long unused2);
long hold(long unused, long unused2, long unused3, long unused4);
long fill_part(long rank, long part, long unused, long unused2);
/* In pages. */
long pss(long unused, long unused2, long unused3, long unused4);
long huge(long unused, long unused2, long unused3, long unused4);
/*
 * The median time of a first write, in ns, over pages that are spread over @npages: each
 * the first of ten, which is merged in all workloads that have such pages.
 */
long first_write(long npages, long unused, long unused2, long unused3);
long spin_start(long unused, long unused2, long unused3, long unused4);
/*
 * A loop of random writes for so many milliseconds: the 99th percentile of how long
 * 64 of them take, in ns.
 */
long random_writes(long ms, long unused, long unused2, long unused3);
/* Call KSM_SCAN on a CPU of its own until all is visited. */
long scan_share(long caller, long unused, long unused2, long unused3);

/* Have all workers run fn(rank, a) at the same time; the sum of what it returns. */
long tell_all(ksm_fn fn, long a);
void attach_all(const struct scanner *scanner);
void detach_all(const struct scanner *scanner);
/* A place for the workers' memory, the same in all; nothing else is next to it. */
bool map_memory(void);

#endif /* BENCH_WORKER_H */
