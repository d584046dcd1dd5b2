// SPDX-License-Identifier: GPL-2.0-only
/*
 * vma_test.c - what lies under a region changes, and what must be left alone
 *
 * A region is only an address range. Mappings under it are unmapped, moved,
 * replaced and split; kinds of memory that cannot be shared this way, or that
 * somebody watches, must not be touched at all: the frames stay, and a write
 * afterwards takes no page fault. Also what the kernel keeps beside the pages:
 * soft-dirty bits, huge pages, the counters of resident memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64
#define HUGE_PAGES KSM_HUGE_PAGES
#define HUGE_SIZE KSM_HUGE_SIZE

static void make_twins(int area, char **a, char **b, size_t n, uint64_t seed)
{
	*a = ksm_mmap(n);
	*b = ksm_mmap(n);
	ksm_fill(*a, n, seed);
	ksm_fill(*b, n, seed);
	if (ksm_register(area, *a, n) || ksm_register(area, *b, n))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
}

/* How many pages of the range are the driver's: mapped, and on no LRU list. */
static size_t count_shared(const char *addr, size_t npages)
{
	size_t n = 0;

	/* Others may be on their way to one. */
	ksm_drain_batches();
	for (size_t i = 0; i < npages; i++) {
		uint64_t pfn = ksm_pfn(0, ksm_page(addr, i));

		n += pfn && !ksm_pfn_is(pfn, KPF_BIT_LRU) &&
		     !ksm_pfn_is(pfn, KPF_BIT_ZERO_PAGE);
	}
	return n;
}

/* ---- mappings change under a region ---- */

TEST_F(device, munmap_and_map_again)
{
	char *a, *b, *p;

	make_twins(self->area, &a, &b, N, 1);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	/* A hole in the middle, then all of it. */
	ASSERT_EQ(munmap(ksm_page(a, N / 4), N / 2 * PGSZ), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	ASSERT_EQ(munmap(a, N * PGSZ), 0);
	/* Those whose last twin went before the scan may be anonymous again. */
	EXPECT_GE(count_shared(b, N), N / 2);
	EXPECT_EQ(ksm_stat("pages_shared"), (long long)count_shared(b, N));
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
	EXPECT_EQ(ksm_stat("pages_registered"), 2 * N);

	/* Other contents at the same addresses: nothing of the old may be believed. */
	p = mmap(a, N * PGSZ, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	ASSERT_EQ(p, a);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_NOHUGEPAGE), 0);
	ksm_fill(a, N, 2);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
	ksm_fill(a, N, 1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
}

/*
 * The mapping is replaced between two scans, so that a page is clean, at the same
 * address, perhaps in the same frame, and yet another one.
 */
TEST_F(device, replaced_between_scans)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 3);
	ksm_fill(a, N, 4);
	for (int round = 0; round < 12; round++) {
		uint64_t seed = round % 2 ? 3 : 5 + round;

		ASSERT_EQ(mmap(a, N * PGSZ, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), a);
		ASSERT_EQ(madvise(a, N * PGSZ, MADV_NOHUGEPAGE), 0);
		ksm_fill(a, N, seed);
		ksm_passes(&self->k, 1 + round % 4);
		EXPECT_EQ(ksm_wrong(a, N, seed), 0);
		EXPECT_EQ(ksm_wrong(b, N, 3), 0);
		if (seed != 3) {
			EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
		}
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
}

/* mremap brings clean pages with other contents to an address already scanned. */
TEST_F(device, pages_change_places)
{
	char *a, *b, *spare;

	make_twins(self->area, &a, &b, N, 6);
	ksm_fill(a, N, 7);
	ksm_passes(&self->k, 2);
	/* a and b are stable and different; now b's pages come to a's place. */
	spare = ksm_mmap(N);
	ASSERT_EQ(mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, spare), spare);
	ASSERT_EQ(mremap(b, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	ASSERT_EQ(mmap(b, N * PGSZ, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), b);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_NOHUGEPAGE), 0);
	ksm_fill(b, N, 7);
	/* Of frames that are alike but for some bits it takes a page its turn to be read anew. */
	ksm_passes(&self->k, KSM_HUGE_PAGES + 4);
	EXPECT_EQ(ksm_wrong(a, N, 6), 0);
	EXPECT_EQ(ksm_wrong(b, N, 7), 0);
	EXPECT_EQ(ksm_wrong(spare, N, 7), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	ksm_fill(b, N, 6);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(spare, N, 7), 0);
}

