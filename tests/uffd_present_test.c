// SPDX-License-Identifier: GPL-2.0-only
/*
 * uffd_present_test.c - pages that are there never look missing to a userfaultfd
 *
 * Whatever kind of memory it watches, and for what; whether they were merged before it
 * watched or are merged meanwhile, written, unmerged, or taken out of the file below them.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_monitor.h"
#include "ksm_told.h"
#include "ksm_twins.h"

#define N 64

FIXTURE(watched) {
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(watched) {
	bool file;
	uint64_t features, mode;
};

FIXTURE_VARIANT_ADD(watched, anonymous) {
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(watched, anonymous_wp) {
	.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
};

FIXTURE_VARIANT_ADD(watched, shmem_missing) {
	.file = true,
	.features = UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(watched, shmem_minor) {
	.file = true,
	.features = UFFD_FEATURE_MINOR_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MINOR,
};

FIXTURE_SETUP(watched)
{
	(void)variant;
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(watched)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* Merged first, watched afterwards: what is there stays there, whatever is done to it. */
TEST_F(watched, merged_before)
{
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 20);
	struct monitor m = { .base = a };
	struct ksm_child c;
	int fd = -1;

	if (variant->file) {
		fd = memfd_create("uffd_test", MFD_CLOEXEC);
		ASSERT_EQ(ftruncate(fd, N * PGSZ), 0);
		ASSERT_EQ(mmap(a, N * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
			       fd, 0), a);
	}
	ksm_fill(a, N, 20);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	m.uffd = ksm_uffd_open(variant->features);
	ksm_uffd_register(m.uffd, a, N, variant->mode);
	monitor_start(&m);
	ksm_passes(&self->k, 3);
	ksm_spawn(&c);
	ksm_call(&c, ksm_fn_fill, ksm_page(a, N / 4), N / 4, 21);
	/* Of a quarter of the pages the child still has what was merged. */
	ksm_fill(a, N / 2, 22);
	if (variant->file)
		ASSERT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, N * PGSZ), 0);
	ksm_passes(&self->k, 3);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	ksm_passes(&self->k, 3);
	EXPECT_EQ(told_pagemap(0, a, N, PM_PRESENT, PM_PRESENT), N);
	EXPECT_EQ(ksm_wrong(a, N / 2, 22), 0);
	for (int i = N / 2; i < N; i++)
		EXPECT_TRUE(ksm_page_is(ksm_page(a, i), 20, i));
	EXPECT_EQ(ksm_wrong(b, N, 20), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N / 4, 20), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, ksm_page(a, N / 4), N / 4, 21), 0);
	EXPECT_EQ(m.missing + m.minor + m.wp + m.wrong, 0);
	EXPECT_EQ(ksm_end(&c), 0);
	if (variant->mode & UFFDIO_REGISTER_MODE_WP) {
		protect(m.uffd, a, N, true);
		ksm_fill(a, N, 23);
		EXPECT_EQ(m.wp, N);
		EXPECT_EQ(ksm_wrong(a, N, 23), 0);
	}
	monitor_stop(&m);
	EXPECT_EQ(m.missing + m.minor + m.wrong, 0);
	close(m.uffd);
	if (variant->file)
		close(fd);
}

struct reader {
	const char *addr;
	unsigned long rounds;
	bool stop;
};

static void *read_all_the_time(void *arg)
{
	struct reader *r = arg;

	while (!__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE)) {
		for (size_t i = 0; i < N; i++)
			(void)*(volatile const char *)ksm_page(r->addr, i);
		__atomic_add_fetch(&r->rounds, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* Pages that are there never look missing, while kksmd merges them and they are written. */
TEST_F_TIMEOUT(watched, never_absent, 300)
{
	int fd = memfd_create("uffd_test", MFD_CLOEXEC), uffd = ksm_uffd_open(variant->features);
	char *a = ksm_mmap(N), *b = twin_of(self->area, N, 12);
	struct monitor m = { .uffd = uffd, .base = a };
	struct reader r = { .addr = a };
	enum { ROUNDS = 12 };
	pthread_t thread;
	size_t wrong = 0, merged = 0;

	ASSERT_EQ(ftruncate(fd, N * PGSZ), 0);
	if (variant->file)
		ASSERT_EQ(mmap(a, N * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd,
			       0), a);
	if (variant->mode & UFFDIO_REGISTER_MODE_MINOR) {
		/* In the page cache. */
		for (int i = 0; i < N; i++)
			ASSERT_EQ(pwrite(fd, b, PGSZ, i * PGSZ), (ssize_t)PGSZ);
	}
	ksm_fill(a, N, 12);
	/* What was written is there, whether or not the file has a page. */
	if (variant->mode == UFFDIO_REGISTER_MODE_MISSING && variant->file)
		ASSERT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, N * PGSZ),
			  0);
	ksm_uffd_register(uffd, a, N, variant->mode);
	monitor_start(&m);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, read_all_the_time, &r), 0);
	ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 100), 0);
	for (int round = 0; round < ROUNDS; round++) {
		long long scans = ksm_stat("full_scans");
		double end = ksm_now() + KSM_PATIENCE;

		for (int i = 0; i < N; i++)
			ksm_fill_page(ksm_page(a, i), 12, i);
		while (ksm_stat("full_scans") < scans + 4 && ksm_now() < end)
			usleep(1000);
		merged += ksm_same_frames(0, a, 0, b, N);
		wrong += ksm_wrong(a, N, 12);
	}
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	__atomic_store_n(&r.stop, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	monitor_stop(&m);
	EXPECT_EQ(wrong, 0);
	EXPECT_EQ(m.missing + m.minor + m.wp + m.wrong, 0);
	EXPECT_EQ(ksm_wrong(b, N, 12), 0);
	TH_LOG("%zu of %d merged", merged, ROUNDS * N);
	/* Where that is safe, and not where it is not. */
	if (variant->file) {
		EXPECT_EQ(merged, 0);
	} else {
		EXPECT_GT(merged, 0);
	}
	close(uffd);
	close(fd);
}

TEST_HARNESS_MAIN
