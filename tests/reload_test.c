// SPDX-License-Identifier: GPL-2.0-only
/*
 * reload_test.c - shared pages that the module left behind are anonymous memory like any other
 *
 * Several processes map them, as after a fork, and nothing of the module is in them. The
 * next load merges them like others; who writes to one while others have it gets a copy, and
 * that can be swapped out.
 *
 * Each test leaves the module loaded.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_load.h"
#include "ksm_told.h"

#define N 256

FIXTURE(reload) {
	char *mem;
	struct ksm_child c[3];
};

static long fn_register(long addr, long npages, long unused, long unused2)
{
	int dev = ksm_open();
	long area = ksm_fn_area_register(dev, addr, npages, 0);

	(void)unused;
	(void)unused2;
	close(dev);
	return area;
}

static long fn_page_out(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_page_out((void *)addr, npages);
}

/* Let a loaded module merge the memory of the first two children, and go. */
static void leave_behind(struct ksm_child *c, char *mem, uint64_t seed)
{
	long area[2];
	struct ksm k;

	ksm_load();
	ksm_begin(&k);
	for (int i = 0; i < 2; i++) {
		area[i] = ksm_call(&c[i], fn_register, mem, N, 0);
		if (area[i] < 0)
			ksm_die("cannot register: %ld", area[i]);
	}
	ksm_merge_all(&k);
	if (ksm_same_frames(c[0].pid, mem, c[1].pid, mem, N) != N)
		ksm_die("pages %llx of two processes do not merge", (unsigned long long)seed);
	for (int i = 0; i < 2; i++)
		ksm_call(&c[i], ksm_fn_close, area[i], 0, 0);
	ksm_finish(&k);
	if (ksm_unload_soon())
		ksm_die("the module cannot be unloaded");
}

FIXTURE_SETUP(reload)
{
	self->mem = ksm_mmap(N);
	/* Before anything is open, for them to inherit nothing. */
	for (int i = 0; i < 3; i++)
		ksm_spawn(&self->c[i]);
	for (int i = 0; i < 2; i++)
		ksm_call(&self->c[i], ksm_fn_fill, self->mem, N, 1);
	leave_behind(self->c, self->mem, 1);
}

FIXTURE_TEARDOWN(reload)
{
	for (int i = 0; i < 3; i++)
		if (self->c[i].pid > 0)
			ksm_end(&self->c[i]);
	ksm_load();
}

/* The next load merges them with each other's new pages and with those of a third. */
TEST_F(reload, merged_again)
{
	uint64_t before[N];
	struct ksm k;

	ksm_pfns(self->c[0].pid, self->mem, N, before);
	ksm_call(&self->c[2], ksm_fn_fill, self->mem, N, 1);
	ksm_load();
	ksm_begin(&k);
	EXPECT_EQ(ksm_stat("kernel_pages"), 0);
	for (int i = 0; i < 3; i++)
		ASSERT_LE(0, ksm_call(&self->c[i], fn_register, self->mem, N, 0));
	ksm_merge_all(&k);
	ksm_merge_held(&k);
	EXPECT_EQ(ksm_same_frames(self->c[0].pid, self->mem, self->c[2].pid, self->mem, N), N);
	EXPECT_EQ(ksm_same_frames(self->c[1].pid, self->mem, self->c[2].pid, self->mem, N), N);
	EXPECT_EQ(ksm_stat("kernel_pages"), N);
	EXPECT_EQ(ksm_stat("pages_shared"), N);
	EXPECT_EQ(ksm_stat("pages_sharing"), 2 * N);
	/* In pages that this load knows; the old ones are free. */
	EXPECT_EQ(ksm_moved(self->c[0].pid, self->mem, N, before), N);
	for (int i = 0; i < 3; i++)
		EXPECT_EQ(ksm_call(&self->c[i], ksm_fn_wrong, self->mem, N, 1), 0);
	ksm_call(&self->c[0], ksm_fn_fill, self->mem, N / 2, 2);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N / 2, 2), 0);
	EXPECT_EQ(ksm_call(&self->c[1], ksm_fn_wrong, self->mem, N, 1), 0);
	EXPECT_EQ(ksm_call(&self->c[2], ksm_fn_wrong, self->mem, N, 1), 0);
	for (int i = 0; i < 3; i++)
		ksm_end(&self->c[i]);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	ksm_finish(&k);
}

