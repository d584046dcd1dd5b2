// SPDX-License-Identifier: GPL-2.0-only
/*
 * table_race_test.c - page tables vanish while they are being walked
 *
 * munmap(), brk() and a shrinking mremap() free page tables while they hold the mmap lock
 * for reading only. So a process, the mover, lets whole page tables come and go, and
 * others make the driver look at them just then:
 *
 *	the matcher	has pages that equal the mover's and merges them at once: so the
 *			driver looks up the mover's pages as candidates
 *	kksmd, a scan fd	gather what changed, and merge
 *	the prodder	gives the mover's merged pages back, and asks for statistics
 *
 * Mover and matcher go in step, a round for each set of contents. The mover strikes at
 * a random time while the matcher is at work.
 *
 * What each process reads is compared with what it wrote. But a walk that went into a
 * page table that was freed is for the kernel to report, and it takes luck: a few
 * nanoseconds between reading the address of a page table's lock and taking it. The
 * debug kernel has KASAN, and its module a parameter that makes them milliseconds: there
 * the test takes minutes. Elsewhere it takes seconds and shows no more than that all of
 * this does no harm. KSMDEV_RACE_SECONDS says how long each case takes.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"

#define DELAY		"/sys/module/ksmdev/parameters/race_delay_us"
#define DELAY_US	"2000"

#define TABLES		8
#define FILLED		128UL	/* pages of each table, so that it takes a while to unmap them */
#define MERGED		8UL	/* of these are registered */
#define TABLE_SIZE	KSM_HUGE_SIZE
#define LENGTH		(TABLES * TABLE_SIZE)
#define PAGES		(TABLES * MERGED)

/* Alone in their gigabytes, so that the tables above go, too. */
#define BASE		((char *)0x200000000000UL)
#define ELSEWHERE	((char *)0x300000000000UL)

/* How a process takes its page tables away, see strike(). */
enum way { UNMAP, SHRINK, BRK, MOVE, DISCARD };

/* What the processes tell each other. */
struct board {
	_Atomic unsigned long ready;	/* the round whose contents the mover has */
	_Atomic unsigned long matched;	/* the round that the matcher is through with */
	_Atomic unsigned long merged;
	_Atomic int stop;
};

static struct board *board;

enum { MOVER, MATCHER, SCANNER, PRODDER, CHILDREN };

FIXTURE(tables) {
	struct ksm k;
	int scan;	/* another one, for the scanner */
	int area;	/* the mover's */
	int matchers;	/* area */
	char *mem;	/* the matcher's */
	struct ksm_child child[CHILDREN];
	int seconds;
};

FIXTURE_VARIANT(tables) {
	enum way way;
	bool crowd;
};

FIXTURE_VARIANT_ADD(tables, unmap) { UNMAP, false };
FIXTURE_VARIANT_ADD(tables, shrink) { SHRINK, false };
FIXTURE_VARIANT_ADD(tables, brk) { BRK, false };
FIXTURE_VARIANT_ADD(tables, move) { MOVE, false };
FIXTURE_VARIANT_ADD(tables, discard) { DISCARD, false };
FIXTURE_VARIANT_ADD(tables, unmap_in_a_crowd) { UNMAP, true };
FIXTURE_VARIANT_ADD(tables, shrink_in_a_crowd) { SHRINK, true };
FIXTURE_VARIANT_ADD(tables, brk_in_a_crowd) { BRK, true };
FIXTURE_VARIANT_ADD(tables, move_in_a_crowd) { MOVE, true };
FIXTURE_VARIANT_ADD(tables, discard_in_a_crowd) { DISCARD, true };

FIXTURE_SETUP(tables)
{
	const char *seconds = getenv("KSMDEV_RACE_SECONDS");
	bool delay = ksm_is_slow();

	self->seconds = seconds ? atoi(seconds) : delay ? 15 : 1;
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT_NE(MAP_FAILED, board);
	ksm_begin(&self->k);
	self->scan = ioctl(self->k.dev, KSM_CREATE_SCAN);
	ASSERT_LE(0, self->scan);
	self->area = ksm_area(&self->k);
	self->matchers = ksm_area(&self->k);
	self->mem = ksm_mmap(PAGES);
	for (int i = 0; i < CHILDREN; i++)
		ksm_spawn(&self->child[i]);
	if (delay)
		ASSERT_EQ(0, ksm_write_file(DELAY, DELAY_US));
}

FIXTURE_TEARDOWN(tables)
{
	if (ksm_is_slow())
		ksm_write_file(DELAY, "0");
	for (int i = 0; i < CHILDREN; i++)
		ksm_end(&self->child[i]);
	close(self->matchers);
	close(self->area);
	close(self->scan);
	ksm_finish(&self->k);
}

/* ---- the mover ---- */

/* Where the mover's memory begins. With brk() it is where the heap ends, which nobody uses. */
static char *mover_base(enum way way)
{
	uintptr_t end;

	if (way != BRK)
		return BASE;
	end = (uintptr_t)sbrk(0);
	end = (end + TABLE_SIZE - 1) & ~(TABLE_SIZE - 1);
	if (brk((void *)end))
		ksm_die("brk: %s", strerror(errno));
	return (char *)end;
}

