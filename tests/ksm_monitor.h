/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_monitor.h - a thread that serves what a userfaultfd reports, for tests of watched memory
 */
#ifndef KSM_MONITOR_H
#define KSM_MONITOR_H

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm_util.h"

static inline int copy_in(int uffd, char *to, size_t npages, const void *from, uint64_t mode)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = npages * PGSZ, .mode = mode,
	};

	return ioctl(uffd, UFFDIO_COPY, &copy) ? -errno : 0;
}

static inline void protect(int uffd, char *addr, size_t npages, bool wp)
{
	struct uffdio_writeprotect arg = {
		.range = { .start = (uintptr_t)addr, .len = npages * PGSZ },
		.mode = wp ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &arg))
		ksm_die("UFFDIO_WRITEPROTECT: %s", strerror(errno));
}

/**
 * struct monitor - a thread that serves what a userfaultfd reports
 * @uffd: the userfaultfd
 * @base: start of the watched memory
 * @source: what is missing is copied from here; NULL: nothing may be missing
 * @missing: how many pages were missing
 * @minor: how many were in the page cache only
 * @wp: how many writes to protected pages were reported
 * @wrong: how many reports should not have come, or could not be served
 * @stop: end
 */
struct monitor {
	int uffd;
	char *base;
	const char *source;
	unsigned long missing, minor, wp, wrong;
	bool stop;
	pthread_t thread;
};

static inline void *monitor_run(void *arg)
{
	struct monitor *m = arg;
	struct pollfd pfd = { .fd = m->uffd, .events = POLLIN };
	struct uffd_msg msg;

	while (!__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE)) {
		struct uffdio_range range = { .len = PGSZ };
		char *page;

		if (poll(&pfd, 1, 20) <= 0 || read(m->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (msg.event != UFFD_EVENT_PAGEFAULT) {
			m->wrong++;
			continue;
		}
		page = (char *)(uintptr_t)(msg.arg.pagefault.address & ~(PGSZ - 1));
		range.start = (uintptr_t)page;
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			m->wp++;
			protect(m->uffd, page, 1, false);
			continue;
		}
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
			m->minor++;
		else
			m->missing++;
		if (!m->source || copy_in(m->uffd, page, 1, m->source + (page - m->base), 0)) {
			m->wrong++;
			/* Or it would wait for ever. */
			ioctl(m->uffd, UFFDIO_WAKE, &range);
		}
	}
	return NULL;
}

static inline void monitor_start(struct monitor *m)
{
	if (pthread_create(&m->thread, NULL, monitor_run, m))
		ksm_die("cannot start a thread");
}

static inline void monitor_stop(struct monitor *m)
{
	__atomic_store_n(&m->stop, true, __ATOMIC_RELEASE);
	pthread_join(m->thread, NULL);
}

#endif /* KSM_MONITOR_H */
