// SPDX-License-Identifier: GPL-2.0-only
/*
 * orphans_test.c - merged pages outlive the module
 *
 * They stay shared, stay right, are ordinary memory to whatever a process does to it, and
 * merge again when the module is loaded the next time. reload_test.c has the rest.
 *
 * Each test leaves the module loaded, as it found it.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_module.h"

/*
 * The pages outlive the module: they stay shared, stay right, are copied when
 * written to, and go when their last user does.
 */
TEST_F(module, merged_pages_live_on)
{
	const size_t n = 1024, zeroes = 64;
	char *mem = ksm_mmap(n + zeroes);
	struct ksm_child a, b;
	struct ksm k;
	long before, after, area_a, area_b;
	double end;

	before = ksm_memfree();
	ksm_begin(&k);
	ksm_spawn(&a);
	ksm_spawn(&b);
	ksm_call(&a, ksm_fn_fill, mem, n, 7);
	ksm_call(&b, ksm_fn_fill, mem, n, 7);
	ksm_call(&a, ksm_fn_zero, mem + n * PGSZ, zeroes, 0);
	area_a = ksm_call(&a, ksm_fn_area_register, k.dev, mem, n + zeroes);
	area_b = ksm_call(&b, ksm_fn_area_register, k.dev, mem, n);
	ASSERT_LE(0, area_a);
	ASSERT_LE(0, area_b);
	ksm_merge_all(&k);
	ASSERT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	ASSERT_EQ(zeroes, ksm_stat("zero_pages"));
	ksm_call(&a, ksm_fn_close, area_a, 0, 0);
	ksm_call(&b, ksm_fn_close, area_b, 0, 0);
	for (int i = 0; i < 2; i++) {
		ksm_call(i ? &a : &b, ksm_fn_close, k.dev, 0, 0);
		ksm_call(i ? &a : &b, ksm_fn_close, k.scan, 0, 0);
	}
	ksm_finish(&k);

	ASSERT_EQ(0, ksm_unload_soon());
	EXPECT_TRUE(nothing_left());
	EXPECT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	EXPECT_EQ(0, ksm_call(&a, ksm_fn_wrong, mem, n, 7));
	EXPECT_EQ(0, ksm_call(&b, ksm_fn_wrong, mem, n, 7));

	/* Half of it is written by one of them: the other one keeps what it had. */
	ksm_call(&a, ksm_fn_fill, mem, n / 2, 8);
	EXPECT_EQ(0, ksm_same_frames(a.pid, mem, b.pid, mem, n / 2));
	EXPECT_EQ(0, ksm_call(&a, ksm_fn_wrong, mem, n / 2, 8));
	EXPECT_EQ(0, ksm_call(&b, ksm_fn_wrong, mem, n, 7));
	EXPECT_EQ(n / 2, ksm_same_frames(a.pid, mem + n / 2 * PGSZ, b.pid,
					 mem + n / 2 * PGSZ, n / 2));
	ksm_call(&a, ksm_fn_fill, mem + n * PGSZ, zeroes, 9);
	EXPECT_EQ(0, ksm_call(&a, ksm_fn_wrong, mem + n * PGSZ, zeroes, 9));

	/* Loaded again it does not know them, and works all the same. */
	ksm_load();
	ksm_begin(&k);
	EXPECT_EQ(0, ksm_stat("kernel_pages"));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	ksm_finish(&k);

	/* The last users of each page leave one after the other. */
	EXPECT_EQ(0, ksm_end(&a));
	EXPECT_EQ(0, ksm_call(&b, ksm_fn_wrong, mem, n, 7));
	EXPECT_EQ(0, ksm_end(&b));
	end = ksm_now() + KSM_PATIENCE;
	do {
		after = ksm_memfree();
	} while (after < before - 256 && ksm_now() < end);
	EXPECT_LE(before - 256, after);
}

static long fn_open_register(long addr, long npages, long unused, long unused2)
{
	int dev = open("/dev/ksm", O_RDWR);
	long area;

	(void)unused;
	(void)unused2;
	if (dev < 0)
		return -errno;
	area = ksm_fn_area_register(dev, addr, npages, 0);
	close(dev);
	return area;
}

