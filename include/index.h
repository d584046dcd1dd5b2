/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * index.h - from contents to pages
 *
 * Two indexes. Candidates are slots whose page was seen unchanged and has no twin
 * yet, found by fingerprint. Shared pages are found by their whole hash. Neither
 * proves anything: only a comparison of write-protected pages does.
 */
#ifndef KSMDEV_INDEX_H
#define KSMDEV_INDEX_H

#include "mm.h"
#include "region.h"

/* How many candidates of one fingerprint are tried before giving up. */
#define INDEX_TRIES 4

u64 index_hash(struct page *page);
unsigned long index_bytes(void);

static inline u32 index_fingerprint(u64 hash)
{
	return hash >> (64 - FINGERPRINT_BITS);
}

int index_resize(unsigned long slots);
void index_insert(struct chunk *chunk, unsigned int nr);
void index_remove(struct chunk *chunk, unsigned int nr);
unsigned int index_find(u32 fingerprint, struct chunk *chunk, unsigned int nr,
			u32 found[INDEX_TRIES]);

struct page *shared_find(u64 hash);
struct page *shared_create(struct mm_struct *mm, struct page *from, u64 hash);
void shared_prune(void);
void shared_prune_soon(void);
int shared_init(void);
void shared_exit(void);

/**
 * struct shared_totals - what is shared now
 * @shared: shared pages that are mapped
 * @sharing: mappings of them beyond the first of each
 * @pages: shared pages, mapped or not
 * @metadata: bytes of both indexes
 */
struct shared_totals {
	unsigned long shared, sharing, pages, metadata;
};

void shared_totals(struct shared_totals *totals);

#endif /* KSMDEV_INDEX_H */
