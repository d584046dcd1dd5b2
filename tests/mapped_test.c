// SPDX-License-Identifier: GPL-2.0-only
/*
 * mapped_test.c - pages that a process wrote in a private mapping of a file
 *
 * Such a page is the process's own, and no longer the file's: it can be merged like
 * any other, and whatever is done to the file (a hole, a write around the page cache)
 * must leave it alone. Only truncation takes it, by the rules of POSIX, and the kernel
 * does that to merged pages as to others. It may never become the kernel's zero page:
 * there the kernel takes that for a page of the file. Pages that were only read are the
 * file's, and are left alone.
 *
 * On shared memory (tmpfs) and on a disk's file system.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64

/* What the file holds, and what is written over it in memory. */
#define FILE_SEED 900
#define OWN_SEED 901

FIXTURE(mapped)
{
	struct ksm k;
	int area;
	bool disk;
	struct ksm_loop loop;
	char dir[64];
	char path[80];
	int fd;
};

FIXTURE_VARIANT(mapped)
{
	bool disk;
};

FIXTURE_VARIANT_ADD(mapped, shmem) { .disk = false };
FIXTURE_VARIANT_ADD(mapped, ext4) { .disk = true };

static void fill_file(int fd, size_t npages, uint64_t seed)
{
	char *page = aligned_alloc(PGSZ, PGSZ);

	for (size_t i = 0; i < npages; i++) {
		ksm_fill_page(page, seed, i);
		if (pwrite(fd, page, PGSZ, i * PGSZ) != (ssize_t)PGSZ)
			ksm_die("cannot write a file: %s", strerror(errno));
	}
	free(page);
}

FIXTURE_SETUP(mapped)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->disk = variant->disk;
	if (!self->disk) {
		self->fd = memfd_create("mapped_test", MFD_CLOEXEC);
	} else {
		ksm_loop_open(&self->loop, 2048);
		ksm_shell("mke2fs %s >/dev/null", self->loop.path);
		ksm_shell("modprobe ext4");
		snprintf(self->dir, sizeof(self->dir), "/tmp/mapped_test.%d", getpid());
		if (mkdir(self->dir, 0700) || mount(self->loop.path, self->dir, "ext4", 0, NULL))
			ksm_die("cannot mount %s on %s: %s", self->loop.path, self->dir,
				strerror(errno));
		snprintf(self->path, sizeof(self->path), "%s/file", self->dir);
		self->fd = open(self->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	}
	if (self->fd < 0)
		ksm_die("cannot make a file: %s", strerror(errno));
	fill_file(self->fd, N, FILE_SEED);
}

FIXTURE_TEARDOWN(mapped)
{
	close(self->area);
	ksm_finish(&self->k);
	close(self->fd);
	if (self->disk) {
		/* Not until the test's own mappings are gone. */
		if (umount2(self->dir, MNT_DETACH) || rmdir(self->dir))
			ksm_die("cannot unmount %s: %s", self->dir, strerror(errno));
	}
}

/* A private mapping of the whole file with a hole on either side. */
static char *map_private(int fd, size_t npages)
{
	char *p = ksm_mmap(npages);

	p = mmap(p, npages * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	if (p == MAP_FAILED)
		ksm_die("cannot map a file: %s", strerror(errno));
	return p;
}

/* One that is all written, and registered. */
static char *map_written(int fd, int area, size_t npages, uint64_t seed)
{
	char *p = map_private(fd, npages);

	ksm_fill(p, npages, seed);
	if (ksm_register(area, p, npages))
		ksm_die("KSM_REGISTER_MEMORY_REGION of a file's private mapping failed");
	return p;
}

/* How many pages can be read at all; others end in SIGBUS for who touches them. */
static size_t readable(const char *addr, size_t npages)
{
	size_t n = 0;
	int fds[2];
	char byte;

	if (pipe(fds))
		ksm_die("pipe: %s", strerror(errno));
	for (size_t i = 0; i < npages; i++)
		if (write(fds[1], ksm_page(addr, i), 1) == 1)
			n += read(fds[0], &byte, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return n;
}

static size_t wrong_from(const char *addr, size_t first, size_t last, uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = first; i < last; i++)
		wrong += !ksm_page_is(ksm_page(addr, i), seed, i);
	return wrong;
}

static int punch(int fd, size_t first, size_t npages)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PGSZ,
			 npages * PGSZ);
}

