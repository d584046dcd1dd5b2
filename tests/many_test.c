// SPDX-License-Identifier: GPL-2.0-only
/*
 * many_test.c - many regions, and much that is known of them: nothing is quadratic
 *
 * What calls take is compared with what they take for a tenth, as CPU time of the caller.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define PARAM	"/sys/module/ksmdev/parameters/regions_per_area"

/* Seconds after which something hangs, if nothing changes. */
#define HANGS	60

enum call { REGISTER, UNMERGE, FDINFO, SCAN, MERGE_RANGE, CLOSE, CALLS };

static const char *const call_names[] = {
	"KSM_REGISTER_MEMORY_REGION", "KSM_UNMERGE", "fdinfo", "KSM_SCAN", "KSM_MERGE_RANGE",
	"close",
};

/* One that goes over all @nr regions of a page each. */
static void call_once(const struct ksm *k, int area, char *mem, size_t nr, enum call call)
{
	int err = 0;

	switch (call) {
	case REGISTER:
		for (size_t i = 0; i < nr && !err; i++)
			err = ksm_register(area, ksm_page(mem, i), 1);
		break;
	case UNMERGE:
		err = ksm_unmerge(area);
		break;
	case FDINFO:
		err = ksm_fdinfo(area, "regions") != (long long)nr;
		break;
	case SCAN:
		err = ksm_scan(k->scan, nr);
		break;
	case MERGE_RANGE:
		err = ksm_merge_range(area, mem, nr, NULL);
		break;
	default:
		err = close(area);
	}
	if (err)
		ksm_die("%s with %zu regions: %d", call_names[call], nr, err);
}

/* What each takes, in CPU time: the best of some rounds. */
static void times_of(const struct ksm *k, char *mem, size_t nr, int rounds, double best[CALLS])
{
	for (int round = 0; round < rounds; round++) {
		int area = ksm_area(k);

		for (enum call call = 0; call < CALLS; call++) {
			double took, begin = ksm_cpu_now();

			call_once(k, area, mem, nr, call);
			took = ksm_cpu_now() - begin;
			if (!round || took < best[call])
				best[call] = took;
		}
	}
}

/* Ten times as many regions take ten times as long, and not a hundred times. */
TEST_F_TIMEOUT(device, many_regions, 900)
{
	const size_t few = ksm_is_slow() ? 500 : 2000, many = 10 * few;
	double part[CALLS], all[CALLS];
	char *mem = ksm_mmap(many);

	ksm_fill(mem, many, 1);
	ASSERT_EQ(0, ksm_write_file(PARAM, "20000"));
	times_of(&self->k, mem, few, 5, part);
	times_of(&self->k, mem, many, 2, all);
	for (enum call call = 0; call < CALLS; call++) {
		TH_LOG("%s: %zu regions %.4f s, %zu regions %.4f s", call_names[call], few,
		       part[call], many, all[call]);
		EXPECT_GT(40 * part[call], all[call]);
	}
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_wrong(mem, many, 1));
	ASSERT_EQ(0, ksm_write_file(PARAM, "1024"));
}

/* Does a statistic come down to a value, however long it takes, if it only goes on falling? */
static bool falls_to(const char *name, long long value)
{
	long long now, least = ksm_stat(name);
	double end = ksm_now() + HANGS;

	while ((now = ksm_stat(name)) > value && ksm_now() < end) {
		if (now < least) {
			least = now;
			end = ksm_now() + HANGS;
		}
		usleep(10000);
	}
	return now <= value;
}

/* What is closed with a lot in it is freed in the end, and keeps nobody from coming and going. */
TEST_F_TIMEOUT(device, close_many_chunks, 600)
{
	const size_t n = 2000;
	/* Each has more than this, for one page. */
	const long long tables = 128 * n;
	long long metadata = ksm_stat("metadata_bytes");
	char *mem = mmap(NULL, n * KSM_HUGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	ASSERT_NE(MAP_FAILED, mem);
	madvise(mem, n * KSM_HUGE_SIZE, MADV_NOHUGEPAGE);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < n; i++)
			ksm_fill_page(mem + i * KSM_HUGE_SIZE, 1, i);
		ASSERT_EQ(0, ksm_register(self->area, mem, n * KSM_HUGE_PAGES));
		ksm_passes(&self->k, 3);
		EXPECT_LT(metadata + tables, ksm_stat("metadata_bytes"));
		/* The second time it is a hole that is forgotten. */
		if (round == 1) {
			ASSERT_EQ(0, madvise(mem, n * KSM_HUGE_SIZE, MADV_DONTNEED));
			munmap(mem, n * KSM_HUGE_SIZE);
			ksm_passes(&self->k, 3);
			EXPECT_GT(metadata + tables, ksm_stat("metadata_bytes"));
			mem = mmap(mem, n * KSM_HUGE_SIZE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
			madvise(mem, n * KSM_HUGE_SIZE, MADV_NOHUGEPAGE);
		}
		ASSERT_EQ(0, ksm_remove(self->area));
		EXPECT_EQ(0, ksm_stat("regions"));
		/* The index may have kept some of its room. */
		ASSERT_TRUE(falls_to("metadata_bytes", metadata + tables / 2));
	}
}

TEST_HARNESS_MAIN
