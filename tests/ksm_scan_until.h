/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_scan_until.h - a process that scans until a flag is set, beside what a test does
 */
#ifndef KSM_SCAN_UNTIL_H
#define KSM_SCAN_UNTIL_H

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "ksm_util.h"

static inline long fn_scan_until(long fd, long stop, long unused, long unused2)
{
	volatile int *stopped = (int *)stop;
	long calls = 0;

	(void)unused;
	(void)unused2;
	for (; !*stopped; calls++) {
		int ret = ksm_scan(fd, 1000);

		if (ret)
			return ret;
	}
	return calls;
}

static inline int *shared_flag(void)
{
	int *flag = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			 -1, 0);

	if (flag == MAP_FAILED)
		ksm_die("mmap: %s", strerror(errno));
	return flag;
}

#endif /* KSM_SCAN_UNTIL_H */
