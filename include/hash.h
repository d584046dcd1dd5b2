/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hash.h - what pages are found by
 *
 *	hash.c	hashes: of a sample of a page, of all of it
 *	sample.c	which of the two is a page's fingerprint
 *
 * Fingerprints are to tell apart the pages of 16 TiB: of 2^32 pages, each looked up among all,
 * less than one in a hundred finds one by chance that it does not equal. A slot has no room for
 * that many bits: it keeps the upper ones, and where it lies in the index says what the rest is,
 * see index.c.
 */
#ifndef KSMDEV_HASH_H
#define KSMDEV_HASH_H

#include <linux/types.h>

struct domain;
struct mm_struct;
struct page;

/* Unit tests take fewer, to have many collisions. */
#ifndef FINGERPRINT_UPPER_BITS
#define FINGERPRINT_UPPER_BITS	28
#endif
#ifndef FINGERPRINT_REST_BITS
#define FINGERPRINT_REST_BITS	11
#endif
#define FINGERPRINT_BITS	(FINGERPRINT_UPPER_BITS + FINGERPRINT_REST_BITS)

static inline u32 fingerprint_upper(u64 fingerprint)
{
	return fingerprint >> FINGERPRINT_REST_BITS;
}

static inline u32 fingerprint_rest(u64 fingerprint)
{
	return fingerprint & ((1U << FINGERPRINT_REST_BITS) - 1);
}

static inline u64 fingerprint_of(u32 upper, u32 rest)
{
	return (u64)upper << FINGERPRINT_REST_BITS | rest;
}

/* engine/hash.c */
u64 hash_sample(struct page *page, u32 domain);
u64 hash_page(struct page *page, u32 domain);
void hash_prefetch(struct page *page);
bool pages_resemble(struct page *a, struct page *b);
bool pages_alike(struct page *a, struct page *b);

/* engine/sample.c */
u64 fingerprint_page(struct domain *domain, struct page *page);
bool sample_of_marked(const struct domain *domain, struct page *page, u64 *sample);
void sample_mark(struct domain *domain, struct mm_struct *mm, struct page *page, u64 fingerprint);
void samples_free(struct domain *domain);
unsigned long samples_bytes(void);

#endif /* KSMDEV_HASH_H */