TEST_F(device, mremap_move)
{
	char *a, *b, *to = ksm_mmap(N);
	uint64_t pfns[N];

	make_twins(self->area, &a, &b, N, 8);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	/* The merged pages moved along and are as private as before. */
	EXPECT_EQ(ksm_moved(0, to, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(to, N, 8), 0);
	ksm_merge_all(&self->k);
	ksm_fill(to, N / 2, 9);
	EXPECT_EQ(ksm_wrong(to, N / 2, 9), 0);
	EXPECT_EQ(ksm_wrong(b, N, 8), 0);

	/* Out of the region, so what was written stays private; back, it merges. */
	ksm_fill(to, N, 8);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, to, 0, b, N), 0);
	ASSERT_EQ(mremap(to, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 8), 0);
}

TEST_F(device, mremap_resize)
{
	char *a, *b, *moved;
	uint64_t pfns[N];

	make_twins(self->area, &a, &b, N, 10);
	ksm_merge_all(&self->k);
	ksm_pfns(0, b, N, pfns);
	/* It cannot grow in place: the page behind it is taken. */
	moved = mremap(a, N * PGSZ, 2 * N * PGSZ, MREMAP_MAYMOVE);
	ASSERT_NE(moved, MAP_FAILED);
	EXPECT_EQ(ksm_moved(0, moved, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(moved, N, 10), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(moved, N), N), 0);
	ASSERT_EQ(mremap(moved, 2 * N * PGSZ, N / 2 * PGSZ, 0), moved);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(moved, N / 2, 10), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	ksm_fill(moved, N / 2, 11);
	EXPECT_EQ(ksm_wrong(b, N, 10), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), 0);
}

/* MREMAP_DONTUNMAP leaves the old range mapped and empty. */
TEST_F(device, mremap_dontunmap)
{
	char *a, *b, *moved;

	make_twins(self->area, &a, &b, N, 12);
	ksm_merge_all(&self->k);
	moved = mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(moved, MAP_FAILED);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, a, N), 0);
	EXPECT_EQ(ksm_wrong(moved, N, 12), 0);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);
	ksm_fill(a, N, 13);
	ksm_fill(moved, N, 14);
	EXPECT_EQ(ksm_wrong(a, N, 13), 0);
	EXPECT_EQ(ksm_wrong(b, N, 12), 0);
	EXPECT_EQ(ksm_wrong(moved, N, 14), 0);
}

