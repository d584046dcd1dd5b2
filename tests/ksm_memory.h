/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_memory.h - memory of the test program, and what it holds. Part of ksm_util.h.
 */
#ifndef KSM_MEMORY_H
#define KSM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A constant for each build, as most tests have arrays of pages: tests/Makefile, PAGE_SIZE=. */
#ifndef PGSZ
#define PGSZ			4096UL
#endif

#define KSM_HUGE_PAGES		((int)(PGSZ / 8)) /* pages of a huge page, and of a chunk */
#define KSM_HUGE_SIZE		(KSM_HUGE_PAGES * PGSZ)

/* Private anonymous memory, not populated, never huge, with holes around it. */
void *ksm_mmap(size_t npages);
/* @n huge pages in a row, one byte of each written; dies if the kernel has none to give. */
char *ksm_mmap_huge(size_t n);
/* Page @index of the pattern @seed; never all zero. */
void ksm_fill_page(void *page, uint64_t seed, uint64_t index);
bool ksm_page_is(const void *page, uint64_t seed, uint64_t index);
bool ksm_page_is_zero(const void *page);
/* Pages with index 0, 1, 2, ..., and how many of them are wrong. */
void ksm_fill(void *addr, size_t npages, uint64_t seed);
size_t ksm_wrong(const void *addr, size_t npages, uint64_t seed);
/* The same for pages that are all equal. */
void ksm_fill_same(void *addr, size_t npages, uint64_t seed);
size_t ksm_wrong_same(const void *addr, size_t npages, uint64_t seed);
size_t ksm_wrong_zero(const void *addr, size_t npages);

/* Can a byte be read, by a call that fails where a program would get a signal? */
bool ksm_can_read(const void *addr);

static inline char *ksm_page(const void *addr, size_t index)
{
	return (char *)addr + index * PGSZ;
}

#endif /* KSM_MEMORY_H */