/* Two mappings of one file, in this process and in another, and anonymous memory. */
TEST_F(mapped, written_pages_merge)
{
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_private(self->fd, N), *c = ksm_mmap(N), *page = malloc(PGSZ);
	struct ksm_child child;

	ksm_spawn(&child);
	ksm_call(&child, ksm_fn_fill, b, N, OWN_SEED);
	ASSERT_GE(ksm_call(&child, ksm_fn_area_register, self->k.dev, b, N), 0);
	ksm_fill(c, N, OWN_SEED);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, child.pid, b, N), N);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, N), N);
	EXPECT_STATS(N, 2 * N, 0, 0, 0);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_call(&child, ksm_fn_wrong, b, N, OWN_SEED), 0);
	/* Who did not write has the file. */
	EXPECT_EQ(ksm_wrong(b, N, FILE_SEED), 0);

	/* Written again, in each of them; and the file never learns of it. */
	ksm_fill(a, N / 2, OWN_SEED + 1);
	ksm_call(&child, ksm_fn_fill, b, N / 4, OWN_SEED + 2);
	EXPECT_EQ(ksm_wrong(a, N / 2, OWN_SEED + 1), 0);
	EXPECT_EQ(wrong_from(a, N / 2, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_call(&child, ksm_fn_wrong, ksm_page(b, 0), N / 4, OWN_SEED + 2), 0);
	EXPECT_EQ(ksm_wrong(c, N, OWN_SEED), 0);
	for (int i = 0; i < N; i++) {
		ASSERT_EQ(pread(self->fd, page, PGSZ, i * PGSZ), (ssize_t)PGSZ);
		EXPECT_TRUE(ksm_page_is(page, FILE_SEED, i));
	}
	ksm_end(&child);
	/* Given back, they are private copies. */
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, N), 0);
	EXPECT_EQ(ksm_wrong(a, N / 2, OWN_SEED + 1), 0);
	EXPECT_EQ(wrong_from(a, N / 2, N, OWN_SEED), 0);
	/* Thrown away, it is the file that shows again. */
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_DONTNEED), 0);
	EXPECT_EQ(ksm_wrong(a, N, FILE_SEED), 0);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
}

/* What was only read is the file's: it stays, and shows what is written to the file. */
TEST_F(mapped, read_pages_are_left_alone)
{
	char *a = map_private(self->fd, N), *b = map_private(self->fd, N);
	char *c = ksm_mmap(N);
	uint64_t pfns[N];

	ASSERT_EQ(ksm_wrong(a, N, FILE_SEED), 0);
	ASSERT_EQ(ksm_wrong(b, N, FILE_SEED), 0);
	ksm_fill(c, N, FILE_SEED);
	/* Every other page of a is written, with what it held. */
	for (int i = 0; i < N; i += 2)
		ksm_fill_page(ksm_page(a, i), FILE_SEED, i);
	ksm_pfns(0, b, N, pfns);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, N), N / 2);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N / 2);
	fill_file(self->fd, N, FILE_SEED + 1);
	EXPECT_EQ(ksm_wrong(b, N, FILE_SEED + 1), 0);
	for (int i = 0; i < N; i++)
		EXPECT_TRUE(ksm_page_is(ksm_page(a, i), FILE_SEED + i % 2, i));
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
}

/* A hole in the file takes the file's pages, and nobody's own. */
TEST_F(mapped, hole)
{
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_written(self->fd, self->area, N, OWN_SEED);
	char *reader = map_private(self->fd, N);

	ASSERT_EQ(ksm_wrong(reader, N, FILE_SEED), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(punch(self->fd, N / 4, N / 2), 0);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong(b, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(reader, N / 4), N / 2), 0);
	/* Also where one mapper is left, and after the driver let go of the pages. */
	munmap(b, N * PGSZ);
	ASSERT_EQ(punch(self->fd, 0, N), 0);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(punch(self->fd, 0, N), 0);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	munmap(a, N * PGSZ);
	munmap(reader, N * PGSZ);
}

