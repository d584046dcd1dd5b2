/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_access.h - what tests of access to merged pages share
 */
#ifndef KSM_ACCESS_H
#define KSM_ACCESS_H

#include <time.h>

#include "ksm_harness.h"
#include "ksm_twins.h"

#define N 64

static inline long fn_peek(long addr, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return *(volatile long *)addr;
}

static inline uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ULL + ts.tv_nsec / 1000;
}

#endif /* KSM_ACCESS_H */
