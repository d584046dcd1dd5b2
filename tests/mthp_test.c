// SPDX-License-Identifier: GPL-2.0-only
/*
 * mthp_test.c - large folios that are smaller than a huge page
 *
 * Since 6.8 an anonymous fault may bring in such a one (multi-size THP), which ptes map. On arm64 a
 * block of 64 KiB, or of 2 MiB with pages of 16 KiB, is one entry of the TLB then, by a bit in each of
 * its ptes, and what the hardware notes in one of these it notes for all. So it is split before
 * one of its pages is merged, if enough of them are equal to others, and what is written to its
 * neighbours is not lost. (That they were one entry follows from their size and place; nothing tells.)
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "ksm_harness.h"
#include "ksm_told.h"

#define THP	"/sys/kernel/mm/transparent_hugepage/"
#define KB	(PGSZ == 4096 ? 64 : 2048)
#define NR	((int)(KB * 1024 / PGSZ))	/* pages of a folio */
/* Less than a huge page has, which would be taken otherwise. */
#define N	(KSM_HUGE_PAGES / 2)
#define FOLIOS	(N / NR)
/* As many of a folio's pages as are worth a split: thp_split_threshold is an eighth. */
#define ENOUGH	(NR / 8)

/* /proc/kpageflags */
#define KPF_BIT_HEAD	15
#define KPF_BIT_TAIL	16

FIXTURE(mthp)
{
	struct ksm k;
	struct ksm_child c[2];
	char *mem;
	char was[64];
};

static const char *enabled(void)
{
	static char path[128];

	snprintf(path, sizeof(path), THP "hugepages-%dkB/enabled", (int)KB);
	return path;
}

