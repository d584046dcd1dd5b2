// SPDX-License-Identifier: GPL-2.0-only
/*
 * hash.c - hashes of pages: of a few cache lines, and of all there is
 *
 * Two contents may have the same one, by chance. That they do not by design is why the hash is
 * keyed with a random secret. That they are the same in the few lines of the sample can be had by
 * whoever makes pages that differ in few places; so which lines these are is a secret, too, and
 * what becomes of those who learn it is in sample.c.
 */
#include <linux/highmem.h>
#include <linux/prefetch.h>
#include <linux/random.h>
#include <linux/siphash.h>

#include "../include/engine.h"
#include "../include/hash.h"
#include "../include/mm.h"

#define PAGE_WORDS	(PAGE_SIZE / sizeof(u64))

/* As many as a processor fetches side by side; more cost time, and fewer tell less. */
#define SAMPLE_LINES	4
#define SAMPLE_STEP	(PAGE_WORDS / SAMPLE_LINES)

/* The secrets: a number for each word of a page, and a key for what comes of them; */
static u64 hash_numbers[PAGE_WORDS] __read_mostly;
static siphash_key_t hash_key __read_mostly;
/* and where the lines of the sample begin, one in each part of a page. */
static u16 sample_lines[SAMPLE_LINES] __read_mostly;

/*
 * Whoever knows how one page hashes relative to another makes pages that all hash
 * alike, and pages that hash as somebody else's do and keep those from being merged.
 * A seed does not prevent that: of xxh64() with two words changed to make up for each
 * other, every fourth pair collides, whatever the seed. The sum of products here (the
 * NH of UMAC) is the same for two given pages with a probability of 2^-64 over the
 * secret numbers; siphash() hides it.
 */
static unsigned __int128 sum_of_line(const u64 *word, const u64 *number)
{
	/* By hand, as compilers do not unroll at -O2. */
	return (unsigned __int128)(word[0] + number[0]) * (word[1] + number[1]) +
	       (unsigned __int128)(word[2] + number[2]) * (word[3] + number[3]) +
	       (unsigned __int128)(word[4] + number[4]) * (word[5] + number[5]) +
	       (unsigned __int128)(word[6] + number[6]) * (word[7] + number[7]);
}

static u64 finish(unsigned __int128 sum, u32 domain, bool whole)
{
	u64 hash = siphash_3u64(sum, sum >> 64, (u64)whole << 32 | domain, &hash_key);

	hash >>= 64 - FINGERPRINT_BITS;
#ifdef KSMDEV_FEW_BITS
	/* A build to see what becomes of collisions. */
	hash &= (1ULL << KSMDEV_FEW_BITS) - 1;
#endif
	return hash;
}

/**
 * hash_sample() - hash a few lines of a page
 * @page: a page the caller holds a reference to
 * @domain: the number of the domain that it is of
 *
 * Context: Any.
 * Return: the upper bits of the keyed hash of what the page holds there now.
 */
u64 hash_sample(struct page *page, u32 domain)
{
	const u64 *word = kmap_local_page(page);
	unsigned __int128 sum = 0;
	unsigned int i;

	for (i = 0; i < SAMPLE_LINES; i++)
		sum += sum_of_line(word + sample_lines[i], hash_numbers + sample_lines[i]);
	kunmap_local(word);
	return finish(sum, domain, false);
}

/**
 * hash_page() - hash all of a page
 * @page: a page the caller holds a reference to
 * @domain: the number of the domain that it is of
 *
 * Context: Any.
 * Return: the upper bits of the keyed hash of what the page holds now.
 */
u64 hash_page(struct page *page, u32 domain)
{
	const u64 *word = kmap_local_page(page);
	unsigned __int128 sum = 0;
	unsigned int i;

	for (i = 0; i < PAGE_WORDS; i += KSMDEV_LINE_WORDS)
		sum += sum_of_line(word + i, hash_numbers + i);
	kunmap_local(word);
	return finish(sum, domain, true);
}

/**
 * hash_prefetch() - have the sample of a page fetched into the processor's cache
 * @page: a page that is about to be read
 *
 * Context: Any.
 */
void hash_prefetch(struct page *page)
{
	const u64 *word = page_address(page);
	unsigned int i;

	if (PageHighMem(page))
		return;
	for (i = 0; i < SAMPLE_LINES; i++)
		prefetch(word + sample_lines[i]);
}

static bool same_lines(struct page *a, struct page *b, unsigned int nr)
{
	const u64 *word_a = kmap_local_page(a);
	const u64 *word_b = kmap_local_page(b);
	u64 differs = 0;
	unsigned int i;

	for (i = 0; i < nr; i++)
		differs |= ksmdev_line_differs(word_a + sample_lines[i], word_b + sample_lines[i]);
	kunmap_local(word_b);
	kunmap_local(word_a);
	return !differs;
}

/**
 * pages_resemble() - are two pages of the same fingerprint likely to have the same sample
 * @a: a page the caller holds a reference to
 * @b: another
 *
 * Those whose hashes are the same by chance hardly ever have a line in common.
 *
 * Context: Any.
 * Return: true if so, as of now.
 */
bool pages_resemble(struct page *a, struct page *b)
{
	return same_lines(a, b, 1);
}

/**
 * pages_alike() - do two pages have the same sample
 * @a: a page the caller holds a reference to
 * @b: another
 *
 * Context: Any.
 * Return: true if so, as of now.
 */
bool pages_alike(struct page *a, struct page *b)
{
	return same_lines(a, b, SAMPLE_LINES);
}

/**
 * ksmdev_hash_init() - draw the secrets
 *
 * Context: Module init, before anything is hashed.
 */
void ksmdev_hash_init(void)
{
	unsigned int i;

	get_random_bytes(hash_numbers, sizeof(hash_numbers));
	get_random_bytes(&hash_key, sizeof(hash_key));
	for (i = 0; i < SAMPLE_LINES; i++)
		sample_lines[i] = i * SAMPLE_STEP + KSMDEV_LINE_WORDS *
			reciprocal_scale(get_random_u32(), SAMPLE_STEP / KSMDEV_LINE_WORDS);
}
