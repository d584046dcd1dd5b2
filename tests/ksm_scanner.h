/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_scanner.h - a thread that scans all the time, beside what a test does
 */
#ifndef KSM_SCANNER_H
#define KSM_SCANNER_H

#include <pthread.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm_util.h"

/* @pages: how many a call of KSM_SCAN goes over */
struct ksm_scanner {
	int fd;
	uint64_t pages;
	pthread_t thread;
	_Atomic int stop;
};

static void *ksm_scanner_main(void *arg)
{
	struct ksm_scanner *s = arg;

	while (!s->stop)
		if (ksm_scan(s->fd, s->pages))
			ksm_die("KSM_SCAN failed; see the kernel log");
	return NULL;
}

static inline void ksm_scanner_start(struct ksm_scanner *s, int dev, uint64_t pages)
{
	s->fd = ioctl(dev, KSM_CREATE_SCAN);
	s->pages = pages;
	s->stop = 0;
	if (s->fd < 0 || pthread_create(&s->thread, NULL, ksm_scanner_main, s))
		ksm_die("no thread that scans");
}

static inline void ksm_scanner_stop(struct ksm_scanner *s)
{
	s->stop = 1;
	pthread_join(s->thread, NULL);
	close(s->fd);
}

#endif /* KSM_SCANNER_H */