/* One region over as many VMAs as it has pages. */
TEST_F(device, many_vmas)
{
	char *a, *b;

	make_twins(self->area, &a, &b, N, 15);
	for (int i = 0; i < N; i += 2)
		ASSERT_EQ(mprotect(ksm_page(a, i), PGSZ, PROT_READ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	for (int i = 0; i < N; i += 4)
		ASSERT_EQ(mprotect(ksm_page(b, i), 2 * PGSZ, PROT_READ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(mprotect(b, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(a, N, 16);
	EXPECT_EQ(ksm_wrong(a, N, 16), 0);
	EXPECT_EQ(ksm_wrong(b, N, 15), 0);
}

/* Holes between pages, a region that begins and ends in one, and one that is all hole. */
TEST_F(device, holes)
{
	char *a, *b, *c = ksm_mmap(3 * N);

	make_twins(self->area, &a, &b, N, 17);
	for (int i = 1; i < N; i += 2)
		ASSERT_EQ(munmap(ksm_page(a, i), PGSZ), 0);
	ksm_fill(ksm_page(c, N), N, 17);
	ASSERT_EQ(munmap(c, N * PGSZ), 0);
	ASSERT_EQ(munmap(ksm_page(c, 2 * N), N * PGSZ), 0);
	ASSERT_EQ(ksm_register(self->area, c, 3 * N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	EXPECT_EQ(ksm_same_frames(0, ksm_page(c, N), 0, b, N), N);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2 + N);
	for (int i = 0; i < N; i += 2)
		EXPECT_TRUE(ksm_page_is(ksm_page(a, i), 17, i));

	ASSERT_EQ(munmap(ksm_page(c, N), N * PGSZ), 0);
	ASSERT_EQ(munmap(b, N * PGSZ), 0);
	for (int i = 0; i < N; i += 2)
		ASSERT_EQ(munmap(ksm_page(a, i), PGSZ), 0);
	/* All that is registered is unmapped; a scan still comes to its end. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_registered"), 5 * N);
	EXPECT_EQ(ksm_stat("regions"), 3);
}

/* Regions that are not cut where page tables are; one page; more than 2 MiB. */
TEST_F(device, odd_sizes)
{
	enum { PAGES = 2 * HUGE_PAGES + 37 };
	char *a, *b, *one = ksm_mmap(1);

	make_twins(self->area, &a, &b, PAGES, 18);
	ksm_fill_page(one, 18, 5);
	ASSERT_EQ(ksm_register(self->area, one, 1), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_EQ(ksm_distinct(0, a, PAGES), PAGES);
	EXPECT_EQ(ksm_pfn(0, one), ksm_pfn(0, ksm_page(a, 5)));
	EXPECT_EQ(ksm_wrong(a, PAGES, 18), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 18), 0);
	EXPECT_STATS(PAGES, PAGES + 1, 0, 0, 0);
}

TEST_F(device, heap)
{
	char *heap = sbrk(0), *twin = ksm_mmap(N);

	heap += -(uintptr_t)heap % PGSZ;
	ASSERT_EQ(brk(heap + 2 * N * PGSZ), 0);
	ksm_fill(heap, N, 19);
	ksm_fill(twin, N, 19);
	ASSERT_EQ(ksm_register(self->area, heap, 2 * N), 0);
	ASSERT_EQ(ksm_register(self->area, twin, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, heap, 0, twin, N), N);
	ASSERT_EQ(brk(heap + N / 2 * PGSZ), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(brk(heap + 2 * N * PGSZ), 0);
	EXPECT_EQ(ksm_wrong(heap, N / 2, 19), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(heap, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_wrong(twin, N, 19), 0);
}

/* Advice about fork still means the same for merged pages. */
TEST_F(device, fork_advice)
{
	struct ksm_child c;
	char *a, *b;

	make_twins(self->area, &a, &b, N, 20);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_DONTFORK), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_WIPEONFORK), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_DONTDUMP), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ksm_spawn(&c);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong_zero, b, N, 0), 0);
	EXPECT_EQ(ksm_distinct(c.pid, a, N), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_fill, b, N, 21), 0);
	EXPECT_EQ(ksm_wrong(a, N, 20), 0);
	EXPECT_EQ(ksm_wrong(b, N, 20), 0);
	ksm_end(&c);
}

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

/* ---- what the kernel keeps beside the page ---- */

static size_t count_soft_dirty(const char *addr, size_t npages)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += !!(ksm_pagemap(0, ksm_page(addr, i)) & PM_SOFT_DIRTY);
	return n;
}

/*
 * Checkpointing tools learn from the soft-dirty bit what to copy: pages written
 * since the bits were cleared must have it after a merge, no other page may get it.
 */
TEST_F(device, soft_dirty)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);
	size_t lost = 0, invented = 0;

	if (!ksm_has_soft_dirty())
		SKIP(return, "this kernel has no soft-dirty bits");
	for (int i = 0; i < N; i++)
		ksm_fill_page(ksm_page(a, i), 50, i);
	ksm_fill(b, N, 50);
	ksm_fn_zero((long)zero, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
	ASSERT_EQ(count_soft_dirty(a, N), 0);
	ASSERT_EQ(count_soft_dirty(zero, N), 0);

	/* Every other page of a and zero is written, with what it held before. */
	for (int i = 0; i < N; i += 2) {
		ksm_fill_page(ksm_page(a, i), 50, i);
		memset(ksm_page(zero, i), 0, PGSZ);
	}
	ASSERT_EQ(count_soft_dirty(a, N), N / 2);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(ksm_distinct(0, zero, N), 1);
	for (int i = 0; i < N; i++) {
		bool in_a = ksm_pagemap(0, ksm_page(a, i)) & PM_SOFT_DIRTY;
		bool in_zero = ksm_pagemap(0, ksm_page(zero, i)) & PM_SOFT_DIRTY;

		lost += i % 2 == 0 ? !in_a + !in_zero : 0;
		invented += i % 2 ? in_a + in_zero : 0;
	}
	EXPECT_EQ(lost, 0);
	EXPECT_EQ(invented, 0);
	EXPECT_EQ(count_soft_dirty(b, N), 0);

	/* Cleared on merged pages; then a write to one sets it. */
	ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
	EXPECT_EQ(count_soft_dirty(a, N), 0);
	EXPECT_EQ(count_soft_dirty(zero, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(count_soft_dirty(a, N), 0);
	a[5 * PGSZ] ^= 1;
	zero[5 * PGSZ] = 1;
	EXPECT_TRUE(ksm_pagemap(0, ksm_page(a, 5)) & PM_SOFT_DIRTY);
	EXPECT_TRUE(ksm_pagemap(0, ksm_page(zero, 5)) & PM_SOFT_DIRTY);
	EXPECT_EQ(count_soft_dirty(a, N), 1);
	EXPECT_EQ(count_soft_dirty(zero, N), 1);
}

/* Pages that were only scanned, never merged, keep the bit as well. */
TEST_F(device, soft_dirty_scanned_only)
{
	char *a = ksm_mmap(N);

	if (!ksm_has_soft_dirty())
		SKIP(return, "this kernel has no soft-dirty bits");
	ksm_fill(a, N, 51);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	for (int passes = 0; passes < 5; passes++) {
		ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
		ksm_passes(&self->k, passes);
		EXPECT_EQ(count_soft_dirty(a, N), 0);
		for (int i = 0; i < N; i += 2)
			a[i * PGSZ + passes]++;
		ksm_passes(&self->k, passes);
		EXPECT_EQ(count_soft_dirty(a, N), N / 2);
		for (int i = 0; i < N; i += 2)
			EXPECT_TRUE(ksm_pagemap(0, ksm_page(a, i)) & PM_SOFT_DIRTY);
	}
}

/* Unique contents: not worth a split. */
TEST_F(device, thp_unique)
{
	enum { HUGE = 4 };
	char *p = ksm_mmap_huge(HUGE);
	uint64_t before[HUGE];

	ksm_fill(p, HUGE * HUGE_PAGES, 60);
	for (int i = 0; i < HUGE; i++)
		before[i] = ksm_pfn(0, p + i * HUGE_SIZE);
	ASSERT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE * HUGE_PAGES);
	ASSERT_EQ(ksm_register(self->area, p, HUGE * HUGE_PAGES), 0);
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE * HUGE_PAGES);
	for (int i = 0; i < HUGE; i++)
		EXPECT_EQ(ksm_pfn(0, p + i * HUGE_SIZE), before[i]);
	EXPECT_EQ(ksm_wrong(p, HUGE * HUGE_PAGES, 60), 0);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_stat("pages_unshared"), HUGE * HUGE_PAGES);
}

/* Equal contents: split and merged, whatever is on the other side. */
TEST_F(device, thp_duplicates)
{
	char *p = ksm_mmap_huge(2), *small = ksm_mmap(HUGE_PAGES);

	ksm_fill(p, HUGE_PAGES, 61);
	ksm_fill(p + HUGE_SIZE, HUGE_PAGES, 61);
	ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, p, 0, p + HUGE_SIZE, HUGE_PAGES), HUGE_PAGES);
	EXPECT_EQ(ksm_distinct(0, p, HUGE_PAGES), HUGE_PAGES);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 61), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 61), 0);
	EXPECT_STATS(HUGE_PAGES, HUGE_PAGES, 0, 0, 0);

	ksm_fill(small, HUGE_PAGES, 61);
	ASSERT_EQ(ksm_register(self->area, small, HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, p, 0, small, HUGE_PAGES), HUGE_PAGES);

	ksm_fill(p, HUGE_PAGES, 62);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 62), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 61), 0);
	EXPECT_EQ(ksm_wrong(small, HUGE_PAGES, 61), 0);
}