/* Again and again, each time by another load. */
TEST_F(reload, many_loads)
{
	for (int round = 0; round < 4; round++) {
		leave_behind(self->c, self->mem, 1);
		EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N, 1), 0);
		EXPECT_EQ(ksm_call(&self->c[1], ksm_fn_wrong, self->mem, N, 1), 0);
		EXPECT_EQ(told_flag(self->c[0].pid, self->mem, N, KPF_BIT_ANON), N);
	}
}

/*
 * One of them leaves, the other writes: in place, to memory that stays resident, as no LRU
 * list has it (Documentation/design.rst says why). Nothing is lost when there is swap.
 */
TEST_F(reload, alone_and_written)
{
	struct ksm_swap swap;

	ksm_swap_on(&swap, false, 4 * N);
	ksm_end(&self->c[1]);
	EXPECT_EQ(ksm_call(&self->c[0], fn_page_out, self->mem, N, 0), 0);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N, 1), 0);
	ksm_call(&self->c[0], ksm_fn_fill, self->mem, N, 2);
	EXPECT_EQ(ksm_call(&self->c[0], fn_page_out, self->mem, N, 0), 0);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N, 2), 0);
	ksm_end(&self->c[0]);
	ksm_swap_off(&swap);
}

/* Both are there, and one writes: what it has then can be swapped; the other's stays right. */
TEST_F(reload, swapped_while_shared)
{
	struct ksm_swap swap;

	ksm_swap_on(&swap, false, 4 * N);
	ksm_call(&self->c[0], ksm_fn_fill, self->mem, N, 2);
	EXPECT_EQ(ksm_call(&self->c[0], fn_page_out, self->mem, N, 0), N);
	ksm_call(&self->c[1], fn_page_out, self->mem, N, 0);
	EXPECT_EQ(ksm_call(&self->c[1], ksm_fn_wrong, self->mem, N, 1), 0);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N, 2), 0);
	/* Now the other is alone with the old pages. */
	ksm_call(&self->c[1], ksm_fn_fill, self->mem, N, 3);
	ksm_call(&self->c[1], fn_page_out, self->mem, N, 0);
	EXPECT_EQ(ksm_call(&self->c[1], ksm_fn_wrong, self->mem, N, 3), 0);
	ksm_end(&self->c[0]);
	ksm_end(&self->c[1]);
	ksm_swap_off(&swap);
}

/* The next load takes what one process has alone, too, and gives it back as ordinary memory. */
TEST_F(reload, alone_at_the_next_load)
{
	struct ksm_swap swap;
	struct ksm k;
	long area;

	ksm_swap_on(&swap, false, 4 * N);
	ksm_end(&self->c[1]);
	ksm_call(&self->c[2], ksm_fn_fill, self->mem, N, 1);
	ksm_load();
	ksm_begin(&k);
	area = ksm_call(&self->c[0], fn_register, self->mem, N, 0);
	ASSERT_LE(0, area);
	ASSERT_LE(0, ksm_call(&self->c[2], fn_register, self->mem, N, 0));
	ksm_merge_all(&k);
	EXPECT_EQ(ksm_same_frames(self->c[0].pid, self->mem, self->c[2].pid, self->mem, N), N);
	ksm_end(&self->c[2]);
	ksm_merge_all(&k);
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	EXPECT_EQ(ksm_call(&self->c[0], fn_page_out, self->mem, N, 0), N);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N, 1), 0);
	ksm_end(&self->c[0]);
	ksm_finish(&k);
	ksm_swap_off(&swap);
}

/* And also where nothing else is like it. */
TEST_F(reload, alone_without_a_twin)
{
	struct ksm_swap swap;
	struct ksm k;

	ksm_swap_on(&swap, false, 4 * N);
	ksm_end(&self->c[1]);
	ksm_load();
	ksm_begin(&k);
	ASSERT_LE(0, ksm_call(&self->c[0], fn_register, self->mem, N, 0));
	ksm_merge_all(&k);
	EXPECT_EQ(ksm_call(&self->c[0], fn_page_out, self->mem, N, 0), N);
	EXPECT_EQ(ksm_call(&self->c[0], ksm_fn_wrong, self->mem, N, 1), 0);
	ksm_end(&self->c[0]);
	ksm_finish(&k);
	ksm_swap_off(&swap);
}

TEST_HARNESS_MAIN
