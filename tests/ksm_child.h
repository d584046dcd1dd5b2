/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_child.h - other processes, which execute calls. Part of ksm_util.h.
 */
#ifndef KSM_CHILD_H
#define KSM_CHILD_H

#include <sys/types.h>

/**
 * struct ksm_child - a process that runs functions of this program on demand
 * @pid: its process id
 * @calls: our end of the socket by which it is told what to do
 * @answers: our end of the pipe by which it says what came of it
 *
 * It is a fork of the caller, so what the caller mapped before is at the same
 * address in it, and functions have the same addresses too. It dies with the
 * process that made it.
 */
struct ksm_child {
	pid_t pid;
	int calls;
	int answers;
};

typedef long (*ksm_fn)(long a, long b, long c, long d);

void ksm_spawn(struct ksm_child *c);
/* Run fn(a, b, c, d) in the child and return what it returned. */
long ksm_call4(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e);
#define KSM_ARG(x)		((long)(x))
#define ksm_call(c, fn, a, b, d) \
	ksm_call4(c, fn, KSM_ARG(a), KSM_ARG(b), KSM_ARG(d), 0)
/* The two halves of ksm_call(), for a child that works while we do. */
void ksm_call_start(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e);
long ksm_call_finish(struct ksm_child *c);
/* Let the child exit, or kill it; both wait for it. Return the wait status. */
int ksm_end(struct ksm_child *c);
int ksm_kill(struct ksm_child *c);

/* Functions for ksm_call(): (addr, npages, seed) or (area, addr, npages). */
long ksm_fn_fill(long addr, long npages, long seed, long unused);
long ksm_fn_fill_same(long addr, long npages, long seed, long unused);
long ksm_fn_wrong(long addr, long npages, long seed, long unused);
long ksm_fn_wrong_same(long addr, long npages, long seed, long unused);
long ksm_fn_zero(long addr, long npages, long unused, long unused2);
long ksm_fn_wrong_zero(long addr, long npages, long unused, long unused2);
long ksm_fn_register(long area, long addr, long npages, long unused);
/* (dev, addr, npages): makes an area of its own; returns its fd. */
long ksm_fn_area_register(long dev, long addr, long npages, long unused);
/* How many pages were merged, or -errno. */
long ksm_fn_merge_range(long area, long addr, long npages, long unused);
long ksm_fn_unmerge(long area, long unused, long unused2, long unused3);
long ksm_fn_close(long fd, long unused, long unused2, long unused3);
long ksm_fn_scan(long scan, long npages, long unused, long unused2);
long ksm_fn_become(long uid, long unused, long unused2, long unused3);

#endif /* KSM_CHILD_H */