TEST_F(device, thp_zero)
{
	char *p = ksm_mmap_huge(1);
	long free = ksm_memfree();

	memset(p, 1, HUGE_SIZE);
	memset(p, 0, HUGE_SIZE);
	ASSERT_EQ(ksm_register(self->area, p, HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, p, HUGE_PAGES), 1);
	EXPECT_EQ(ksm_pfn(0, p), ksm_zero_pfn());
	/* Not counted: since 6.12 the kernel itself maps it when it splits. */
	EXPECT_EQ(ksm_wrong_zero(p, HUGE_PAGES), 0);
	EXPECT_GE(ksm_memfree() - free, HUGE_PAGES - 64);
	ksm_fill(p, HUGE_PAGES, 63);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 63), 0);
}

/* A region that covers part of a huge page only; another part is not ours to split for. */
TEST_F(device, thp_partly_registered)
{
	char *p = ksm_mmap_huge(1), *small = ksm_mmap(N);
	uint64_t before[HUGE_PAGES];

	ksm_fill(p, HUGE_PAGES, 64);
	ksm_fill(small, N, 64);
	ksm_pfns(0, p, HUGE_PAGES, before);
	ASSERT_EQ(ksm_register(self->area, p, N), 0);
	ASSERT_EQ(ksm_register(self->area, small, N), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	/* Merged or not is the driver's choice; contents and the rest are not. */
	EXPECT_EQ(ksm_moved(0, ksm_page(p, N), HUGE_PAGES - N, before + N), 0);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 64), 0);
	EXPECT_EQ(ksm_wrong(small, N, 64), 0);
	ksm_fill(small, N, 65);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 64), 0);
}