static void map(char *base, enum way way)
{
	if (way == BRK) {
		if (brk(base + LENGTH))
			ksm_die("brk: %s; give the VM more memory (--mem)", strerror(errno));
	} else if (mmap(base, LENGTH, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
			-1, 0) != base) {
		ksm_die("mmap at %p: %s", base, strerror(errno));
	}
	if (madvise(base, LENGTH, MADV_NOHUGEPAGE) && errno != EINVAL)
		ksm_die("MADV_NOHUGEPAGE: %s", strerror(errno));
}

/* The @i-th of the registered pages. */
static char *page_of(char *base, size_t i)
{
	return base + i / MERGED * TABLE_SIZE + i % MERGED * PGSZ;
}

static void fill(char *base, uint64_t seed)
{
	for (size_t i = 0; i < TABLES; i++)
		for (size_t page = 0; page < FILLED; page++)
			*(volatile char *)(base + i * TABLE_SIZE + page * PGSZ) = 1;
	for (size_t i = 0; i < PAGES; i++)
		ksm_fill_page(page_of(base, i), seed, i);
}

/* How many pages from the @first on are wrong; @seed 0: should be zero. */
static size_t wrong(char *base, size_t first, uint64_t seed)
{
	size_t n = 0;

	for (size_t i = first; i < PAGES; i++)
		n += seed ? !ksm_page_is(page_of(base, i), seed, i) :
			    !ksm_page_is_zero(page_of(base, i));
	return n;
}

