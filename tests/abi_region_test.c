// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi_region_test.c - regions: the arguments of KSM_REGISTER_MEMORY_REGION, overlaps, and how many
 *
 * Also that KSM_UNMERGE goes by the memory, not by who registered it when.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_abi.h"

static bool is_programs(uint64_t addr)
{
	void *p = mmap((void *)(uintptr_t)addr, PGSZ, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return errno == EEXIST;
	munmap(p, PGSZ);
	return true;
}

/* The first address that is not a program's: the kernel refuses to map anything there. */
static uint64_t task_size(void)
{
	uint64_t in = (uintptr_t)&in & -PGSZ, out = UINTPTR_MAX & -PGSZ;

	while (out - in > PGSZ) {
		uint64_t middle = (in + (out - in) / 2) & -PGSZ;

		if (is_programs(middle))
			in = middle;
		else
			out = middle;
	}
	return out;
}

TEST_F(abi, region_arguments)
{
	const uint64_t mem = (uintptr_t)self->mem, top = task_size();
	struct ksm_memory_region r;

	/* Unaligned. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem + 1, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem + PGSZ / 2, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem + PGSZ - 1, 1));
	/* Empty. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 0));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 0, 0));
	/* Wrapping. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -PGSZ, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -(uint64_t)PGSZ, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -(uint64_t)PGSZ, 2));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -2 * (uint64_t)PGSZ, UINT32_MAX));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, (uint64_t)-(1LL << 44), UINT32_MAX));
	/* Beyond the address space, altogether or at its end. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, top, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, top - PGSZ, 2));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 1ULL << 56, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 1ULL << 63, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 0xffff888000000000ULL, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, top - 16 * PGSZ, UINT32_MAX));
	/* Padding: a count of more than 32 bits is the same thing. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 1ULL << 32));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 1ULL << 32 | 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 1ULL << 63 | 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, UINT64_MAX));
	memset(&r, 0, sizeof(r));
	r.npages_low = 1;
	r.pad = 1;
	r.addr = mem;
	EXPECT_REFUSED(EINVAL, call(self->area, KSM_REGISTER_MEMORY_REGION, &r));

	/* The very last page of the address space is one like any other. */
	EXPECT_EQ(0, register_raw(self->area, top - PGSZ, 1));
	EXPECT_EQ(1, ksm_stat("regions"));
	/* And so is the first. */
	EXPECT_EQ(0, register_raw(self->area, 0, 1));
	EXPECT_EQ(2, ksm_stat("regions"));
	/* Nothing is mapped there; to scan it does no harm. */
	EXPECT_EQ(0, ksm_scan(self->k.scan, 16));
}

TEST_F(abi, region_arguments_2009)
{
	const uint64_t mem = (uintptr_t)self->mem, top = task_size();
	const struct ksm_memory_region_2009 bad[] = {
		{ .npages = 1, .addr = mem + 8 },
		{ .npages = 0, .addr = mem },
		{ .npages = 1, .addr = -(uint64_t)PGSZ },
		{ .npages = 2, .addr = top - PGSZ },
		{ .npages = 1, .addr = top },
		{ .npages = 1, .addr = mem, .pad = 1 },
		{ .npages = 1, .addr = mem, .reserved_bits = 1 },
		{ .npages = 1, .addr = mem, .reserved_bits = 1ULL << 63 },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		EXPECT_REFUSED(EINVAL, call(self->area, KSM_REGISTER_MEMORY_REGION_2009,
					    &bad[i]));
}

TEST_F(abi, overlap)
{
	const uint64_t mem = (uintptr_t)self->mem;
	int other = ksm_area(&self->k);

	/* Pages 4 to 7 are taken. */
	ASSERT_EQ(0, register_raw(self->area, mem + 4 * PGSZ, 4));
	take_state(&self->state);
	for (int i = 0; i < 2; i++) {
		int area = i ? other : self->area;

		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 4 * PGSZ, 4));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 5 * PGSZ, 1));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem, 16));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 2 * PGSZ, 3));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 7 * PGSZ, 3));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 4 * PGSZ, 1));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 4 * PGSZ, 12));
	}
	/* Neighbours are not overlaps. */
	EXPECT_EQ(0, register_raw(self->area, mem + 8 * PGSZ, 8));
	EXPECT_EQ(0, register_raw(other, mem, 4));
	EXPECT_EQ(3, ksm_stat("regions"));
	EXPECT_EQ(NPAGES, ksm_stat("pages_registered"));
	EXPECT_EQ(2, ksm_fdinfo(self->area, "regions"));
	EXPECT_EQ(12, ksm_fdinfo(self->area, "pages_registered"));
	EXPECT_EQ(1, ksm_fdinfo(other, "regions"));

	/* REMOVE frees the range of this area, for any area, and no other's. */
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_EQ(1, ksm_stat("regions"));
	EXPECT_EQ(4, ksm_stat("pages_registered"));
	EXPECT_EQ(-EEXIST, register_raw(self->area, mem + 3 * PGSZ, 2));
	EXPECT_EQ(0, register_raw(other, mem + 4 * PGSZ, 12));
	/* So does the close of the other area, at once. */
	ASSERT_EQ(0, close(other));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(1, ksm_stat("areas"));
	EXPECT_EQ(0, register_raw(self->area, mem, NPAGES));
}

