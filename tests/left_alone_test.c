// SPDX-License-Identifier: GPL-2.0-only
/*
 * left_alone_test.c - what must be left alone
 *
 * Kinds of memory that cannot be shared this way, or that somebody watches, must not be
 * touched at all: the frames stay, and a write afterwards takes no page fault. Of memory that
 * a userfaultfd watches, what is there is merged, and what is missing or protected stays so;
 * uffd_test.c has the rest.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64
#define HUGE_PAGES KSM_HUGE_PAGES

/* ---- memory that must be left alone ---- */

/*
 * Two registered buffers with equal pages that must not merge: @make maps them.
 * They are compared by frames; writing afterwards must take no page fault.
 */
static char *map_shared_anon(size_t npages)
{
	return mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		    -1, 0);
}

static char *map_file(size_t npages, int flags)
{
	int fd = memfd_create("ksm_vma_test", MFD_CLOEXEC);
	char *p;

	if (fd < 0 || ftruncate(fd, npages * PGSZ))
		ksm_die("memfd_create: %s", strerror(errno));
	p = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE, flags, fd, 0);
	close(fd);
	return p;
}

static char *map_file_shared(size_t npages)
{
	return map_file(npages, MAP_SHARED);
}

static char *map_hugetlb(size_t npages)
{
	if (ksm_write_file("/proc/sys/vm/nr_hugepages", "4"))
		ksm_die("cannot reserve huge pages; the kernel needs hugetlbfs");
	return mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
}

static char *map_droppable(size_t npages)
{
	struct utsname name;
	int major, minor;
	char *p = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
		       0x08 /* MAP_DROPPABLE */ | MAP_ANONYMOUS, -1, 0);

	if (p != MAP_FAILED)
		return p;
	uname(&name);
	if (sscanf(name.release, "%d.%d", &major, &minor) != 2 ||
	    major > 6 || (major == 6 && minor >= 11))
		ksm_die("MAP_DROPPABLE on %s: %s", name.release, strerror(errno));
	/* Not in this kernel: shared memory instead, so that the test says the same. */
	return map_shared_anon(npages);
}

FIXTURE(left_alone)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(left_alone)
{
	char *(*map)(size_t npages);
	size_t npages;
};

FIXTURE_VARIANT_ADD(left_alone, shared_anon) { .map = map_shared_anon, .npages = N };
FIXTURE_VARIANT_ADD(left_alone, file_shared) { .map = map_file_shared, .npages = N };
FIXTURE_VARIANT_ADD(left_alone, hugetlb) { .map = map_hugetlb, .npages = HUGE_PAGES };
FIXTURE_VARIANT_ADD(left_alone, droppable) { .map = map_droppable, .npages = N };

FIXTURE_SETUP(left_alone)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(left_alone)
{
	close(self->area);
	ksm_finish(&self->k);
}

TEST_F(left_alone, frames_and_rights)
{
	const size_t n = variant->npages;
	uint64_t pfns_a[HUGE_PAGES], pfns_b[HUGE_PAGES];
	char *a, *b, *ordinary = ksm_mmap(n);
	long faults;

	a = variant->map(n);
	ASSERT_NE(a, MAP_FAILED) TH_LOG("cannot map: %s; give the VM more memory (--mem)",
					strerror(errno));
	b = variant->map(n);
	ASSERT_NE(b, MAP_FAILED);
	madvise(a, n * PGSZ, MADV_NOHUGEPAGE);
	madvise(b, n * PGSZ, MADV_NOHUGEPAGE);
	/* Equal pages, pages that are equal in all three, and zero pages. */
	ksm_fill(a, n, 30);
	ksm_fill(b, n, 30);
	ksm_fill(ordinary, n, 30);
	memset(ksm_page(a, n - 4), 0, 4 * PGSZ);
	memset(ksm_page(b, n - 4), 0, 4 * PGSZ);
	ASSERT_EQ(ksm_register(self->area, a, n), 0);
	ASSERT_EQ(ksm_register(self->area, b, n), 0);
	ASSERT_EQ(ksm_register(self->area, ordinary, n), 0);
	ksm_pfns(0, a, n, pfns_a);
	ksm_pfns(0, b, n, pfns_b);
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_moved(0, a, n, pfns_a), 0);
	EXPECT_EQ(ksm_moved(0, b, n, pfns_b), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);

	faults = ksm_minflt();
	for (size_t i = 0; i < n; i++)
		*(volatile char *)ksm_page(a, i) = ksm_page(b, i)[0];
	for (size_t i = 0; i < n; i++)
		*(volatile char *)ksm_page(b, i) = ksm_page(a, i)[0];
	EXPECT_EQ(ksm_minflt() - faults, 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_moved(0, a, n, pfns_a), 0);
	EXPECT_EQ(ksm_wrong(a, n - 4, 30), 0);
	EXPECT_EQ(ksm_wrong(b, n - 4, 30), 0);
	EXPECT_EQ(ksm_wrong(ordinary, n, 30), 0);
	ASSERT_EQ(ksm_remove(self->area), 0);
	munmap(a, n * PGSZ);
	munmap(b, n * PGSZ);
	ksm_write_file("/proc/sys/vm/nr_hugepages", "0");
}

/* ---- userfaultfd ---- */

static bool uffd_silent(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 100) == 0;
}

/* What is there is merged; what is missing stays so, and is asked for as before. */
TEST_F(device, userfaultfd_missing)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	int uffd = ksm_uffd_open(0);
	size_t present = 0;

	/* Half populated, with a zero page; half missing. */
	ksm_fill(a, N / 2, 40);
	ksm_fn_zero((long)a, 1, 0, 0);
	ksm_fill(b, N, 40);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_MISSING);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2 - 1);
	EXPECT_EQ(ksm_pfn(0, a), ksm_zero_pfn());
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_TRUE(uffd_silent(uffd));
	for (int i = 0; i < N; i++)
		present += !!(ksm_pagemap(0, ksm_page(a, i)) & PM_PRESENT);
	EXPECT_EQ(present, N / 2);
	/* A write to a page that is there is no event either. */
	ksm_fill(a, N / 2, 41);
	EXPECT_TRUE(uffd_silent(uffd));
	EXPECT_EQ(ksm_wrong(a, N / 2, 41), 0);
	EXPECT_EQ(ksm_wrong(b, N, 40), 0);
	close(uffd);
}

/* What its owner has write-protected is left alone, and nothing else. */
TEST_F(device, userfaultfd_wp)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	int uffd = ksm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	uint64_t pfns[N];
	size_t bits = 0;

	ksm_fill(a, N, 43);
	ksm_fill(b, N, 43);
	ksm_uffd_register(uffd, a, N, UFFDIO_REGISTER_MODE_WP);
	ksm_uffd_protect(uffd, a, N / 2);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_moved(0, a, N / 2, pfns), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_moved(0, a, N / 2, pfns), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_TRUE(uffd_silent(uffd));
	for (int i = 0; i < N; i++)
		bits += !!(ksm_pagemap(0, ksm_page(a, i)) & PM_UFFD_WP);
	EXPECT_EQ(bits, N / 2);
	ksm_merge_all(&self->k);
	/* The rest is written to without an event. */
	ksm_fill(ksm_page(a, N / 2), N / 2, 44);
	EXPECT_TRUE(uffd_silent(uffd));
	EXPECT_EQ(ksm_wrong(a, N / 2, 43), 0);
	EXPECT_EQ(ksm_wrong(b, N, 43), 0);
	close(uffd);
	/* No longer watched, it is ordinary memory again. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
}

TEST_HARNESS_MAIN
