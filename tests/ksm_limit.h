/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_limit.h - max_kernel_pages, for tests that set it, and a fixture that brings it back
 */
#ifndef KSM_LIMIT_H
#define KSM_LIMIT_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ksm_harness.h"

#define LIMIT	"/sys/module/ksmdev/parameters/max_kernel_pages"

static inline void set_limit(long long pages)
{
	char text[32];
	int err;

	snprintf(text, sizeof(text), "%lld", pages);
	err = ksm_write_file(LIMIT, text);
	if (err)
		ksm_die("cannot write %s: %s", LIMIT, strerror(-err));
}

/* Wait until no shared page is allocated; with a scan now and then, or without. */
static inline bool wait_no_kernel_pages(const struct ksm *k)
{
	double end = ksm_now() + KSM_PATIENCE;

	while (ksm_stat("kernel_pages")) {
		if (ksm_now() > end)
			return false;
		if (k && ksm_scan(k->scan, 64))
			return false;
		usleep(20000);
	}
	return true;
}

FIXTURE(limit) {
	struct ksm k;
	int area;
	long long old;
};

FIXTURE_SETUP(limit)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(wait_no_kernel_pages(&self->k));
	self->area = ksm_area(&self->k);
	self->old = ksm_stat("max_kernel_pages");
	/* A quarter of the memory unless somebody said otherwise. */
	ASSERT_LT(1000, self->old);
}

FIXTURE_TEARDOWN(limit)
{
	set_limit(self->old);
	close(self->area);
	ksm_finish(&self->k);
}

#endif /* KSM_LIMIT_H */