/* A huge page that parent and child share since a fork. */
TEST_F(device, thp_forked)
{
	char *p = ksm_mmap_huge(2);
	struct ksm_child c;

	ksm_fill(p, HUGE_PAGES, 66);
	ksm_fill(p + HUGE_SIZE, HUGE_PAGES, 66);
	ksm_spawn(&c);
	ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, p, HUGE_PAGES, 66), 0);
	ksm_fill(p, HUGE_PAGES, 67);
	ksm_call(&c, ksm_fn_fill, p + HUGE_SIZE, HUGE_PAGES, 68);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 67), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, p, HUGE_PAGES, 66), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, p + HUGE_SIZE, HUGE_PAGES, 68), 0);
	ksm_end(&c);
}

/* Huge pages whose page table maps them in small pieces. */
TEST_F(device, thp_mapped_by_pieces)
{
	char *p = ksm_mmap_huge(2);

	ksm_fill(p, HUGE_PAGES, 80);
	ksm_fill(p + HUGE_SIZE, HUGE_PAGES, 80);
	ASSERT_EQ(mprotect(ksm_page(p, 7), PGSZ, PROT_READ), 0);
	ASSERT_EQ(mprotect(ksm_page(p + HUGE_SIZE, 9), PGSZ, PROT_READ), 0);
	/* Part of it is unmapped: the folio is larger than what is mapped of it. */
	ASSERT_EQ(munmap(ksm_page(p, HUGE_PAGES - N), N * PGSZ), 0);
	ASSERT_TRUE(ksm_pfn_is(ksm_pfn(0, p), KPF_BIT_THP));
	ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, p, 0, p + HUGE_SIZE, HUGE_PAGES - N), HUGE_PAGES - N);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES - N, 80), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 80), 0);
	ASSERT_EQ(mprotect(ksm_page(p, 7), PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(p, HUGE_PAGES - N, 81);
	EXPECT_EQ(ksm_wrong(p, HUGE_PAGES - N, 81), 0);
	EXPECT_EQ(ksm_wrong(p + HUGE_SIZE, HUGE_PAGES, 80), 0);
}

/*
 * Resident memory: merged pages count as the anonymous memory that they were, zero pages
 * as nothing. The kernel reads these counters without
 * adding up what each CPU holds back, hence the slack; at exit it checks the exact
 * sums itself ("Bad rss-counter" in the log fails the whole run).
 */
TEST_F(device, rss)
{
	enum { PAGES = 2048, SLACK_ = 256 };
	char *a, *b, *zero = ksm_mmap(PAGES);
	long anon, file, rss;

#define EXPECT_RSS(change) do { \
	EXPECT_LE(labs(ksm_status(0, "RssAnon") - anon - (change)), SLACK_); \
	EXPECT_LE(labs(ksm_status(0, "RssFile") - file), SLACK_); \
	EXPECT_LE(labs(ksm_status(0, "VmRSS") - rss - (change)), 2 * SLACK_); \
} while (0)

	make_twins(self->area, &a, &b, PAGES, 70);
	ksm_fn_zero((long)zero, PAGES, 0, 0);
	ASSERT_EQ(ksm_register(self->area, zero, PAGES), 0);
	anon = ksm_status(0, "RssAnon");
	file = ksm_status(0, "RssFile");
	rss = ksm_status(0, "VmRSS");
	ASSERT_GE(anon, 3 * PAGES - SLACK_);

	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_RSS(-PAGES);
	EXPECT_EQ(ksm_smaps(a, "Rss"), PAGES);
	EXPECT_EQ(ksm_smaps(a, "Anonymous"), PAGES);
	EXPECT_EQ(ksm_smaps(a, "Pss"), PAGES / 2);

	ksm_fill(a, PAGES, 71);
	EXPECT_RSS(-PAGES);
	EXPECT_EQ(ksm_smaps(a, "Anonymous"), PAGES);
	ksm_fill(zero, PAGES, 72);
	EXPECT_RSS(0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_RSS(0);

	/* Merged once more and unmapped in that state. */
	ksm_fill(a, PAGES, 70);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	munmap(a, PAGES * PGSZ);
	munmap(b, PAGES * PGSZ);
	munmap(zero, PAGES * PGSZ);
	EXPECT_RSS(-3 * PAGES);
}

TEST_HARNESS_MAIN
