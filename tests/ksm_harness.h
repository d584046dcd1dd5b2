/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_harness.h - the kselftest harness with the fixture that most tests use
 *
 * Gives a test self->k, the device with kksmd stopped and nothing registered,
 * and self->area, an area fd of the test process. A test scans by itself
 * through self->k, so that it knows how often each page was visited.
 */
#ifndef KSM_HARNESS_H
#define KSM_HARNESS_H

#include "ksm_util.h"
#include "kselftest_harness.h"

/* What hangs is ended after so many seconds; no test takes that long, however busy the machine. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 600

FIXTURE(device)
{
	struct ksm k;
	int area;
};

FIXTURE_SETUP(device)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(device)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* The driver's counters; all of them, so that none can drift unseen. */
#define EXPECT_STATS(shared, sharing, unshared, volatile_, zero) do { \
	EXPECT_EQ(ksm_stat("pages_shared"), (long long)(shared)); \
	EXPECT_EQ(ksm_stat("pages_sharing"), (long long)(sharing)); \
	EXPECT_EQ(ksm_stat("pages_unshared"), (long long)(unshared)); \
	EXPECT_EQ(ksm_stat("pages_volatile"), (long long)(volatile_)); \
	EXPECT_EQ(ksm_stat("zero_pages"), (long long)(zero)); \
} while (0)

#endif /* KSM_HARNESS_H */
