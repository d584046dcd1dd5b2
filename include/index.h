/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * index.h - from contents to pages
 *
 * Two indexes. Candidates are slots whose page was seen unchanged and has no twin
 * yet; shared pages are those that candidates became. Both are found by domain and fingerprint,
 * which proves nothing: only a comparison of write-protected pages does.
 */
#ifndef KSMDEV_INDEX_H
#define KSMDEV_INDEX_H

#include "mm.h"
#include "region.h"

/* How many candidates of one fingerprint are tried before giving up. */
#define INDEX_TRIES 4

u32 index_fingerprint(struct page *page, u32 domain);
unsigned long index_bytes(void);
void index_resize(unsigned long slots);
void index_move(struct chunk *chunk, struct slot *slots, unsigned int first);
void index_insert(struct chunk *chunk, unsigned int nr);
void index_remove(struct chunk *chunk, unsigned int nr);
unsigned int index_find(struct chunk *chunk, unsigned int nr, bool insert,
			u32 found[INDEX_TRIES]);

extern unsigned long ksmdev_max_kernel_pages;

bool shared_room(void);
struct page *shared_find(struct domain *domain, u32 fingerprint, struct page *like);
bool shared_known(struct domain *domain, u32 fingerprint);
struct page *shared_create(struct region *region, struct page *from);
unsigned long shared_count(void);
unsigned long shared_table_bytes(void);
int shared_init(void);
void shared_exit(void);

/**
 * struct told - statistics, as of a moment ago
 * @regions: what is registered
 * @shared: shared pages that are mapped
 * @sharing: mappings of them beyond the first of each
 * @kernel_pages: shared pages
 * @metadata: bytes of everything
 * @age_ms: how long ago this was begun to be counted
 */
struct told {
	struct ksmdev_totals regions;
	unsigned long shared, sharing, kernel_pages, age_ms;
	long metadata;
};

void sweep_tell(struct told *copy);
bool sweep_has_singles(void);
bool sweep_wants_looks(void);
void shared_lost_mapper(void);

#endif /* KSMDEV_INDEX_H */