/* Pages of zeros: merged, but never the kernel's zero page, which a hole would take. */
TEST_F(mapped, zeros)
{
	char *a = map_private(self->fd, N), *b = ksm_mmap(N);
	uint64_t zero = ksm_zero_pfn();
	size_t zeros = 0;

	ksm_fn_zero((long)a, N, 0, 0);
	ksm_fn_zero((long)b, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	/* Anonymous memory goes to the zero page as ever; this has a page of its own. */
	EXPECT_EQ(ksm_distinct(0, b, N), 1);
	EXPECT_EQ(ksm_pfn(0, b), zero);
	EXPECT_EQ(ksm_distinct(0, a, N), 1);
	for (int i = 0; i < N; i++)
		zeros += ksm_pfn(0, ksm_page(a, i)) == zero;
	EXPECT_EQ(zeros, 0);
	EXPECT_EQ(ksm_stat("zero_pages"), N);

	fill_file(self->fd, N, FILE_SEED + 1);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);
	ASSERT_EQ(punch(self->fd, 0, N / 2), 0);
	fill_file(self->fd, N, FILE_SEED + 2);
	EXPECT_EQ(ksm_wrong_zero(a, N), 0);
	ksm_fill(a, N / 2, OWN_SEED);
	EXPECT_EQ(ksm_wrong(a, N / 2, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(a, N / 2), N / 2), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(a, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_distinct(0, a, N), N);
	munmap(a, N * PGSZ);
}

/* Truncation takes private copies too; merged pages go as those that never merged. */
TEST_F(mapped, truncated)
{
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_written(self->fd, self->area, N, OWN_SEED);
	char *control = map_private(self->fd, N);

	ksm_fill(control, N, OWN_SEED);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(ftruncate(self->fd, N / 2 * PGSZ), 0);
	EXPECT_EQ(readable(control, N), N / 2);
	EXPECT_EQ(readable(a, N), N / 2);
	EXPECT_EQ(readable(b, N), N / 2);
	EXPECT_EQ(ksm_distinct(0, ksm_page(a, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_wrong(a, N / 2, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong(b, N / 2, OWN_SEED), 0);
	/* A scan over what is gone, an unmerge, and the file grows again. */
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	ASSERT_EQ(ftruncate(self->fd, N * PGSZ), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(control, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(a, N / 2), N / 2), 0);
	ksm_merge_all(&self->k);
	for (size_t i = N / 2; i < N; i++)
		ksm_fill_page(ksm_page(a, i), OWN_SEED, i);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(b, N / 2), N / 2), 0);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong(b, N / 2, OWN_SEED), 0);
	/* Cut off while only one maps them, and when nothing is left of it. */
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	EXPECT_EQ(readable(a, N), 0);
	EXPECT_EQ(readable(b, N), 0);
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_TRUE(ksm_wait_stat("pages_shared", 0));
	EXPECT_TRUE(ksm_wait_stat("kernel_pages", 0));
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
	munmap(control, N * PGSZ);
}

/* A write around the page cache, and a cache that is dropped, take the file's pages. */
TEST_F(mapped, cache_invalidated)
{
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_written(self->fd, self->area, N, OWN_SEED);
	char *reader = map_private(self->fd, N);

	ASSERT_EQ(ksm_wrong(reader, N, FILE_SEED), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	if (self->disk) {
		int fd = open(self->path, O_RDWR | O_DIRECT | O_CLOEXEC);

		ASSERT_GE(fd, 0);
		fill_file(fd, N, FILE_SEED + 1);
		close(fd);
		EXPECT_EQ(ksm_wrong(reader, N, FILE_SEED + 1), 0);
	}
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong(b, N, OWN_SEED), 0);
	ASSERT_EQ(fsync(self->fd), 0);
	ASSERT_EQ(posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	ASSERT_EQ(ksm_write_file("/proc/sys/vm/drop_caches", "3"), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong(b, N, OWN_SEED), 0);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
	munmap(reader, N * PGSZ);
}

/* A process of which parts were restored from a snapshot, twice: guests are made so. */
TEST_F(mapped, forked)
{
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_written(self->fd, self->area, N, OWN_SEED);
	struct ksm_child c;

	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ksm_spawn(&c);
	EXPECT_EQ(ksm_same_frames(0, a, c.pid, b, N), N);
	ASSERT_EQ(punch(self->fd, 0, N), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, OWN_SEED), 0);
	ksm_call(&c, ksm_fn_fill, a, N, OWN_SEED + 1);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	ksm_fill(b, N, OWN_SEED + 2);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, OWN_SEED + 1), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, OWN_SEED), 0);
	ksm_end(&c);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	EXPECT_EQ(ksm_wrong(b, N, OWN_SEED + 2), 0);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
}

struct puncher {
	int fd;
	unsigned long punched;
	bool stop;
};

static void *punch_all_the_time(void *arg)
{
	struct puncher *p = arg;

	while (!__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE)) {
		if (!punch(p->fd, 0, N))
			__atomic_add_fetch(&p->punched, 1, __ATOMIC_RELEASE);
		fill_file(p->fd, N, FILE_SEED);
	}
	return NULL;
}