static long fn_register_again(long area, long addr, long npages, long unused)
{
	long ret = register_raw(area, (unsigned long)addr, npages);

	(void)unused;
	if (ret)
		return ret;
	return register_raw(area, (unsigned long)addr, npages);
}

TEST_F(abi, same_range_in_another_process)
{
	struct ksm_child c;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	ksm_spawn(&c);
	/* A fork registers nothing by itself. */
	EXPECT_EQ(1, ksm_stat("regions"));
	/* The inherited fd takes the child's memory: another mm, no overlap. */
	EXPECT_EQ(-EEXIST, ksm_call(&c, fn_register_again, self->area, self->mem, NPAGES));
	EXPECT_EQ(2, ksm_stat("regions"));
	EXPECT_EQ(2 * NPAGES, ksm_stat("pages_registered"));
	EXPECT_EQ(2, ksm_fdinfo(self->area, "regions"));
	/* And our own range is still taken. */
	EXPECT_EQ(-EEXIST, register_raw(self->area, (uintptr_t)self->mem, 1));
	EXPECT_EQ(0, ksm_end(&c));
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_TRUE(same_state(&self->state));
}

TEST_F(abi, too_many_regions)
{
	const uint64_t mem = (uintptr_t)self->mem;
	int fd, other = ksm_area(&self->k);
	char old[32] = "";

	fd = open(PARAM "regions_per_area", O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, old, sizeof(old) - 1));
	close(fd);
	ASSERT_EQ(0, ksm_write_file(PARAM "regions_per_area", "4"));
	for (int i = 0; i < 4; i++)
		EXPECT_EQ(0, register_raw(self->area, mem + 2 * i * PGSZ, 1));
	take_state(&self->state);
	EXPECT_REFUSED(ENOSPC, register_raw(self->area, mem + 10 * PGSZ, 1));
	EXPECT_REFUSED(ENOSPC, register_raw(self->area, mem + 11 * PGSZ, 1));
	/* The limit is an area's own. */
	EXPECT_EQ(0, register_raw(other, mem + 10 * PGSZ, 1));
	/* There is room again after REMOVE, and when the limit is raised. */
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	for (int i = 0; i < 4; i++)
		EXPECT_EQ(0, register_raw(self->area, mem + 2 * i * PGSZ, 1));
	EXPECT_EQ(-ENOSPC, register_raw(self->area, mem + 12 * PGSZ, 1));
	EXPECT_EQ(0, ksm_write_file(PARAM "regions_per_area", "5"));
	EXPECT_EQ(0, register_raw(self->area, mem + 12 * PGSZ, 1));
	EXPECT_EQ(0, ksm_write_file(PARAM "regions_per_area", old));
	close(other);
}

/*
 * What is merged is a matter of the memory, not of who registered it when: the
 * area that is told to unmerge need not have seen any scan.
 */
TEST_F(abi, unmerge_goes_by_range)
{
	char *mem = ksm_mmap(2 * NPAGES);

	ksm_fill_same(mem, NPAGES, 1);
	ksm_fn_zero((long)(mem + NPAGES * PGSZ), NPAGES, 0, 0);
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)mem, 2 * NPAGES));
	ksm_merge_all(&self->k);
	EXPECT_EQ(2, ksm_distinct(0, mem, 2 * NPAGES));
	ASSERT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_EQ(2, ksm_distinct(0, mem, 2 * NPAGES));
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)mem, 2 * NPAGES));
	ASSERT_EQ(0, call(self->area, KSM_UNMERGE, NULL));
	/* Zero pages are also what a read fault maps; those may stay. */
	EXPECT_EQ(NPAGES, ksm_distinct(0, mem, NPAGES));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	EXPECT_EQ(0, ksm_wrong_same(mem, NPAGES, 1));
	EXPECT_EQ(0, ksm_wrong_zero(mem + NPAGES * PGSZ, NPAGES));
}

TEST_HARNESS_MAIN