/* In its own page table, of which it takes half. */
static char *map_half(void)
{
	char *p = mmap(NULL, 2 * KSM_HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		ksm_die("mmap: %m");
	p = (char *)(((uintptr_t)p + KSM_HUGE_SIZE - 1) & ~(KSM_HUGE_SIZE - 1));
	if (mprotect(p, N * PGSZ, PROT_READ | PROT_WRITE) || madvise(p, N * PGSZ, MADV_HUGEPAGE))
		ksm_die("half a page table cannot be had: %m");
	return p;
}

FIXTURE_SETUP(mthp)
{
	FILE *f = fopen(enabled(), "re");
	char line[128] = "", *word;

	if (!f)
		SKIP(return, "this kernel has no large folios of such a size");
	if (!fgets(line, sizeof(line), f))
		ksm_die("%s cannot be read", enabled());
	fclose(f);
	word = strchr(line, '[');
	if (!word || sscanf(word, "[%63[a-z]]", self->was) != 1)
		ksm_die("%s says %s", enabled(), line);
	ASSERT_EQ(0, ksm_write_file(enabled(), "madvise"));
	ksm_begin(&self->k);
	self->mem = map_half();
	for (int i = 0; i < 2; i++)
		ksm_spawn(&self->c[i]);
}

FIXTURE_TEARDOWN(mthp)
{
	for (int i = 0; i < 2; i++)
		ksm_end(&self->c[i]);
	ksm_finish(&self->k);
	ksm_write_file(enabled(), self->was);
}

/* The first pages of each folio are the same whatever the seed, the others differ. */
static long fn_fill_part(long mem, long common, long seed, long unused)
{
	(void)unused;
	for (long i = 0; i < N; i++)
		ksm_fill_page(ksm_page((void *)mem, i), i % NR < common ? 1 : seed, i);
	return 0;
}

static long fn_wrong_part(long mem, long common, long seed, long unused)
{
	long wrong = 0;

	(void)unused;
	for (long i = 0; i < N; i++)
		wrong += !ksm_page_is(ksm_page((void *)mem, i), i % NR < common ? 1 : seed, i);
	return wrong;
}

/* How many pages are parts of a large folio. */
static long large(pid_t pid, const char *mem)
{
	return told_flag(pid, mem, N, KPF_BIT_HEAD) + told_flag(pid, mem, N, KPF_BIT_TAIL);
}

static long same(const struct ksm_child *c, const char *mem)
{
	return ksm_same_frames(c[0].pid, mem, c[1].pid, mem, N);
}

/* Both have large folios, of which so many pages are equal. */
static void fill(struct ksm *k, struct ksm_child *c, char *mem, long common)
{
	for (int i = 0; i < 2; i++) {
		ksm_call(&c[i], fn_fill_part, mem, common, 10 + i);
		if (ksm_call(&c[i], ksm_fn_area_register, k->dev, mem, N) < 0)
			ksm_die("it cannot be registered");
		if (large(c[i].pid, mem) != N)
			ksm_die("%ld of %d pages are in large folios", large(c[i].pid, mem), N);
	}
}

static long wrong(struct ksm_child *c, char *mem, long common)
{
	return ksm_call(&c[0], fn_wrong_part, mem, common, 10) +
	       ksm_call(&c[1], fn_wrong_part, mem, common, 11);
}

/* All of it is shared, and written again. */
TEST_F(mthp, all_is_shared)
{
	fill(&self->k, self->c, self->mem, NR);
	ksm_merge_all(&self->k);
	EXPECT_EQ(N, same(self->c, self->mem));
	EXPECT_EQ(0, large(self->c[0].pid, self->mem));
	EXPECT_EQ(0, wrong(self->c, self->mem, NR));
	ksm_call(&self->c[0], fn_fill_part, self->mem, 0, 10);
	EXPECT_EQ(0, ksm_call(&self->c[0], fn_wrong_part, self->mem, 0, 10));
	EXPECT_EQ(0, ksm_call(&self->c[1], fn_wrong_part, self->mem, NR, 11));
}

/* A part of each, if that is worth it. */
TEST_F(mthp, a_part_is_shared)
{
	fill(&self->k, self->c, self->mem, ENOUGH);
	ksm_merge_all(&self->k);
	EXPECT_EQ(FOLIOS * ENOUGH, same(self->c, self->mem));
	EXPECT_EQ(0, wrong(self->c, self->mem, ENOUGH));
}

TEST_F(mthp, too_little_is_left_alone)
{
	fill(&self->k, self->c, self->mem, ENOUGH - 1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, same(self->c, self->mem));
	EXPECT_EQ(N, large(self->c[0].pid, self->mem));
	EXPECT_EQ(N, large(self->c[1].pid, self->mem));
	EXPECT_EQ(0, wrong(self->c, self->mem, ENOUGH - 1));
}

/* Some pages of each folio, from a number on. */
static long fn_discard(long mem, long first, long npages, long unused)
{
	(void)unused;
	for (long i = 0; i < FOLIOS; i++)
		if (madvise(ksm_page((void *)mem, i * NR + first), npages * PGSZ, MADV_DONTNEED))
			return -errno;
	return 0;
}

/* All but the last page, to where they are in another place of a block. */
static long fn_move(long from, long to, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return mremap((void *)from, (N - 1) * PGSZ, (N - 1) * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED,
		      (void *)(to + PGSZ)) == (void *)(to + PGSZ) ? 0 : -errno;
}

/* Some of a folio's pages are gone, others are mapped elsewhere. */
TEST_F(mthp, in_parts)
{
	char *elsewhere = map_half();
	struct ksm_child *c = self->c;
	size_t here;

	/* They have that mapping, too. */
	for (int i = 0; i < 2; i++) {
		ksm_end(&c[i]);
		ksm_spawn(&c[i]);
	}
	fill(&self->k, c, self->mem, NR);
	ASSERT_EQ(0, ksm_call(&c[0], fn_discard, self->mem, 2, 2));
	ASSERT_EQ(0, ksm_call(&c[1], fn_move, self->mem, elsewhere, 0));
	ASSERT_LE(0, ksm_call(&c[1], ksm_fn_area_register, self->k.dev, elsewhere, N));
	ksm_merge_all(&self->k);
	here = ksm_same_frames(c[0].pid, self->mem, c[1].pid, ksm_page(elsewhere, 1), N - 1);
	EXPECT_EQ((size_t)(N - 1 - FOLIOS * 2), here);
	for (long i = 0; i < N - 1; i++) {
		bool gone = i % NR >= 2 && i % NR < 4;

		EXPECT_EQ(gone, !ksm_pfn(c[0].pid, ksm_page(self->mem, i)));
	}
	EXPECT_EQ(0, ksm_call(&c[1], ksm_fn_wrong, ksm_page(elsewhere, 1), N - 1, 1));
	EXPECT_EQ((long)FOLIOS * 2, ksm_call(&c[0], fn_wrong_part, self->mem, NR, 10));
}

static _Atomic int stop;

/* One page of each folio, over and over; its number is in all of its words. */
static void *write_main(void *arg)
{
	for (unsigned long round = 1; !stop; round++)
		for (long i = 0; i < FOLIOS; i++) {
			volatile unsigned long *page = (void *)ksm_page(arg, i * NR + NR - 1);

			for (size_t w = 0; w < PGSZ / sizeof(*page); w++)
				page[w] = round;
			for (size_t w = 0; w < PGSZ / sizeof(*page); w++)
				if (page[w] != round)
					return (void *)1;
		}
	return NULL;
}

static pthread_t writer;

static long fn_write_start(long mem, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return -pthread_create(&writer, NULL, write_main, (void *)mem);
}

static long fn_write_stop(long unused, long unused2, long unused3, long unused4)
{
	void *lost;

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	stop = 1;
	pthread_join(writer, &lost);
	return (long)lost;
}

/* Neighbours of what is written all the time are merged, and nothing is lost. */
TEST_F(mthp, written_meanwhile)
{
	const size_t quiet = FOLIOS * (NR - 1);

	fill(&self->k, self->c, self->mem, NR);
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, ksm_call(&self->c[i], fn_write_start, self->mem, 0, 0));
	ASSERT_EQ(0, ksm_start(self->k.dev, 2000, 0, 0));
	EXPECT_TRUE(ksm_wait_least("pages_sharing", quiet));
	EXPECT_TRUE(ksm_wait_more("full_scans", 10, KSM_PATIENCE));
	for (int i = 0; i < 2; i++)
		EXPECT_EQ(0, ksm_call(&self->c[i], fn_write_stop, 0, 0, 0));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	for (int i = 0; i < 2; i++)
		EXPECT_EQ((long)FOLIOS, ksm_call(&self->c[i], fn_wrong_part, self->mem, NR, 10 + i));
}

TEST_HARNESS_MAIN
