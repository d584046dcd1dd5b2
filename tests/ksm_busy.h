/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_busy.h - threads that do one thing for ever, for tests of what that does to others
 */
#ifndef KSM_BUSY_H
#define KSM_BUSY_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "ksm_util.h"

/* Where several do it the mmap lock is never free. */
static inline void *ksm_busy_mapper(void *arg)
{
	const size_t size = 1 << 20;

	for (;;) {
		char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			       -1, 0);

		if (p == MAP_FAILED)
			continue;
		p[0] = p[size - PGSZ] = 1;
		munmap(p, size);
	}
	return arg;
}

static inline void *ksm_busy_loop(void *arg)
{
	for (volatile unsigned long i = 0;; i++)
		;
	return arg;
}

/* With small stacks. False if not all could be made. */
static inline bool ksm_busy_threads(long nr, void *(*main)(void *))
{
	pthread_attr_t attr;
	pthread_t id;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	while (nr--)
		if (pthread_create(&id, &attr, main, NULL))
			return false;
	return true;
}

#endif /* KSM_BUSY_H */
