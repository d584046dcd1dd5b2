/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_frames.h - page frames, as pagemap, kpageflags and kpagecount tell of them; pid 0 is the
 * caller. Part of ksm_util.h.
 */
#ifndef KSM_FRAMES_H
#define KSM_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Bits of /proc/PID/pagemap and /proc/kpageflags. */
#define PM_PFN_MASK		((1ULL << 55) - 1)
#define PM_SOFT_DIRTY		(1ULL << 55)
#define PM_EXCLUSIVE		(1ULL << 56)
#define PM_UFFD_WP		(1ULL << 57)
#define PM_SWAPPED		(1ULL << 62)
#define PM_PRESENT		(1ULL << 63)
#define KPF_BIT_LRU		5
#define KPF_BIT_ANON		12
#define KPF_BIT_SWAPCACHE	13
#define KPF_BIT_HUGE		17
#define KPF_BIT_KSM		21
#define KPF_BIT_THP		22
#define KPF_BIT_ZERO_PAGE	24
#define KPF_BIT_MLOCKED		33

uint64_t ksm_pagemap(pid_t pid, const void *addr);
/* Does this kernel keep soft-dirty bits? */
bool ksm_has_soft_dirty(void);
/*
 * Let the CPUs put what they hold in batches onto the kernel's lists. move_pages() has them do
 * it before it looks whether a page is where it shall go, and one of ours is: nothing moves.
 * (Compacting memory begins with it, too, and then fills the batches with pages that it moved.)
 */
void ksm_drain_batches(void);
/* The frame at @addr, or 0 if none is mapped there. */
uint64_t ksm_pfn(pid_t pid, const void *addr);
void ksm_pfns(pid_t pid, const void *addr, size_t npages, uint64_t *pfns);
/* How many pages of the two ranges are mapped and are the same frame. */
size_t ksm_same_frames(pid_t pid_a, const void *a, pid_t pid_b, const void *b,
		       size_t npages);
/* How many pages of the range are mapped to a frame other than pfns[i]. */
size_t ksm_moved(pid_t pid, const void *addr, size_t npages, const uint64_t *pfns);
/* How many different frames the range maps. */
size_t ksm_distinct(pid_t pid, const void *addr, size_t npages);
uint64_t ksm_kpageflags(uint64_t pfn);
bool ksm_pfn_is(uint64_t pfn, int kpf_bit);
uint64_t ksm_kpagecount(uint64_t pfn);
/* The frame of the kernel's zero page. */
uint64_t ksm_zero_pfn(void);

#endif /* KSM_FRAMES_H */
