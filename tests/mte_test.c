// SPDX-License-Identifier: GPL-2.0-only
/*
 * mte_test.c - memory tags of arm64 (MTE)
 *
 * A tag of four bits for every 16 bytes is part of what a page holds, in mappings that asked
 * for them (PROT_MTE), and only its processor's instructions see it. So pages with tags are
 * never merged; and what was merged before its mapping asked for tags has those of nobody.
 */
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "ksm_harness.h"

#define N 32

#ifdef __aarch64__
#define TAGS	0x20	/* PROT_MTE */

static bool has_tags(void)
{
	return getauxval(AT_HWCAP2) & 1UL << 18;
}

static void set_tag(char *p, unsigned int tag)
{
	uint64_t tagged = (uintptr_t)p | (uint64_t)tag << 56;

	asm volatile(".arch armv8.5-a+memtag\n\tstg %0, [%1]" : : "r"(tagged), "r"(p) : "memory");
}

static unsigned int get_tag(const char *p)
{
	uint64_t tagged = 0;

	asm volatile(".arch armv8.5-a+memtag\n\tldg %0, [%1]" : "+r"(tagged) : "r"(p) : "memory");
	return tagged >> 56 & 15;
}
#else
#define TAGS	0

static bool has_tags(void)
{
	return false;
}

static void set_tag(char *p, unsigned int tag)
{
	(void)p;
	(void)tag;
}

static unsigned int get_tag(const char *p)
{
	(void)p;
	return 0;
}
#endif

#define NO_TAGS "this processor has no memory tags"

/* Give the first bytes of each page a tag, or expect it there; a page's tag is in its number. */
static unsigned int tag_of_page(unsigned int first, int page)
{
	return 1 + (first + page) % 15;
}

static void tag_pages(char *mem, unsigned int first)
{
	for (int i = 0; i < N; i++)
		set_tag(ksm_page(mem, i) + 16 * i, tag_of_page(first, i));
}

static size_t wrong_tags(const char *mem, unsigned int first)
{
	size_t n = 0;

	for (int i = 0; i < N; i++)
		n += get_tag(ksm_page((char *)mem, i) + 16 * i) != tag_of_page(first, i);
	return n;
}

/* Pages, as QEMU 7.2 gives a tag to more than the 16 bytes that it is for. */
static size_t count_tagged(const char *mem)
{
	size_t n = 0;

	for (int i = 0; i < N; i++) {
		bool tagged = false;

		for (size_t at = 0; at < PGSZ; at += 16)
			tagged |= get_tag(ksm_page((char *)mem, i) + at) != 0;
		n += tagged;
	}
	return n;
}

TEST_F(device, tagged_is_not_merged)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *c = ksm_mmap(N), *d = ksm_mmap(N);
	char *zeros = ksm_mmap(N);

	if (!has_tags())
		SKIP(return, NO_TAGS);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE | TAGS), 0);
	ASSERT_EQ(mprotect(b, N * PGSZ, PROT_READ | PROT_WRITE | TAGS), 0);
	ASSERT_EQ(mprotect(zeros, N * PGSZ, PROT_READ | PROT_WRITE | TAGS), 0);
	ksm_fill(a, N, 1);
	ksm_fill(b, N, 1);
	ksm_fill(c, N, 1);
	ksm_fill(d, N, 1);
	ksm_fn_zero((long)zeros, N, 0, 0);
	tag_pages(a, 1);
	tag_pages(b, 2);
	tag_pages(zeros, 3);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);
	ASSERT_EQ(ksm_register(self->area, d, N), 0);
	ASSERT_EQ(ksm_register(self->area, zeros, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, c, 0, d, N), N);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, N), 0);
	EXPECT_EQ(ksm_stat("zero_pages"), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N);
	EXPECT_EQ(wrong_tags(a, 1), 0);
	EXPECT_EQ(wrong_tags(b, 2), 0);
	EXPECT_EQ(wrong_tags(zeros, 3), 0);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
}

/* A shared page may come to have tags: all zero, and whoever sets one gets a copy first. */
TEST_F(device, tags_of_merged_memory)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *c = ksm_mmap(N);

	if (!has_tags())
		SKIP(return, NO_TAGS);
	ksm_fill(a, N, 2);
	ksm_fill(b, N, 2);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE | TAGS), 0);
	EXPECT_EQ(count_tagged(a), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	set_tag(ksm_page(a, 3), 7);
	EXPECT_EQ(get_tag(ksm_page(a, 3)), 7);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N - 1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N - 1);
	EXPECT_EQ(get_tag(ksm_page(a, 3)), 7);
	EXPECT_EQ(count_tagged(a), 1);

	/*
	 * Nobody who comes later sees anything of it. The page that b has for itself again is
	 * a copy of one that had tags, of zero, and so is left alone.
	 */
	ksm_fill(c, N, 2);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, c, 0, b, N), N - 1);
	ASSERT_EQ(mprotect(c, N * PGSZ, PROT_READ | PROT_WRITE | TAGS), 0);
	EXPECT_EQ(count_tagged(c), 0);

	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
	EXPECT_EQ(count_tagged(a), 1);
	EXPECT_EQ(count_tagged(c), 0);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 2), 0);
	EXPECT_EQ(ksm_wrong(c, N, 2), 0);
}

TEST_HARNESS_MAIN
