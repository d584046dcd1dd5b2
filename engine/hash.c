// SPDX-License-Identifier: GPL-2.0-only
/*
 * hash.c - fingerprints: what pages are found by
 *
 * Two contents may have the same one, by chance. That they do not by design is why the hash is
 * keyed with a random secret.
 */
#include <linux/highmem.h>
#include <linux/random.h>
#include <linux/siphash.h>

#include "../include/engine.h"
#include "../include/hash.h"

/* The secrets: a number for each word of a page, and a key for what comes of them. */
static u64 hash_numbers[PAGE_SIZE / sizeof(u64)] __read_mostly;
static siphash_key_t hash_key __read_mostly;

/**
 * hash_page() - hash a page's contents
 * @page: a page the caller holds a reference to
 * @domain: the number of the domain that it is of
 *
 * Whoever knows how one page hashes relative to another makes pages that all hash
 * alike, and pages that hash as somebody else's do and keep those from being merged.
 * A seed does not prevent that: of xxh64() with two words changed to make up for each
 * other, every fourth pair collides, whatever the seed. The sum of products here (the
 * NH of UMAC) is the same for two given pages with a probability of 2^-64 over the
 * secret numbers; siphash() hides it.
 *
 * Context: Any.
 * Return: the upper bits of the keyed hash of what the page holds now.
 */
u32 hash_page(struct page *page, u32 domain)
{
	unsigned __int128 sum = 0;
	const u64 *word = kmap_local_page(page);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(hash_numbers); i += 2)
		sum += (unsigned __int128)(word[i] + hash_numbers[i]) *
		       (word[i + 1] + hash_numbers[i + 1]);
	kunmap_local(word);
	return siphash_3u64(sum, sum >> 64, domain, &hash_key) >> (64 - FINGERPRINT_BITS);
}

/**
 * ksmdev_hash_init() - draw the secrets
 *
 * Context: Module init, before anything is hashed.
 */
void ksmdev_hash_init(void)
{
	get_random_bytes(hash_numbers, sizeof(hash_numbers));
	get_random_bytes(&hash_key, sizeof(hash_key));
}
