/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_twins.h - ordinary memory that is filled and registered: a buffer, or two that are equal
 */
#ifndef KSM_TWINS_H
#define KSM_TWINS_H

#include <stddef.h>
#include <stdint.h>

#include "ksm_util.h"

/* Two buffers of the same pages, registered with @area. */
static inline void make_twins(int area, char **a, char **b, size_t n, uint64_t seed)
{
	*a = ksm_mmap(n);
	*b = ksm_mmap(n);
	ksm_fill(*a, n, seed);
	ksm_fill(*b, n, seed);
	if (ksm_register(area, *a, n) || ksm_register(area, *b, n))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
}

static inline char *twin_of(int area, size_t npages, uint64_t seed)
{
	char *p = ksm_mmap(npages);

	ksm_fill(p, npages, seed);
	if (ksm_register(area, p, npages))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
	return p;
}

#endif /* KSM_TWINS_H */
