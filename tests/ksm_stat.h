/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_stat.h - what the driver counts and is set to, as its files in /sys say. Part of ksm_util.h.
 */
#ifndef KSM_STAT_H
#define KSM_STAT_H

#include <stdbool.h>

/* The value of /sys/class/misc/ksm/NAME. */
long long ksm_stat(const char *name);
/* What the file says, which may have been counted a while ago. */
long long ksm_stat_told(const char *name);
/*
 * Wait until it is @value, for what happens in the background (shared pages that
 * nobody maps any more are freed a moment later); false after KSM_PATIENCE.
 */
bool ksm_wait_stat(const char *name, long long value);
/* Wait until the counter has grown by @more; false after @seconds. */
bool ksm_wait_more(const char *name, long long more, double seconds);
/* Wait until it is @value or more; false after KSM_PATIENCE. */
bool ksm_wait_least(const char *name, long long value);
/* Wait until it does not change for half a second; false after KSM_PATIENCE. */
bool ksm_wait_quiet(const char *name);

#endif /* KSM_STAT_H */