static void move(char *from, char *to)
{
	if (mremap(from, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		ksm_die("mremap to %p: %s", to, strerror(errno));
}

/* Take the page tables away, and bring memory back. Return: how many pages are wrong. */
static size_t strike(char *base, enum way way, uint64_t seed)
{
	size_t n = wrong(base, 0, seed), kept = 0;

	switch (way) {
	case UNMAP:
		if (munmap(base, LENGTH))
			ksm_die("munmap: %s", strerror(errno));
		map(base, way);
		break;
	case SHRINK:
		if (mremap(base, LENGTH, TABLE_SIZE, 0) != base)
			ksm_die("mremap to a smaller size: %s", strerror(errno));
		if (mremap(base, TABLE_SIZE, LENGTH, 0) != base)
			ksm_die("mremap to a larger size: %s", strerror(errno));
		kept = MERGED;
		for (size_t i = 0; i < kept; i++)
			n += !ksm_page_is(page_of(base, i), seed, i);
		break;
	case BRK:
		if (brk(base))
			ksm_die("brk: %s", strerror(errno));
		map(base, way);
		break;
	case MOVE:
		move(base, ELSEWHERE);
		n += wrong(ELSEWHERE, 0, seed);
		move(ELSEWHERE, base);
		return n + wrong(base, 0, seed);
	case DISCARD:
		if (madvise(base, LENGTH, MADV_DONTNEED))
			ksm_die("MADV_DONTNEED: %s", strerror(errno));
		break;
	}
	return n + wrong(base, kept, 0);
}

static long mover(long way, long area, long scan, long seconds)
{
	double end = ksm_now() + seconds, ready, took = 0;
	char *base = mover_base(way);
	uint64_t rng = 12345;
	size_t n = 0;

	map(base, way);
	for (size_t i = 0; i < TABLES; i++)
		if (ksm_register(area, page_of(base, i * MERGED), MERGED))
			ksm_die("cannot register the mover's memory");
	/* Where one round takes as long as all should, there are more until one has merged pages. */
	for (unsigned long round = 1;
	     ksm_now() < end || (!board->merged && ksm_now() < end + KSM_PATIENCE); round++) {
		fill(base, round);
		/* Until they are candidates, and what there was has been forgotten. */
		if (ksm_scan(scan, 2 * ksm_stat("pages_registered")))
			ksm_die("KSM_SCAN: %s", strerror(errno));
		ready = ksm_now();
		board->ready = round;
		rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
		while (ksm_now() < ready + took * (rng >> 40) / (1 << 24))
			;
		n += strike(base, way, round);
		while (board->matched < round) {
			usleep(500);
			if (ksm_now() > end + KSM_PATIENCE + 300)
				ksm_die("the matcher does not come back");
		}
		took = ksm_now() - ready;
	}
	board->stop = 1;
	return n;
}

/* ---- those who make the driver look ---- */

static long matcher(long mem, long area, long unused, long unused2)
{
	char *base = (char *)mem;
	unsigned long round = 1;
	uint64_t merged;
	size_t n = 0;

	(void)unused;
	(void)unused2;
	if (ksm_register(area, base, PAGES))
		ksm_die("cannot register the matcher's memory");
	for (;;) {
		while (board->ready < round && !board->stop)
			usleep(100);
		if (board->stop)
			return n;
		ksm_fill(base, PAGES, round);
		if (ksm_merge_range(area, base, PAGES, &merged))
			ksm_die("KSM_MERGE_RANGE failed");
		board->merged += merged;
		n += ksm_wrong(base, PAGES, round);
		board->matched = round++;
	}
}

static long scanner(long scan, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	while (!board->stop)
		if (ksm_scan(scan, 2 * PAGES))
			ksm_die("KSM_SCAN failed");
	return 0;
}

static long prodder(long area, long unused, long unused2, long unused3)
{
	int err;

	(void)unused;
	(void)unused2;
	(void)unused3;
	while (!board->stop) {
		for (int i = 0; i < 8 && !board->stop; i++) {
			ksm_fdinfo(area, "pages_sharing");
			usleep(5000);
		}
		err = ksm_unmerge(area);
		if (err)
			ksm_die("KSM_UNMERGE: %s", strerror(-err));
	}
	return 0;
}

TEST_F_TIMEOUT(tables, vanish_under_a_walk, 900)
{
	int n = variant->crowd ? CHILDREN : MATCHER + 1;

	if (variant->crowd) {
		/* Full speed. */
		ASSERT_EQ(0, ksm_start(self->k.dev, 2 * PAGES, 0, 0));
		ksm_call_start(&self->child[SCANNER], scanner, self->scan, 0, 0, 0);
		ksm_call_start(&self->child[PRODDER], prodder, self->area, 0, 0, 0);
	}
	ksm_call_start(&self->child[MATCHER], matcher, KSM_ARG(self->mem), self->matchers, 0, 0);
	ksm_call_start(&self->child[MOVER], mover, variant->way, self->area, self->k.scan,
		       self->seconds);
	for (int i = 0; i < n; i++)
		EXPECT_EQ(0, ksm_call_finish(&self->child[i]));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	TH_LOG("%lu rounds, %lu pages merged", board->matched, board->merged);
	EXPECT_LT(0, board->matched);
	/* It was the mover's pages that they looked at: the matcher's own all differ. */
	EXPECT_LT(0, board->merged);
}

/*
 * Regions of one small chunk come and go with their processes, while many scan: a chunk is
 * found by its number before or after it is complete, or when it is gone.
 */
#define SCANNERS	4
#define NURSERIES	6

static long nursery(long dev, long mem, long unused, long unused2)
{
	long n = 0;

	(void)unused;
	(void)unused2;
	for (; !board->stop; n++) {
		pid_t pid = fork();
		int status;

		if (pid < 0)
			ksm_die("fork: %s", strerror(errno));
		if (!pid) {
			int area = ioctl((int)dev, KSM_CREATE_SHARED_MEMORY_AREA);

			ksm_fill((char *)mem, 4, n % 3 + 1);
			if (area < 0 || ksm_register(area, (char *)mem, 4) ||
			    ksm_merge_range(area, (char *)mem, 4, NULL))
				_exit(1);
			_exit(ksm_wrong((char *)mem, 4, n % 3 + 1) ? 2 : 0);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			ksm_die("a process with a region of four pages ended with status %#x",
				status);
	}
	return n;
}

TEST_F_TIMEOUT(device, chunks_come_and_go, 600)
{
	const char *seconds = getenv("KSMDEV_RACE_SECONDS");
	struct ksm_child scanners[SCANNERS], nurseries[NURSERIES];
	int scan[SCANNERS], length;
	bool delay = ksm_is_slow();
	char *mem = ksm_mmap(4);
	double end;
	long n = 0;

	length = seconds ? atoi(seconds) : delay ? 60 : 3;
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT_NE(MAP_FAILED, board);
	/* Pages that equal the children's, and stay. */
	ksm_fill(mem, 4, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, 4));
	for (int i = 0; i < SCANNERS; i++) {
		scan[i] = ioctl(self->k.dev, KSM_CREATE_SCAN);
		ASSERT_LE(0, scan[i]);
		ksm_spawn(&scanners[i]);
		ksm_call_start(&scanners[i], scanner, scan[i], 0, 0, 0);
	}
	for (int i = 0; i < NURSERIES; i++) {
		ksm_spawn(&nurseries[i]);
		ksm_call_start(&nurseries[i], nursery, self->k.dev, KSM_ARG(mem), 0, 0);
	}
	if (delay)
		ASSERT_EQ(0, ksm_write_file(DELAY, DELAY_US));
	for (end = ksm_now() + length; ksm_now() < end;)
		usleep(20000);
	board->stop = 1;
	if (delay)
		ASSERT_EQ(0, ksm_write_file(DELAY, "0"));
	for (int i = 0; i < NURSERIES; i++) {
		n += ksm_call_finish(&nurseries[i]);
		ksm_end(&nurseries[i]);
	}
	for (int i = 0; i < SCANNERS; i++) {
		ksm_call_finish(&scanners[i]);
		ksm_end(&scanners[i]);
		close(scan[i]);
	}
	TH_LOG("%ld processes, %lld passes", n, ksm_stat("full_scans"));
	EXPECT_EQ(0, ksm_wrong(mem, 4, 1));
	EXPECT_LT(0, n);
}

TEST_HARNESS_MAIN