/* Everything a process does to its memory, done to pages whose owner is gone. */
static long fn_treat_orphans(long addr, long npages, long seed, long unused)
{
	char *mem = (char *)addr, *to;
	size_t n = npages, len = n * PGSZ;
	int status;
	pid_t pid;

	(void)unused;
	if (mlock(mem, len) || ksm_wrong(mem, n, seed) || munlock(mem, len))
		return 1;
	madvise(mem, len, MADV_PAGEOUT);
	madvise(mem, len, MADV_COLD);
	if (ksm_wrong(mem, n, seed))
		return 2;
	if (mprotect(mem, len, PROT_NONE) || mprotect(mem, len, PROT_READ) ||
	    ksm_wrong(mem, n, seed) || mprotect(mem, len, PROT_READ | PROT_WRITE))
		return 3;
	to = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to == MAP_FAILED ||
	    mremap(mem, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to ||
	    ksm_wrong(to, n, seed))
		return 4;
	pid = fork();
	if (!pid) {
		if (ksm_wrong(to, n, seed))
			_exit(1);
		ksm_fill(to, n / 2, seed + 1);
		_exit(ksm_wrong(to, n / 2, seed + 1) != 0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		return 5;
	ksm_write_file("/proc/sys/vm/compact_memory", "1");
	if (ksm_wrong(to, n, seed))
		return 6;
	if (madvise(to, n / 4 * PGSZ, MADV_DONTNEED) || ksm_wrong_zero(to, n / 4) ||
	    munmap(to + n / 4 * PGSZ, n / 4 * PGSZ))
		return 7;
	if (mremap(to + n / 2 * PGSZ, n / 2 * PGSZ, n / 2 * PGSZ,
		   MREMAP_MAYMOVE | MREMAP_FIXED, mem) != mem)
		return 8;
	for (size_t i = 0; i < n / 2; i++)
		if (!ksm_page_is(mem + i * PGSZ, seed, n / 2 + i))
			return 9;
	return 0;
}

TEST_F(module, orphans_are_ordinary_memory)
{
	const size_t n = 256;
	char *mem = ksm_mmap(n);
	struct ksm_child a, b;
	struct ksm k;
	long area_a, area_b;

	ksm_spawn(&a);
	ksm_spawn(&b);
	ksm_call(&a, ksm_fn_fill, mem, n, 3);
	ksm_call(&b, ksm_fn_fill, mem, n, 3);
	area_a = ksm_call(&a, fn_open_register, mem, n, 0);
	area_b = ksm_call(&b, fn_open_register, mem, n, 0);
	ASSERT_LE(0, area_a);
	ASSERT_LE(0, area_b);
	k.dev = ksm_open();
	k.scan = ioctl(k.dev, KSM_CREATE_SCAN);
	ASSERT_LE(0, k.scan);
	ksm_merge_all(&k);
	ASSERT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	ksm_call(&a, ksm_fn_close, area_a, 0, 0);
	ksm_call(&b, ksm_fn_close, area_b, 0, 0);
	ksm_finish(&k);
	ASSERT_EQ(0, ksm_unload_soon());

	EXPECT_EQ(0, ksm_call(&a, fn_treat_orphans, mem, n, 3));
	EXPECT_EQ(0, ksm_call(&b, ksm_fn_wrong, mem, n, 3));
	EXPECT_EQ(0, ksm_end(&a));
	EXPECT_EQ(0, ksm_call(&b, ksm_fn_wrong, mem, n, 3));
	EXPECT_EQ(0, ksm_kill(&b) >> 8);
}

/* The module is loaded again over what its former self has merged. */
TEST_F(module, orphans_meet_the_next_load)
{
	const size_t n = 256;
	char *mem = ksm_mmap(n);
	struct ksm_child a, b, c, d;
	struct ksm k;
	long area_a, area_b;

	ksm_spawn(&a);
	ksm_spawn(&b);
	ksm_spawn(&c);
	ksm_spawn(&d);
	ksm_call(&a, ksm_fn_fill, mem, n, 3);
	ksm_call(&b, ksm_fn_fill, mem, n, 3);
	area_a = ksm_call(&a, fn_open_register, mem, n, 0);
	area_b = ksm_call(&b, fn_open_register, mem, n, 0);
	ASSERT_LE(0, area_a);
	ASSERT_LE(0, area_b);
	k.dev = ksm_open();
	k.scan = ioctl(k.dev, KSM_CREATE_SCAN);
	ASSERT_LE(0, k.scan);
	ksm_merge_all(&k);
	ASSERT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	ksm_call(&a, ksm_fn_close, area_a, 0, 0);
	ksm_call(&b, ksm_fn_close, area_b, 0, 0);
	ksm_finish(&k);
	ASSERT_EQ(0, ksm_unload_soon());
	ksm_load();

	/* New processes with the same contents next to the old ones. */
	ksm_call(&c, ksm_fn_fill, mem, n, 3);
	ksm_call(&d, ksm_fn_fill, mem, n, 3);
	ksm_begin(&k);
	ASSERT_LE(0, ksm_call(&c, fn_open_register, mem, n, 0));
	ASSERT_LE(0, ksm_call(&d, fn_open_register, mem, n, 0));
	ksm_merge_all(&k);
	ASSERT_LE(0, ksm_call(&a, fn_open_register, mem, n, 0));
	ASSERT_LE(0, ksm_call(&b, fn_open_register, mem, n, 0));
	/* To this load the old pages are anonymous memory, which it may merge. */
	EXPECT_EQ(n, ksm_same_frames(c.pid, mem, d.pid, mem, n));
	EXPECT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	EXPECT_EQ(0, ksm_same_frames(a.pid, mem, c.pid, mem, n));
	ksm_merge_all(&k);
	EXPECT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	EXPECT_EQ(n, ksm_same_frames(a.pid, mem, c.pid, mem, n));
	EXPECT_EQ(n, ksm_same_frames(a.pid, mem, d.pid, mem, n));
	EXPECT_EQ(3 * n, ksm_stat("pages_sharing"));
	EXPECT_EQ(n, ksm_stat("kernel_pages"));
	EXPECT_EQ(0, ksm_call(&a, ksm_fn_wrong, mem, n, 3));
	EXPECT_EQ(0, ksm_call(&b, ksm_fn_wrong, mem, n, 3));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_wrong, mem, n, 3));
	/* Written to, they are anonymous memory like any other, and merge again. */
	ksm_call(&a, ksm_fn_fill, mem, n, 4);
	ksm_call(&b, ksm_fn_fill, mem, n, 4);
	EXPECT_EQ(0, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	ksm_merge_all(&k);
	EXPECT_EQ(n, ksm_same_frames(a.pid, mem, b.pid, mem, n));
	EXPECT_EQ(0, ksm_call(&a, ksm_fn_wrong, mem, n, 4));
	EXPECT_EQ(0, ksm_call(&d, ksm_fn_wrong, mem, n, 3));
	EXPECT_EQ(0, ksm_end(&a));
	EXPECT_EQ(0, ksm_end(&b));
	EXPECT_EQ(0, ksm_end(&c));
	EXPECT_EQ(0, ksm_end(&d));
	ksm_finish(&k);
}

TEST_HARNESS_MAIN