/* Holes come while kksmd merges and the owners write: what was merged in each round can tell. */
TEST_F_TIMEOUT(mapped, holes_all_the_time, 300)
{
	double end = ksm_now() + 2 * KSM_PATIENCE;
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_written(self->fd, self->area, N, OWN_SEED);
	struct puncher puncher = { .fd = self->fd };
	pthread_t thread;
	size_t wrong = 0, merged = 0;

	ASSERT_EQ(pthread_create(&thread, NULL, punch_all_the_time, &puncher), 0);
	ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 1000), 0);
	for (int round = 0; round < 20; round++) {
		unsigned long since = __atomic_load_n(&puncher.punched, __ATOMIC_ACQUIRE);
		uint64_t seed = OWN_SEED + round % 3;

		ksm_fill(a, N, seed);
		ksm_fill(b, N, round % 2 ? seed : OWN_SEED);
		memset(ksm_page(a, 3), 0, 2 * PGSZ);
		/* As long as nothing is shared yet, a hole shows nothing. */
		while (seed == OWN_SEED && !ksm_same_frames(0, a, 0, b, N) && ksm_now() < end) {
			usleep(1000);
			since = __atomic_load_n(&puncher.punched, __ATOMIC_ACQUIRE);
		}
		while (__atomic_load_n(&puncher.punched, __ATOMIC_ACQUIRE) < since + 2)
			usleep(1000);
		merged += ksm_same_frames(0, a, 0, b, N);
		wrong += ksm_wrong(a, 3, seed) + wrong_from(a, 5, N, seed) +
			 ksm_wrong_zero(ksm_page(a, 3), 2) +
			 ksm_wrong(b, N, round % 2 ? seed : OWN_SEED);
	}
	EXPECT_EQ(wrong, 0);
	TH_LOG("%zu pages were merged, of %d rounds", merged, 20);
	EXPECT_LT(0, merged);
	ASSERT_EQ(ksm_stop(self->k.dev), 0);
	__atomic_store_n(&puncher.stop, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
}

/* Let the kernel's own ksmd see everything several times. */
static void ksmd_passes(unsigned int passes)
{
	long long end = ksm_read_number("/sys/kernel/mm/ksm/full_scans") + passes;

	ksm_write_file("/sys/kernel/mm/ksm/smart_scan", "0");
	ksm_write_file("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	ksm_write_file("/sys/kernel/mm/ksm/pages_to_scan", "5000");
	ksm_write_file("/sys/kernel/mm/ksm/run", "1");
	while (ksm_read_number("/sys/kernel/mm/ksm/full_scans") < end)
		usleep(10000);
	ksm_write_file("/sys/kernel/mm/ksm/run", "0");
}

/* As much is saved as by the kernel's own KSM on the same memory. */
/*
 * One process is left with them: they are as other pages of such a mapping, and can be swapped out,
 * which takes that they are found in the process by where they lie in the mapping.
 */
TEST_F(mapped, alone_again)
{
	char *a = map_written(self->fd, self->area, N, OWN_SEED);
	char *b = map_written(self->fd, self->area, N, OWN_SEED);
	struct ksm_swap swap;

	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(munmap(b, N * PGSZ), 0);
	for (int i = 0; i < 100 && ksm_stat("kernel_pages"); i++)
		ksm_passes(&self->k, 1);
	ASSERT_EQ(ksm_stat("kernel_pages"), 0);
	ksm_drain_batches();
	ksm_swap_on(&swap, false, 4 * N);
	EXPECT_EQ(ksm_page_out(a, N), N);
	EXPECT_EQ(ksm_wrong(a, N, OWN_SEED), 0);
	munmap(a, N * PGSZ);
	ksm_swap_off(&swap);
}

TEST_F(mapped, saves_as_much_as_ksmd)
{
	char *all = ksm_mmap(5 * N), *p = all;
	size_t by_ksmd, by_us;

	/* Two mappings with pages written alike, read, and of zeros; and anonymous memory. */
	for (int i = 0; i < 2; i++, p += 2 * N * PGSZ) {
		if (mmap(p, N * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
			 self->fd, 0) == MAP_FAILED)
			ksm_die("cannot map a file: %s", strerror(errno));
		ksm_fill(p, N / 2, OWN_SEED);
		ASSERT_EQ(wrong_from(p, N / 2, N / 4 * 3, FILE_SEED), 0);
		memset(ksm_page(p, N / 4 * 3), 0, N / 4 * PGSZ);
		ksm_fill(ksm_page(p, N), N, OWN_SEED);
	}
	ksm_fill(p, N / 2, FILE_SEED);
	ksm_fill(ksm_page(p, N / 2), N / 2, OWN_SEED + 9);

	ASSERT_EQ(madvise(all, 5 * N * PGSZ, MADV_MERGEABLE), 0);
	ksmd_passes(4);
	by_ksmd = ksm_distinct(0, all, 5 * N);
	ASSERT_EQ(madvise(all, 5 * N * PGSZ, MADV_UNMERGEABLE), 0);
	ASSERT_LT(by_ksmd, 4 * N);

	ASSERT_EQ(ksm_register(self->area, all, 5 * N), 0);
	ksm_merge_all(&self->k);
	by_us = ksm_distinct(0, all, 5 * N);
	TH_LOG("%lu pages take %zu frames with ksmd, %zu with us", 5 * (unsigned long)N,
	       by_ksmd, by_us);
	EXPECT_LE(by_us, by_ksmd);
	munmap(all, 5 * N * PGSZ);
}

TEST_HARNESS_MAIN
