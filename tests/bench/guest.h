/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guest.h - a virtual machine that reads and writes a process's memory, for bench.c
 */
#ifndef BENCH_GUEST_H
#define BENCH_GUEST_H

/*
 * All to be run in the process that has the memory, as ksm_call() does it.
 *
 * guest_start: (address, pages) it gets this memory; 0, or dies
 * guest_read: (every n-th page) reads a byte of each; ns that it took
 * guest_write: (first, every n-th page, value) writes a byte to each, at its end; ns that
 *	it took
 */
long guest_start(long addr, long npages, long unused, long unused2);
long guest_read(long every, long unused, long unused2, long unused3);
long guest_write(long first, long every, long value, long unused);

#endif /* BENCH_GUEST_H */
